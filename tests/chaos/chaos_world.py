"""What every chaos case needs: a machine under load, engines that stop themselves, checks."""

import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import psutil
from engine_process import Orders

from core.contracts import CanaryDecision, ReleaseState
from observability.load import LoadGenerator
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from tests.one_machine import ROOT, OneMachine, until

CLOCK_SECONDS_MAX = 200_000
"""No case moves a clock further than this: what was written last serves."""
IN_FLIGHT_MAX = 3
"""Requests, of 20 a second, that a killed process can have had in its hands."""
PROMOTE = CanaryDecision("promote", "the test says so", canary_requests=1000)


class Engine:
    """One engine process, by its id."""

    def __init__(self, pid: int) -> None:
        self.process = psutil.Process(pid)

    def stopped(self) -> bool:
        """Wait until it has stopped itself (True) or has ended (False)."""

        def look() -> str:
            status = self.status()
            return status if status in ("ended", "stopped") else ""

        return until(look, "the engine's boundary") == "stopped"

    def resume(self) -> None:
        self.process.resume()

    def kill(self) -> None:
        """Kill -9, and wait until it is gone."""
        self.process.kill()
        until(self.ended, "the engine's end")

    def wake(self) -> None:
        """Let it go on, to its end."""
        self.resume()
        until(self.ended, "the engine's end")

    def ended(self) -> bool:
        """Whether it is gone."""
        return self.status() == "ended"

    def status(self) -> str:
        """The process's state; `ended` when it is gone."""
        try:
            found: str = self.process.status()
        except psutil.NoSuchProcess:
            return "ended"
        return "ended" if found == psutil.STATUS_ZOMBIE else found


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    case: str
    outcome: str
    seconds_to_safe: float
    failed: int
    sent: int


ROWS: list[Row] = []


class World:
    """A machine with a keeper under load; version numbers only rise."""

    def __init__(self, machine: OneMachine) -> None:
        self.machine = machine
        self.ledger: Ledger
        self.load: LoadGenerator
        self.version = 0
        self._orders = 0
        self._engines: subprocess.Popen[str] | None = None

    def begin(self) -> None:
        """Start everything and make version 1 stable."""
        self.machine.start()
        self.ledger = Ledger(self.machine.ledger_url)
        self.promote()
        self.load = self.machine.load()
        self.load.start()
        self.machine.start_keeper()

    def end(self) -> None:
        """Stop everything."""
        if hasattr(self, "load"):
            self.load.stop()
        if self._engines is not None:
            for engine in psutil.Process(self._engines.pid).children():
                engine.kill()
            self._engines.kill()
            self._engines.communicate()
        self.machine.stop()
        if hasattr(self, "ledger"):
            self.ledger.close()

    def promote(self) -> Release:
        """Make the next version stable, without load on purpose and without faults."""
        conductor = self.machine.conductor(self.ledger, "earlier")
        stable = self.stable_version()
        self.version += 1
        plan = ReleasePlan(
            shares=(50, 100), step_seconds_min=0, step_requests_min=0, lease_seconds=1
        )
        proposed = conductor.propose(self.machine.candidate(str(self.version), stable), plan)
        conductor.start(proposed.release_id)

        def ended() -> Release | None:
            found = conductor.advance(proposed.release_id, PROMOTE)
            return found if found.final else None

        found = until(ended, f"version {self.version}")
        assert found is not None
        assert found.state is ReleaseState.PROMOTED, found.reason
        return found

    def stable_version(self) -> str | None:
        """The version that the ledger says is stable."""
        stable = self.ledger.stable(self.machine.service)
        return stable.candidate.model_version if stable else None

    def engine(
        self, role: Literal["release", "rollback", "keeper"], at: int, **more: Any
    ) -> Engine:
        """Start an engine that stops itself at boundary `at`."""
        self._orders += 1
        path = self.machine.home / f"orders-{self._orders}.json"
        candidate = None
        if role == "release":
            self.version += 1
            candidate = self.machine.candidate(str(self.version), self.stable_version())
        elif role == "rollback":
            candidate = self.machine.candidate("1", None)
        orders = Orders(
            role=role,
            home=str(self.machine.home),
            ledger_url=self.machine.ledger_url,
            kube_url=self.machine.kube_url,
            at=at,
            report=str(path.with_suffix(".count")),
            candidate=candidate,
            **{"holder": f"{role}-{self._orders}", **more},
        )
        path.write_bytes(msgspec.json.encode(orders))
        return Engine(self._fork(path))

    def _fork(self, orders: Path) -> int:
        if self._engines is None:
            log = (self.machine.home / "engines.log").open("ab")
            with log:
                self._engines = subprocess.Popen(
                    [sys.executable, "-m", "tests.chaos.engine_process"],
                    cwd=ROOT,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                )
        assert self._engines.stdin is not None
        assert self._engines.stdout is not None
        self._engines.stdin.write(f"{orders}\n")
        self._engines.stdin.flush()
        return int(self._engines.stdout.readline())

    def where(self) -> str:
        """The last thing in the ledger, for a case's name."""
        event = self.ledger.last_events(1)[0]
        action = event.body.get("action", "")
        return f"after {event.kind} {action}".strip()

    def case(self, name: str, lost_max: int = 0) -> "Case":
        """Begin a case: failures are counted from now on."""
        return Case(self, name, lost_max)

    def healthy(self) -> bool:
        """Whether nothing is active and the gateway sends everything to what the ledger says."""
        stable = self.ledger.stable(self.machine.service)
        assert stable is not None
        wanted = {stable.candidate.bundle_digest: 100}
        settled = not self.ledger.all_active() and self.machine.routed() == wanted
        return settled and self.machine.gateway_followed()


class Case:
    """One fault: `done` waits for the one outcome, checks it, and adds the row."""

    def __init__(self, world: World, name: str, lost_max: int) -> None:
        self._world, self._name, self._lost_max = world, name, lost_max
        self._last_seq = world.ledger.last_events(1)[0].seq
        before = world.load.report()
        self._failed, self._sent = before.failed, before.sent
        self._fault_at = time.monotonic()

    def allow(self, lost_max: int, name: str) -> None:
        """Say afterwards how many requests could be in hand, and what the case was."""
        self._lost_max, self._name = lost_max, name

    def fault(self) -> None:
        """The fault happens now: seconds to safe count from here."""
        self._fault_at = time.monotonic()

    def done(self, finish: Callable[[], object] = lambda: None) -> None:
        """Wait, check, add the row. `finish` ends what still runs, once the traffic is safe."""
        world, machine = self._world, self._world.machine
        try:
            until(world.healthy, "one consistent outcome")
            safe = time.monotonic() - self._fault_at
            finish()
            until(world.healthy, "the outcome still holds")
            outcome = self._check()
            stable = world.stable_version()
            answer = machine.ask()
            assert answer == (200, stable), answer
            report = world.load.report()
            failed, sent = report.failed - self._failed, report.sent - self._sent
            assert failed <= self._lost_max, report
        except BaseException as error:
            error.add_note(self._name)
            for event in world.ledger.last_events(15):
                error.add_note(f"{event.release_id} {event.kind} {event.state} {event.body}"[:200])
            raise
        ROWS.append(Row(self._name, outcome, safe, failed, sent))

    def _check(self) -> str:
        """One outcome per release, an honest ledger and a valid chain; return the outcomes."""
        ledger, machine = self._world.ledger, self._world.machine
        events = ledger.events(since=self._last_seq)
        assert ledger.verify() == []
        assert not [event for event in events if event.kind == "alarm"]
        outcomes = []
        for release_id in dict.fromkeys(event.release_id for event in events):
            release = ledger.release(release_id)
            assert release.final or release.state is ReleaseState.PROPOSED
            if release.state is ReleaseState.ROLLED_BACK and release.goal is not None:
                assert release.after is not None
                assert release.goal.differences(release.after) == ()
            own = [event for event in events if event.release_id == release_id]
            ends = [event.kind for event in own if event.state == str(release.state)]
            assert not release.final or len(ends) == 1, ends
            outcomes.append(str(release.state).lower().replace("_", " "))
        told = {
            s.bundle_digest: s.percent
            for s in ledger.serving_at(machine.service, time.time() + CLOCK_SECONDS_MAX)
        }
        assert told == machine.routed()
        body = json.loads((machine.home / "control" / "services.json").read_text())
        assert "canaryTrafficPercent" not in json.dumps(body)
        return ", ".join(outcomes) or "nothing begun"


def folder_flag(folder: Path, name: str, text: str | None) -> None:
    """Set or remove a file that engines look at."""
    path = folder / name
    if text is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(text)
