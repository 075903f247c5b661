"""A crash at every boundary between intent, action and record ends in one consistent outcome.

Every scenario is run once; at each boundary (before and after every ledger transaction and every
write to the control plane) what would survive a kill -9 is copied: database and services. From
each copy either the keeper goes on alone, or a new process of the same holder does.
"""

import copy
import shutil
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from boundaries import WatchedLedger, WatchedServices
from release_scenarios import (
    CONTINUE,
    PROMOTE,
    ROLL_BACK,
    SERVICE,
    begin,
    bundle,
    candidate,
    finish,
    plan,
    promote,
)

from core.contracts import CanaryDecision, ReleaseState
from core.errors import RefusedError
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.keeper import Keeper
from rollout.ledger import Ledger
from rollout.release import Release

LEASE = {"lease_seconds": 0.001}
TICKS_MAX = 60


@dataclass(frozen=True)
class Scenario:
    """`prepare` makes the state before, `run` the release under test.

    `serves` are the bundles that may serve alone in the end, {} meaning no service; `resumed` are
    those when the same holder goes on with `decision`.
    """

    name: str
    prepare: Callable[[Conductor], object]
    run: Callable[[Conductor], object]
    serves: list[dict[str, int]]
    decision: CanaryDecision | None = PROMOTE
    behaviour: tuple[tuple[str, str], ...] = ()
    slow: bool = False


def nothing(_: Conductor) -> None:
    return None


def stable(conductor: Conductor) -> None:
    promote(conductor, "1", **LEASE)


def two_stable(conductor: Conductor) -> None:
    stable(conductor)
    promote(conductor, "2", "1", **LEASE)


def after_a_rollback(conductor: Conductor) -> None:
    """The revision that the control plane would go back to is not the version to go back to."""
    two_stable(conductor)
    finish(conductor, begin(conductor, "3", "2", **LEASE), ROLL_BACK)


def promoted(conductor: Conductor) -> Release:
    ended: Release = promote(conductor, "2", "1", **LEASE)
    return ended


def rolled_back_at(share: int) -> Callable[[Conductor], Release]:
    def run(conductor: Conductor) -> Release:
        release = begin(conductor, "2", "1", **LEASE)
        release = finish(conductor, release, CONTINUE, lambda found: found.percent >= share)
        ended: Release = finish(conductor, release, ROLL_BACK)
        return ended

    return run


SHADOWED = {"shares": (0, 50, 100), **LEASE}


def promoted_after_shadowing(conductor: Conductor) -> Release:
    ended: Release = promote(conductor, "2", "1", **SHADOWED)
    return ended


def rolled_back_while_shadowed(conductor: Conductor) -> Release:
    release = begin(conductor, "2", "1", **SHADOWED)
    release = finish(conductor, release, None, lambda found: found.step_started_at is not None)
    ended: Release = finish(conductor, release, ROLL_BACK)
    return ended


def approved(conductor: Conductor) -> Release:
    proposed = conductor.propose(candidate("2", "1"), plan(approval="required", **LEASE))
    release = conductor.start(proposed.release_id)
    conductor.approve(release.release_id, "ann", "good evidence")
    ended: Release = finish(conductor, release)
    return ended


def taken_back(conductor: Conductor) -> Release:
    release = begin(conductor, "2", "1", **LEASE)
    release = finish(conductor, release, CONTINUE, lambda found: found.percent >= 50)
    return conductor.roll_back(release.release_id, "it smells", "ann")


def service_rolled_back(conductor: Conductor) -> Release:
    return conductor.roll_back_service(SERVICE, "ann", "bad answers")


ONE, TWO, THREE = ({bundle(name): 100} for name in "123")
SCENARIOS = [
    Scenario("first", nothing, lambda c: promote(c, "1", **LEASE), [{}, ONE]),
    Scenario(
        "first that fails",
        nothing,
        lambda c: promote(c, "1", **LEASE),
        [{}],
        behaviour=((bundle("1"), "failed"),),
    ),
    Scenario("promoted", stable, promoted, [ONE, TWO]),
    Scenario(
        "canary that fails",
        stable,
        lambda c: finish(c, begin(c, "2", "1", **LEASE)),
        [ONE],
        behaviour=((bundle("2"), "failed"),),
    ),
    Scenario("promoted after shadowing", stable, promoted_after_shadowing, [ONE, TWO]),
    Scenario("rolled back at 0", stable, rolled_back_while_shadowed, [ONE], ROLL_BACK),
    Scenario("rolled back at 5", stable, rolled_back_at(5), [ONE], ROLL_BACK),
    Scenario("rolled back at 50", stable, rolled_back_at(50), [ONE], ROLL_BACK, slow=True),
    Scenario("taken back by an operator", stable, taken_back, [ONE], ROLL_BACK, slow=True),
    Scenario("approved", stable, approved, [ONE, TWO]),
    Scenario("service back, warm", two_stable, service_rolled_back, [ONE, TWO], None),
    Scenario("service back, cold", after_a_rollback, service_rolled_back, [ONE, TWO], None),
    Scenario(
        "service back, to a version that cannot start",
        after_a_rollback,
        service_rolled_back,
        [TWO],
        None,
        behaviour=((bundle("1"), "failed"),),
    ),
]


@dataclass(frozen=True)
class Crash:
    """What survives: a copy of the database, a copy of the services, and where it was taken."""

    path: Path
    services: FakeInferenceServices
    where: str


def crashes(scenario: Scenario, folder: Path) -> list[Crash]:
    """Run the scenario once and copy every distinct state at a boundary."""
    ledger = WatchedLedger(f"sqlite:///{folder}/ledger.db")
    services = WatchedServices(FakeInferenceServices())
    conductor = Conductor(ledger, services, "flow", sleep=lambda _: None)
    scenario.prepare(conductor)
    services.inner.behaviour.update(dict(scenario.behaviour))
    found: dict[str, Crash] = {}

    def boundary() -> None:
        events = ledger.last_events(1)
        last = f"{events[0].seq} {events[0].kind}" if events else "nothing"
        where = f"{last}, {services.inner.writes} writes"
        if where not in found:
            path = folder / f"crash-{len(found)}.db"
            with sqlite3.connect(folder / "ledger.db") as source:
                source.execute("VACUUM INTO ?", (str(path),))
            found[where] = Crash(path, copy.deepcopy(services.inner), where)

    ledger.boundary = boundary
    services.boundary = boundary
    scenario.run(conductor)
    boundary()
    ledger.close()
    return list(found.values())


def check(ledger: Ledger, services: FakeInferenceServices, serves: list[dict[str, int]]) -> None:
    """One consistent outcome: nothing active, settled traffic, an honest ledger, a valid chain."""
    assert ledger.all_active() == []
    weights = services.weights("default", SERVICE)
    assert weights in serves
    body = services.get("default", SERVICE)
    assert body is None or "canaryTrafficPercent" not in body["spec"]["predictor"]
    told = ledger.serving_at(SERVICE, time.time() + 1)
    assert {share.bundle_digest: share.percent for share in told} == weights
    assert ledger.verify() == []
    assert not [event for event in ledger.events() if event.kind == "alarm"]
    stable = ledger.stable(SERVICE)
    assert ({stable.candidate.bundle_digest: 100} if stable else {}) == weights
    for release in ledger.releases(SERVICE):
        assert release.final or release.state is ReleaseState.PROPOSED
        assert release.pending is None or not release.final


def keeper_alone(ledger: Ledger, services: FakeInferenceServices) -> None:
    keeper = Keeper(ledger, Conductor(ledger, services, "keeper"))
    for release, _ in ledger.all_active():
        if release.state is ReleaseState.AWAITING_APPROVAL:
            Conductor(ledger, services, "cli").reject(release.release_id, "bob")
    for _ in range(TICKS_MAX):
        if not keeper.tick():
            break
        time.sleep(0.001)


def same_holder(
    ledger: Ledger, services: FakeInferenceServices, decision: CanaryDecision | None
) -> None:
    conductor = Conductor(ledger, services, "flow")
    for release in [*ledger.waiting(SERVICE), *(item for item, _ in ledger.all_active())]:
        started = conductor.start(release.release_id)
        if started.state is ReleaseState.AWAITING_APPROVAL:
            conductor.approve(started.release_id, "ann", "")
        finish(conductor, started, decision)


@pytest.mark.parametrize(
    "scenario",
    [
        pytest.param(scenario, id=scenario.name, marks=[pytest.mark.slow] * scenario.slow)
        for scenario in SCENARIOS
    ],
)
def test_after_a_crash_at_any_boundary_one_consistent_outcome_remains(
    scenario: Scenario, fast_folder: Path
) -> None:
    found = crashes(scenario, fast_folder)
    assert len(found) > 5
    for crash in found:
        for who in ("keeper", "same holder"):
            path = fast_folder / "copy.db"
            shutil.copy(crash.path, path)
            ledger = Ledger(f"sqlite:///{path}")
            services = copy.deepcopy(crash.services)
            begun = len(services.history)
            try:
                if who == "keeper":
                    keeper_alone(ledger, services)
                else:
                    same_holder(ledger, services, scenario.decision)
                check(ledger, services, scenario.serves)
                going_back = scenario.decision is ROLL_BACK
                assert not going_back or TWO not in services.history[begun:]
            except BaseException as error:
                error.add_note(f"{scenario.name}: crash at {crash.where}, then {who}")
                raise
            finally:
                ledger.close()


class Stopped:
    """A process that is stopped at boundary number `at`; `meanwhile` runs until it is resumed."""

    def __init__(self, at: int, meanwhile: Callable[[], None]) -> None:
        self.at = at
        self.count = 0
        self._meanwhile = meanwhile

    def __call__(self) -> None:
        self.count += 1
        if self.count == self.at:
            self._meanwhile()


@pytest.mark.parametrize(
    ("prepare", "run", "serves"),
    [
        pytest.param(nothing, lambda c: promote(c, "1", **LEASE), [{}, ONE], id="first"),
        pytest.param(stable, promoted, [ONE, TWO], id="promoted"),
        pytest.param(stable, rolled_back_while_shadowed, [ONE], id="rolled back at 0"),
        pytest.param(stable, rolled_back_at(5), [ONE], id="rolled back", marks=pytest.mark.slow),
        pytest.param(
            two_stable, service_rolled_back, [ONE], id="service back", marks=pytest.mark.slow
        ),
    ],
)
def test_a_process_stopped_beyond_its_lease_at_any_boundary_cannot_write_when_it_wakes_up(
    prepare: Callable[[Conductor], object],
    run: Callable[[Conductor], Release],
    serves: list[dict[str, int]],
    fast_folder: Path,
) -> None:
    at = 0
    while True:
        at += 1
        ledger = WatchedLedger(f"sqlite:///{fast_folder}/{at}.db")
        services = WatchedServices(FakeInferenceServices())
        prepare(Conductor(ledger, services, "earlier"))
        quiet = Ledger(f"sqlite:///{fast_folder}/{at}.db")
        after: list[tuple[dict[str, int], int]] = []

        def meanwhile(
            quiet: Ledger = quiet,
            services: WatchedServices[FakeInferenceServices] = services,
            after: list[tuple[dict[str, int], int]] = after,
        ) -> None:
            time.sleep(0.002)
            keeper_alone(quiet, services.inner)
            after.append((services.inner.weights("default", SERVICE), services.inner.writes))

        stopped = Stopped(at, meanwhile)
        ledger.boundary = stopped
        services.boundary = stopped
        try:
            run(Conductor(ledger, services, "flow"))
        except RefusedError:
            assert stopped.count >= at  # taken back meanwhile: there is nothing to go back to
        keeper = Keeper(quiet, Conductor(quiet, services.inner, "keeper-2"))
        keeper.tick()
        try:
            check(quiet, services.inner, serves)
        except AssertionError as error:
            error.add_note(f"stopped at boundary {at}")
            raise
        ledger.close()
        quiet.close()
        if stopped.count < at:
            assert at > 10
            return
