"""Releases against the one-machine control plane with real processes, killed where it hurts."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
from release_scenarios import PROMOTE, ROLL_BACK, SERVICE, bundle, candidate, plan

from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.identities import from_routes
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.release import Release

ROOT = Path(__file__).resolve().parents[2]
STANDIN = ROOT / "tests" / "serving" / "local" / "standin_predictor.py"
CONFIG = {
    "tick_seconds": 0.05,
    "probe_seconds": 0.1,
    "probe_loading_seconds": 0.02,
    "drain_seconds": 0.05,
    "restart_first_seconds": 0.05,
    "progress_deadline_seconds": 30,
    "stop_grace_seconds": 5,
}
LONG_SECONDS = 60


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + LONG_SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what}: not within {LONG_SECONDS} s"
        time.sleep(0.02)
    return found


@dataclass
class Machine:
    """A home with its processes; all of them are ended by `stop`."""

    home: Path
    url: str = ""
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    def spawn(self, *command: str) -> "subprocess.Popen[bytes]":
        with (self.home / "processes.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def start_control_plane(self) -> "subprocess.Popen[bytes]":
        config, port_file = self.home / "local.json", self.home / "port"
        config.write_text(json.dumps(CONFIG))
        port_file.unlink(missing_ok=True)
        predictor = shlex.join([sys.executable, "-S", str(STANDIN)])
        started = self.spawn(
            *("-m", "serving.local", "--home", str(self.home), "--config", str(config)),
            *("--port", "0", "--port-file", str(port_file), "--predictor-command", predictor),
        )
        port = wait_for(lambda: port_file.exists() and port_file.read_text(), "its port")
        self.url = f"http://127.0.0.1:{port}"
        return started

    def candidate(self, version: str, stable: str | None = None) -> Candidate:
        folder = self.home / "bundles" / bundle(version)
        folder.mkdir(parents=True, exist_ok=True)
        given: Candidate = candidate(version, stable)
        return replace(given, bundle_uri=f"file://{folder}")

    def conductor(self, ledger: Ledger, holder: str) -> Conductor:
        routes = from_routes(Settings(home=self.home))
        return Conductor(ledger, KubernetesClient(self.url), holder, identities=routes)

    def routed(self) -> dict[str, int]:
        """What the gateway is told: {bundle digest: percent}."""
        routes = json.loads((self.home / "control" / "routes.json").read_text())
        arms = routes["services"][SERVICE]["arms"]
        return {arm["bundle_digest"]: arm["percent"] for arm in arms if arm["percent"]}

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for left in psutil.process_iter(["cmdline"]):
            if any(str(self.home / "control") in part for part in left.info["cmdline"] or ()):
                left.kill()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    made.start_control_plane()
    yield made
    made.stop()


@pytest.fixture
def ledger(machine: Machine) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{machine.home}/ledger.db")
    yield opened
    opened.close()


def released(
    machine: Machine,
    conductor: Conductor,
    version: str,
    stable: str | None,
    decision: CanaryDecision = PROMOTE,
) -> Release:
    proposed = conductor.propose(machine.candidate(version, stable), plan())
    release = conductor.start(proposed.release_id)

    def ended() -> Release | None:
        found = conductor.advance(release.release_id, decision)
        return found if found.final else None

    found: Release = wait_for(ended, f"the end of {version}")
    return found


def test_a_release_a_rollback_and_an_operators_rollback_leave_what_was(
    machine: Machine, ledger: Ledger
) -> None:
    conductor = machine.conductor(ledger, "flow")
    for version, stable in (("1", None), ("2", "1")):
        ended = released(machine, conductor, version, stable)
        assert ended.state is ReleaseState.PROMOTED, ended.reason
        assert machine.routed() == {bundle(version): 100}
    ended = released(machine, conductor, "3", "2", ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert machine.routed() == {bundle("2"): 100}
    assert ended.after is not None
    assert ended.after.reported == (bundle("2"),)
    ended = conductor.roll_back_service(SERVICE, "ann", "bad answers", wait_seconds=LONG_SECONDS)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert machine.routed() == {bundle("1"): 100}
    assert not [event for event in ledger.events() if event.kind == "alarm"]
    assert ledger.verify() == []


def test_a_release_that_begins_at_0_has_a_ready_canary_that_no_client_is_sent_to(
    machine: Machine, ledger: Ledger
) -> None:
    conductor = machine.conductor(ledger, "flow")
    released(machine, conductor, "1", None)
    proposed = conductor.propose(machine.candidate("2", "1"), plan(shares=(0, 50, 100)))
    release_id = conductor.start(proposed.release_id).release_id
    wait_for(lambda: conductor.advance(release_id).step_started_at, "the canary at 0 %")
    routes = json.loads((machine.home / "control" / "routes.json").read_text())
    stable, canary = routes["services"][SERVICE]["arms"]
    assert (stable["percent"], canary["percent"]) == (100, 0)
    assert (canary["arm"], canary["bundle_digest"]) == ("canary", bundle("2"))
    assert [endpoint["ready"] for endpoint in canary["endpoints"]] == [True]
    wait_for(lambda: conductor.advance(release_id, PROMOTE).final, "its end")
    assert machine.routed() == {bundle("2"): 100}
    assert ledger.release(release_id).state is ReleaseState.PROMOTED


@pytest.mark.parametrize(
    "also", ["nothing else", pytest.param("control plane", marks=pytest.mark.slow)]
)
def test_a_killed_flow_is_rolled_back_by_the_keeper(
    machine: Machine, ledger: Ledger, also: str
) -> None:
    released(machine, machine.conductor(ledger, "earlier"), "1", None)
    machine.spawn(
        *("-m", "rollout.keeper", "--home", str(machine.home), "--interval-seconds", "0.1"),
        *("--kube-url", machine.url),
    )
    given = msgspec.json.encode(machine.candidate("2", "1")).decode()
    url = f"sqlite:///{machine.home}/ledger.db"
    flow = machine.spawn("tests/rollout/flow_process.py", url, machine.url, given, "5")
    wait_for(lambda: machine.routed().get(bundle("2")) == 50, "the canary at 50 %")
    flow.send_signal(signal.SIGKILL)
    if also == "control plane":
        plane = machine.processes[0]
        plane.send_signal(signal.SIGKILL)
        plane.wait()
        port = machine.url.rpartition(":")[2]
        machine.spawn(
            *("-m", "serving.local", "--home", str(machine.home), "--port", port),
            *("--config", str(machine.home / "local.json"), "--predictor-command"),
            shlex.join([sys.executable, "-S", str(STANDIN)]),
        )
    release = ledger.releases(SERVICE)[0]
    wait_for(lambda: ledger.release(release.release_id).final, "the keeper's rollback")
    ended = ledger.release(release.release_id)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.reason == "the lease of flow ran out"
    assert machine.routed() == {bundle("1"): 100}
    assert not ended.alarms
    assert ledger.verify() == []


@pytest.mark.slow
def test_a_stopped_flow_that_wakes_up_after_its_lease_changes_nothing(
    machine: Machine, ledger: Ledger
) -> None:
    released(machine, machine.conductor(ledger, "earlier"), "1", None)
    machine.spawn(
        *("-m", "rollout.keeper", "--home", str(machine.home), "--interval-seconds", "0.1"),
        *("--kube-url", machine.url),
    )
    given = msgspec.json.encode(machine.candidate("2", "1")).decode()
    url = f"sqlite:///{machine.home}/ledger.db"
    flow = machine.spawn("tests/rollout/flow_process.py", url, machine.url, given, "5")
    wait_for(lambda: machine.routed().get(bundle("2")) == 50, "the canary at 50 %")
    flow.send_signal(signal.SIGSTOP)
    release = ledger.releases(SERVICE)[0]
    wait_for(lambda: ledger.release(release.release_id).final, "the keeper's rollback")
    events = ledger.events()
    flow.send_signal(signal.SIGCONT)
    assert flow.wait(LONG_SECONDS) == 0  # it sees that its release has ended
    assert ledger.events() == events
    assert machine.routed() == {bundle("1"): 100}
