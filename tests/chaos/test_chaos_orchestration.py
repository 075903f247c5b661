"""What carries releases out is killed during a canary: flow engine, worker, Prefect and MLflow.

On the real stack, each release as its deployment's run; nobody but the keeper is left to end it.
"""

import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest
from chaos_world import PROMOTE, Case, World

from cli.processes import send
from cli.stack_file import read_stack
from cli.verification import decision_problems
from core.contracts import ReleaseState
from rollout.release import Release
from tests.flows.approval_desk import SERVICE, Desk, open_desk
from tests.one_machine import OneMachine, until
from tests.running_stack import Stack, serin

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]
RPS = 10.0
LEASE_SECONDS = 6.0
STEP_SECONDS = 5.0
SERVED_SECONDS_MAX = 90.0
"""A server that was killed answers again within this on a busy machine."""
ENDED_BY_KEEPER = f"keeper-{os.uname().nodename}"


@dataclass
class Orchestration:
    """The desk, whose releases run from their deployment, and the world that checks them."""

    desk: Desk
    world: World

    def begin(self) -> Release:
        """Start a release from its deployment; return it once its canary is live."""
        self.desk.await_worker()
        proposed = self.desk.propose(
            0.8, step_seconds_min=STEP_SECONDS, lease_seconds=LEASE_SECONDS
        )
        self.desk.start_run(proposed)
        self.desk.wait(lambda: self.live(proposed.release_id), "the canary")
        return proposed

    def live(self, release_id: str) -> bool:
        """Whether the canary has its share."""
        found = self.desk.ledger.release(release_id)
        assert not found.final, found.reason
        return found.state is ReleaseState.CANARY and found.step_started_at is not None

    def engine(self, release: Release) -> psutil.Process:
        """The process in which the worker runs the release's flow."""
        (run,) = self.desk.runs(release.release_id)
        assert self.desk.worker is not None
        for process in psutil.Process(self.desk.worker.pid).children(recursive=True):
            if process.environ().get("PREFECT__FLOW_RUN_ID") == run["id"]:
                return process
        raise AssertionError(f"the worker has no process for run {run['id']}")

    def kill_worker(self) -> None:
        """Kill -9 the worker alone."""
        assert self.desk.worker is not None
        self.desk.worker.kill()
        self.desk.worker.wait()

    def kill_part(self, name: str) -> None:
        """Kill -9 a part of the stack, which the supervisor starts again."""
        identity = read_stack(self.desk.settings.home).living[name]
        assert send(identity, signal.SIGKILL)

    def ended(self, case: Case, release: Release) -> Release:
        """Wait for the one outcome and check it, to the last recorded decision."""
        case.done()
        assert [*decision_problems(self.desk.ledger)] == []
        return self.desk.ledger.release(release.release_id)

    def follow(self) -> None:
        """Another release works, in spite of what was left behind."""
        url = f"{self.desk.settings.mlflow_url}/health"
        self.desk.wait(lambda: answers(url), "MLflow", SERVED_SECONDS_MAX)
        conductor = self.desk.conductor
        proposed = self.desk.propose(0.8, step_seconds_min=0, step_requests_min=0)
        conductor.start(proposed.release_id)
        until(lambda: conductor.advance(proposed.release_id, PROMOTE).final, "the next release")
        assert self.desk.state(proposed.release_id) is ReleaseState.PROMOTED
        assert self.desk.ledger.verify() == []
        assert self.world.load.report().failed == 0


def answers(url: str) -> bool:
    """Whether a server answers."""
    try:
        return httpx.get(url, timeout=5).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def orchestration(stack: Stack, bundle: Path) -> Iterator[Orchestration]:
    """The desk under load for the whole module."""
    with open_desk(stack, bundle) as desk:
        settings = desk.settings
        machine = OneMachine(
            settings.home,
            kube_url=settings.kube_url,
            gateway_url=settings.gateway_url,
            service=SERVICE,
        )
        world = World(machine)
        world.ledger, world.load = desk.ledger, machine.load(RPS)
        world.load.start()
        yield Orchestration(desk, world)
        assert world.load.stop().failed == 0


def kill_engine(orchestration: Orchestration, release: Release) -> None:
    orchestration.engine(release).kill()


def kill_engine_and_worker(orchestration: Orchestration, release: Release) -> None:
    engine = orchestration.engine(release)
    engine.suspend()  # so that neither sees the other go
    orchestration.kill_worker()
    engine.kill()
    orchestration.desk.start_worker()


@pytest.mark.parametrize(
    ("name", "kill"),
    [("flow engine", kill_engine), ("flow engine and worker", kill_engine_and_worker)],
)
def test_a_release_without_its_engine_is_taken_back_by_the_keeper(
    orchestration: Orchestration, name: str, kill: Callable[[Orchestration, Release], None]
) -> None:
    case = orchestration.world.case(f"{name} killed in the canary")
    release = orchestration.begin()
    case.fault()
    kill(orchestration, release)
    ended = orchestration.ended(case, release)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.holder.startswith(ENDED_BY_KEEPER)
    orchestration.follow()


def test_a_release_goes_on_without_its_worker(orchestration: Orchestration) -> None:
    """Rich ends a process that writes to a broken pipe: its output must not go to the worker."""
    case = orchestration.world.case("worker killed in the canary")
    release = orchestration.begin()
    case.fault()
    orchestration.kill_worker()
    orchestration.desk.start_worker()
    ended = orchestration.ended(case, release)
    assert ended.state is ReleaseState.PROMOTED, ended.reason
    settled(orchestration, release)
    orchestration.follow()


@pytest.mark.parametrize("part", ["prefect", "mlflow"])
def test_a_release_outlives_a_server_killed_in_its_canary(
    orchestration: Orchestration, part: str
) -> None:
    case = orchestration.world.case(f"{part} server killed in the canary")
    release = orchestration.begin()
    case.fault()
    orchestration.kill_part(part)
    ended = orchestration.ended(case, release)
    assert ended.state is ReleaseState.PROMOTED, ended.reason
    settled(orchestration, release)
    orchestration.follow()


def test_a_release_is_settled_though_mlflow_is_killed_right_before(
    orchestration: Orchestration,
) -> None:
    case = orchestration.world.case("mlflow server killed before settling")
    release = orchestration.begin()
    ledger = orchestration.desk.ledger
    until(lambda: ledger.release(release.release_id).share == 100, "the last share")
    case.fault()
    orchestration.kill_part("mlflow")
    ended = orchestration.ended(case, release)
    assert ended.state is ReleaseState.PROMOTED, ended.reason
    settled(orchestration, release)
    orchestration.follow()


def settled(orchestration: Orchestration, release: Release) -> None:
    """Wait until the run has ended as its release has, and MLflow says the same."""
    desk = orchestration.desk
    url = f"{desk.settings.prefect_url}/health"
    desk.wait(lambda: answers(url), "Prefect", SERVED_SECONDS_MAX)
    states = ("PENDING", "RUNNING", "SCHEDULED")
    desk.wait(lambda: desk.runs(release.release_id)[0]["state_type"] not in states, "the run's end")
    assert desk.runs(release.release_id)[0]["state_name"] == "Promoted"
    stable = desk.registry.find("stable")
    assert stable is not None
    assert stable.version == release.candidate.model_version


def test_a_return_to_an_earlier_version_is_carried_out_by_the_release_deployment(
    orchestration: Orchestration,
) -> None:
    desk, world = orchestration.desk, orchestration.world
    desk.await_worker()
    if len(promoted(desk)) < 2:
        orchestration.follow()
    earlier = promoted(desk)[1]
    failed = world.load.report().failed
    said = serin("rollback", "--to", earlier, environment=desk.environment, seconds=60)
    release_id = re.findall(r"\S+", said)[0]
    assert "its canary starts with the release flow" in said
    desk.wait(lambda: desk.ledger.release(release_id).final, "the return")
    assert desk.state(release_id) is ReleaseState.PROMOTED
    assert [run["deployment_id"] is not None for run in desk.runs(release_id)] == [True]
    assert world.machine.ask() == (200, earlier)
    assert world.stable_version() == earlier
    assert desk.ledger.verify() == []
    assert [*decision_problems(desk.ledger)] == []
    assert world.load.report().failed == failed


def promoted(desk: Desk) -> list[str]:
    """The versions that became stable, newest first."""
    releases = desk.ledger.releases(SERVICE)
    return [
        found.candidate.model_version for found in releases if found.state is ReleaseState.PROMOTED
    ]
