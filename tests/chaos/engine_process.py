"""Release engines as processes: each drives one release and stops itself at the boundaries asked.

It stops (SIGSTOP) before and after each ledger transaction and each write to the control plane;
whoever asked for it then kills it, breaks something else, or lets it go on. For each line on stdin,
a file with Orders as JSON, an engine is forked, so that all of them share the slow imports.
"""

import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeVar

import msgspec

from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.errors import SerinError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.identities import from_routes
from rollout.keeper import Keeper
from rollout.kubernetes_client import KubernetesClient
from rollout.plan import ReleasePlan
from rollout.writer import Writer
from tests.rollout.boundaries import WatchedLedger, WatchedServices

T = TypeVar("T")
PAUSE_SECONDS = 0.03
PAGES_MAX = 1_073_741_823


class Orders(msgspec.Struct):
    """What to do. `at` is the boundary to stop at: 0 none, -1 each one."""

    role: Literal["release", "rollback", "keeper"]
    home: str
    ledger_url: str
    kube_url: str
    at: int
    report: str
    holder: str = "flow"
    candidate: Candidate | None = None
    decision: Literal["promote", "rollback"] = "promote"
    lease_seconds: float = 1.0


class ChaosLedger(WatchedLedger):
    """A ledger that cannot grow while the file `full` lies in its folder, and jumps in time with
    the seconds in the file `clock`."""

    folder = Path()

    def write(self, work: Callable[[Writer], T]) -> T:
        def limited(writer: Writer) -> T:
            pages = 1 if (self.folder / "full").exists() else PAGES_MAX
            writer._connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            return work(writer)

        return super().write(limited)


class Boundaries:
    """Counts boundaries, writes the count down, and stops the process where it shall."""

    def __init__(self, at: int, report: Path) -> None:
        self.at, self.count, self._report = at, 0, report

    def __call__(self) -> None:
        self.count += 1
        self._report.write_text(str(self.count))
        if self.at in (-1, self.count):
            os.kill(os.getpid(), signal.SIGSTOP)


def clock_of(folder: Path) -> Callable[[], float]:
    def clock() -> float:
        path = folder / "clock"
        return time.time() + (float(path.read_text()) if path.exists() else 0.0)

    return clock


def run_release(conductor: Conductor, orders: Orders) -> None:
    """Propose, start and advance as the release flow does, for ever patient with what is away."""
    assert orders.candidate is not None
    candidate = orders.candidate
    plan = ReleasePlan(
        shares=(5, 50, 100),
        step_seconds_min=0,
        step_requests_min=0,
        lease_seconds=orders.lease_seconds,
    )
    decision = CanaryDecision(orders.decision, "the test says so", canary_requests=1000)
    hold = CanaryDecision("continue", "not yet", canary_requests=1000)
    release_id = ""
    while True:
        try:
            if not release_id:
                release_id = conductor.propose(candidate, plan).release_id
            release = conductor.ledger.release(release_id)
            if release.state is ReleaseState.PROPOSED:
                if conductor.needs_new_verdict(release_id):
                    stable = conductor.ledger.stable(candidate.service)
                    version = stable.candidate.model_version if stable else None
                    conductor.propose(replace(candidate, stable_version=version), plan)
                release = conductor.start(release_id)
            else:
                late = orders.decision == "promote" or release.percent >= 50
                release = conductor.advance(release_id, decision if late else hold)
            if release.final:
                return
        except SerinError as error:
            print(type(error).__name__, error, flush=True)
        time.sleep(PAUSE_SECONDS)


def run_keeper(conductor: Conductor, keeper: Keeper) -> None:
    """Keep until nothing is active."""
    while True:
        try:
            if not keeper.tick():
                return
        except SerinError as error:
            print(type(error).__name__, error, flush=True)
        time.sleep(PAUSE_SECONDS)


def main(path: str) -> None:
    orders = msgspec.json.decode(Path(path).read_bytes(), type=Orders)
    home = Path(orders.home)
    ledger = ChaosLedger(orders.ledger_url, clock_of(home))
    ledger.folder = home
    services = WatchedServices(KubernetesClient(orders.kube_url))
    identities = from_routes(Settings(home=home))
    conductor = Conductor(ledger, services, orders.holder, identities=identities)
    boundary = Boundaries(orders.at, Path(orders.report))
    ledger.boundary = boundary
    services.boundary = boundary
    if orders.role == "release":
        run_release(conductor, orders)
    elif orders.role == "rollback":
        assert orders.candidate is not None
        conductor.roll_back_service(orders.candidate.service, "ann", "the test says so")
    else:
        run_keeper(conductor, Keeper(ledger, conductor))


def serve() -> None:
    """Fork an engine per line of stdin and tell its process id; ended ones are reaped at once."""
    KubernetesClient("http://127.0.0.1:1").load()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(0)
            os.close(1)
            os.dup2(2, 1)
            main(line.strip())
            os._exit(0)
        print(pid, flush=True)


if __name__ == "__main__":
    serve()
