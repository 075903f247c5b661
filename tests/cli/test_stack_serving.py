"""The real stack under traffic: a canary, a promotion, kills and an operator's rollback."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from cli.processes import identify
from cli.stack_file import read_stack
from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.manifests import read_manifest, write_manifest
from core.settings import Settings
from observability.load import LoadConfig, LoadGenerator
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from tests.running_stack import Stack, serin

SERVICE = "probe"
PROMOTE = CanaryDecision("promote", "the test says so", canary_requests=1000)
CONTINUE = CanaryDecision("continue", "the test waits", canary_requests=1000)
PLAN = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0)
SECONDS_MAX = 90.0
OUT_OF_THE_WAY = ("supervisor", "control", "keeper")
"""Processes that no request passes through."""
BEGUN_MAX = 2
"""Requests that may have begun between the count of those in hand and the kill."""


@dataclass(frozen=True, slots=True)
class Probe:
    """A service of its own on the session's stack, with version 1 as stable and 2 to release."""

    conductor: Conductor
    settings: Settings
    environment: dict[str, str]
    bundles: tuple[Path, Path]

    def start(self, version: int) -> Release:
        path = self.bundles[version - 1]
        candidate = Candidate(
            service=SERVICE,
            model_version=str(version),
            bundle_digest=path.name,
            bundle_uri=f"file://{path}",
            adapter_digest="a" * 64,
            snapshot_id="s" * 64,
            verdict_digest="v" * 64,
            stable_version=str(version - 1) if version > 1 else None,
        )
        return self.conductor.start(self.conductor.propose(candidate, PLAN).release_id)

    def advance(
        self,
        release: Release,
        until: Callable[[Release], bool],
        decision: CanaryDecision = PROMOTE,
    ) -> Release:
        deadline = time.monotonic() + SECONDS_MAX
        while not until(release):
            assert time.monotonic() < deadline, release
            release = self.conductor.advance(release.release_id, decision)
            time.sleep(0.1)
        return release

    def serving(self) -> dict[str, dict[str, Any]]:
        """Return the arms as `serin status` shows them."""
        printed = serin("status", "--json", environment=self.environment, seconds=60)
        found: dict[str, dict[str, Any]] = json.loads(printed)["serving"]
        return found


@pytest.fixture(scope="module")
def probe(stack: Stack, bundle: Path) -> Iterator[Probe]:
    bundles = stack.settings.folder("bundles")
    first, second = bundles / bundle.name, bundles / ".second"
    for folder in (first, second):
        shutil.copytree(bundle, folder)
    manifest = read_manifest(second)
    changed = replace(manifest, settings={**manifest.settings, "edition": 2})
    write_manifest(second, changed)
    second = second.rename(bundles / changed.digest)
    settings = stack.settings.model_copy(update={"service": SERVICE})
    ledger, client = Ledger(settings.ledger_url), KubernetesClient(settings.kube_url)
    environment = {**stack.environment, "SERIN_SERVICE": SERVICE}
    probe = Probe(Conductor(ledger, client, "test"), settings, environment, (first, second))
    probe.advance(probe.start(1), lambda release: release.state is ReleaseState.PROMOTED)
    yield probe
    body = client.get(settings.namespace, SERVICE)
    if body is not None:
        client.delete(settings.namespace, SERVICE, body["metadata"]["uid"])
    ledger.close()


@pytest.fixture
def traffic(probe: Probe) -> Iterator[LoadGenerator]:
    config = LoadConfig(url=probe.settings.gateway_url, model=SERVICE, rps=10, max_tokens=4)
    load = LoadGenerator(config, ["Where is my parcel?"])
    load.start()
    yield load
    load.stop()


def until_sent(load: LoadGenerator, more: int) -> None:
    goal = load.report().sent + more
    deadline = time.monotonic() + SECONDS_MAX
    while load.report().sent < goal:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_promotion_and_rollback_by_an_operator_lose_no_request(
    probe: Probe, traffic: LoadGenerator
) -> None:
    until_sent(traffic, 10)
    release = probe.advance(probe.start(2), lambda r: bool(r.step_started_at), CONTINUE)
    until_sent(traffic, 20)
    serving = probe.serving()
    shares = {name: (arm["model_version"], arm["share_percent"]) for name, arm in serving.items()}
    assert shares == {"stable": ("1", 50), "canary": ("2", 50)}
    assert serving["canary"]["requests"] > 0
    probe.advance(release, lambda r: r.final)
    until_sent(traffic, 10)
    printed = serin(
        "rollback", "--reason", "a drill", "--as", "Ada", environment=probe.environment, seconds=90
    )
    assert "ROLLED_BACK" in printed
    until_sent(traffic, 10)
    (arm,) = probe.serving().values()
    assert (arm["model_version"], arm["share_percent"]) == ("1", 100)
    report = traffic.stop()
    assert report.failed == 0, report
    events = json.loads(
        serin("history", "--json", "--verify", environment=probe.environment, seconds=60)
    )
    assert any("a drill" in json.dumps(event["body"]) for event in events)


@pytest.mark.parametrize(
    ("parts", "begun_max"),
    [(("gateway",), BEGUN_MAX), (("predictor",), BEGUN_MAX), (OUT_OF_THE_WAY, None)],
    ids=["gateway", "predictor", "others"],
)
def test_killed_processes_lose_only_what_they_had_in_hand(
    probe: Probe,
    stack: Stack,
    traffic: LoadGenerator,
    parts: tuple[str, ...],
    begun_max: int | None,
) -> None:
    until_sent(traffic, 10)
    pids = [pid_of(stack, part) for part in parts]
    in_hand = traffic.report().in_flight
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until_sent(traffic, 40)
    assert [identify(pid) for pid in pids] == [None] * len(pids)
    if "supervisor" in parts:
        serin("up", "--no-worker", environment=stack.environment, seconds=90)
    report = traffic.stop()
    assert report.failed <= (0 if begun_max is None else in_hand + begun_max), report


def pid_of(stack: Stack, part: str) -> int:
    file = read_stack(stack.home)
    if part == "predictor":
        listed = json.loads((stack.home / "control" / "processes.json").read_text())
        return next(int(item["pid"]) for item in listed["processes"] if item["service"] == SERVICE)
    found = file.supervisor if part == "supervisor" else file.living[part]
    assert found is not None
    return found.pid
