"""The keeper rolls back what nobody advances, and nothing else; it outlives what it needs."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from control_plane import ControlPlane
from release_scenarios import (
    CONTINUE,
    PROMOTE,
    SERVICE,
    Clock,
    begin,
    bundle,
    finish,
    kinds,
    promote,
)

from core.contracts import ReleaseState
from core.errors import UnavailableError
from observability.logs import message_of
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.keeper import Keeper, keep
from rollout.ledger import Ledger
from rollout.release import Release

ROOT = Path(__file__).resolve().parents[2]
ONE, TWO = bundle("1"), bundle("2")
LONG_SECONDS = 60


def wait_for(condition: Callable[[], object], seconds: float = LONG_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def expire(ledger: Ledger, release: Release) -> None:
    wait_for(lambda: ledger.stale(ledger.release(release.release_id)))


@pytest.fixture
def keeper(ledger: Ledger, services: FakeInferenceServices) -> Keeper:
    return Keeper(ledger, Conductor(ledger, services, "keeper"))


def test_a_release_with_a_live_lease_is_left_alone(
    conductor: Conductor, services: FakeInferenceServices, keeper: Keeper
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1")
    writes = services.writes
    for _ in range(3):
        assert keeper.tick() == 1
    assert services.writes == writes
    assert finish(conductor, release).state is ReleaseState.PROMOTED
    assert keeper.tick() == 0


def test_a_release_nobody_advances_is_rolled_back_in_one_look(
    conductor: Conductor, services: FakeInferenceServices, keeper: Keeper, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", lease_seconds=0.2)
    release = finish(conductor, release, CONTINUE, lambda found: found.share == 50)
    expire(ledger, release)
    keeper.tick()
    ended = ledger.release(release.release_id)
    assert (ended.state, ended.reason) == (ReleaseState.ROLLED_BACK, "the lease of flow ran out")
    assert services.weights("default", SERVICE) == {ONE: 100}
    assert conductor.advance(release.release_id, PROMOTE).state is ReleaseState.ROLLED_BACK
    assert ledger.verify() == []


def test_a_release_that_awaits_approval_has_no_lease(
    conductor: Conductor, keeper: Keeper, ledger: Ledger
) -> None:
    promote(conductor, "1")
    asked = begin(conductor, "2", "1", approval="required", lease_seconds=0.001)
    keeper.tick()
    assert ledger.release(asked.release_id).state is ReleaseState.AWAITING_APPROVAL
    conductor.approve(asked.release_id, "ann")
    keeper.tick()
    assert ledger.release(asked.release_id).state is ReleaseState.AWAITING_APPROVAL
    assert finish(conductor, asked).state is ReleaseState.PROMOTED


def test_an_approval_that_comes_too_late_is_rejected(fast_folder: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{fast_folder}/ledger.db", clock)
    services = FakeInferenceServices()
    conductor = Conductor(ledger, services, "flow")
    asked = begin(conductor, "1", approval="required", approval_timeout_seconds=60)
    clock.seconds += 61
    Keeper(ledger, Conductor(ledger, services, "keeper")).tick()
    assert ledger.release(asked.release_id).state is ReleaseState.REJECTED
    ledger.close()


def test_two_keepers_end_a_release_once(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", lease_seconds=0.001)
    keepers = [Keeper(ledger, Conductor(ledger, services, f"keeper-{n}")) for n in range(2)]
    threads = [threading.Thread(target=keeper.tick) for keeper in keepers for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_for(lambda: [keeper.tick() for keeper in keepers] == [0, 0])
    assert kinds(ledger, release).count("rolled_back") == 1
    assert services.weights("default", SERVICE) == {ONE: 100}
    assert ledger.verify() == []


def test_a_clock_set_back_does_not_keep_a_dead_release_alive(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", lease_seconds=60)
    elapsed = [0.0]
    keeper = Keeper(ledger, Conductor(ledger, services, "keeper"), monotonic=lambda: elapsed[0])
    keeper.tick()
    elapsed[0] = 119.0
    keeper.tick()
    assert ledger.release(release.release_id).state is ReleaseState.CANARY
    conductor.advance(release.release_id, CONTINUE)
    elapsed[0] = 200.0
    keeper.tick()  # it was renewed since
    elapsed[0] = 321.0
    keeper.tick()
    ended = ledger.release(release.release_id)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.reason == "flow renewed nothing for 2 leases"


def test_it_takes_over_from_a_keeper_that_died_half_way(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", lease_seconds=0.001)
    services.behaviour[ONE] = "loading"
    Keeper(ledger, Conductor(ledger, services, "keeper-1")).tick()
    half = ledger.release(release.release_id)
    assert (half.state, half.holder) == (ReleaseState.ROLLING_BACK, "keeper-1")
    assert half.safe_at is not None
    services.behaviour[ONE] = "ready"
    services.reconcile()
    Keeper(ledger, Conductor(ledger, services, "keeper-2")).tick()
    assert ledger.release(release.release_id).state is ReleaseState.ROLLED_BACK


def test_it_keeps_going_while_something_does_not_answer() -> None:
    stop = threading.Event()
    calls: list[float] = []

    def tick() -> None:
        calls.append(time.monotonic())
        if len(calls) < 4:
            raise UnavailableError("the ledger is locked")
        stop.set()

    keep(tick, stop, 0.01)
    pauses = [later - earlier for earlier, later in zip(calls, calls[1:], strict=False)]
    assert pauses[2] > pauses[0]  # it backs off


@pytest.fixture
def plane(services: FakeInferenceServices) -> Iterator[ControlPlane]:
    started = ControlPlane(services)
    yield started
    started.stop()


def start(home: Path, plane: ControlPlane, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "rollout.keeper", "--home", str(home)]
    options = ["--kube-url", plane.url, "--interval-seconds", "0.1", *more]
    return subprocess.Popen(
        [*command, *options], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def stopped(process: "subprocess.Popen[str]") -> str:
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    return output


def test_as_a_process_it_rolls_back_a_release_whose_flow_is_gone(
    services: FakeInferenceServices, plane: ControlPlane, fast_folder: Path
) -> None:
    ledger = Ledger(f"sqlite:///{fast_folder}/ledger.db")
    conductor = Conductor(ledger, services, "flow")
    promote(conductor, "1")
    process = start(fast_folder, plane)
    try:
        release = begin(conductor, "2", "1", lease_seconds=1)
        wait_for(lambda: ledger.release(release.release_id).final)
    finally:
        output = stopped(process)
    ended = ledger.release(release.release_id)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.holder.startswith("keeper-")
    assert services.weights("default", SERVICE) == {ONE: 100}
    assert f"{release.release_id} RollBackSafe: canary percent 0" in output
    assert message_of(output.splitlines()[-1]) == "stopped"
    ledger.close()


def test_as_a_process_it_survives_a_control_plane_that_is_away(
    services: FakeInferenceServices, plane: ControlPlane, fast_folder: Path
) -> None:
    ledger = Ledger(f"sqlite:///{fast_folder}/ledger.db")
    promote(Conductor(ledger, services, "flow"), "1")
    plane.failing = 503
    process = start(fast_folder, plane)
    try:
        release = begin(Conductor(ledger, services, "flow"), "2", "1", lease_seconds=0.1)
        wait_for(lambda: ledger.release(release.release_id).holder.startswith("keeper-"))
        wait_for(lambda: plane.refused)
        plane.failing = None
        wait_for(lambda: ledger.release(release.release_id).final)
    finally:
        output = stopped(process)
    assert "out of order" in output
    assert "answer again" in output
    ledger.close()


def test_it_is_light(
    services: FakeInferenceServices, plane: ControlPlane, fast_folder: Path
) -> None:
    code = "import rollout.keeper, sys; print(*sorted(m.split('.')[0] for m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    heavy = {"kubernetes", "prefect", "torch", "mlflow", "pandas", "numpy", "asyncpg", "httpx"}
    assert not heavy & set(done.stdout.split())
    process = start(fast_folder, plane, "--interval-seconds", "1")
    try:
        watched = psutil.Process(process.pid)
        wait_for(lambda: (fast_folder / "ledger.db").exists())
        time.sleep(1)  # start-up is over
        before = watched.cpu_times()
        began = time.monotonic()
        time.sleep(4)
        after = watched.cpu_times()
        used = after.user + after.system - before.user - before.system
        assert used / (time.monotonic() - began) < 0.02
        assert watched.memory_info().rss < 150 << 20
    finally:
        stopped(process)
