"""Everything around the engine is killed at each of its boundaries; keepers and releases race."""

from collections.abc import Callable

import pytest
from chaos_world import IN_FLIGHT_MAX, World

from tests.one_machine import until

SECONDS_MAX = 1800
BOUNDARIES_MAX = 200
LEASE_SECONDS = 30.0
"""Long: what is killed here is never the engine, so nobody takes its release over."""


def kill_control_plane(world: World) -> None:
    world.machine.kill("control plane")
    world.machine.start_control_plane()


def kill_gateway(world: World) -> None:
    world.machine.kill("gateway")
    world.machine.start_gateway()


def kill_keeper(world: World) -> None:
    world.machine.kill("keeper")
    world.machine.start_keeper()


def kill_canary(world: World) -> None:
    world.machine.kill_predictor(f"{world.version:064x}")


def kill_stable(world: World) -> None:
    stable = world.stable_version()
    assert stable is not None
    world.machine.kill_predictor(f"{int(stable):064x}")


VICTIMS: dict[str, tuple[Callable[[World], None], int]] = {
    "control plane": (kill_control_plane, 0),
    "gateway": (kill_gateway, IN_FLIGHT_MAX),
    "keeper": (kill_keeper, 0),
    "canary's predictor": (kill_canary, IN_FLIGHT_MAX),
    "stable's predictor": (kill_stable, IN_FLIGHT_MAX),
}
"""How each process is killed (its supervisor starts it again), and what it may have in hand."""


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("victim", VICTIMS)
def test_a_process_killed_at_each_boundary_of_a_release_in_turn(world: World, victim: str) -> None:
    """One release lives through a kill at every one of its boundaries."""
    kill, lost_max = VICTIMS[victim]
    case = world.case(f"{victim} killed at every boundary")
    engine = world.engine("release", -1, lease_seconds=LEASE_SECONDS)
    kills = 0
    while engine.stopped():
        assert kills < BOUNDARIES_MAX
        kill(world)
        kills += 1
        engine.resume()
    case.allow(kills * lost_max, f"{victim} killed at each of {kills} boundaries")
    case.fault()
    case.done()


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize(
    "victim", [pytest.param("gateway", marks=pytest.mark.chaos), "control plane"]
)
def test_a_process_killed_between_two_steps_loses_only_what_it_had_in_hand(
    world: World, victim: str
) -> None:
    kill, lost_max = VICTIMS[victim]
    engine = world.engine("release", 20, lease_seconds=LEASE_SECONDS)
    assert engine.stopped()
    case = world.case(f"{victim} killed, {world.where()}", lost_max)
    case.fault()
    kill(world)
    engine.wake()
    case.done()


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
def test_engine_and_keeper_killed_together_at_each_boundary(world: World) -> None:
    for at in range(1, BOUNDARIES_MAX):
        engine = world.engine("release", at)
        if not engine.stopped():
            return
        case = world.case(f"engine and keeper killed at {at}, {world.where()}")
        engine.kill()
        world.machine.kill("keeper")
        case.fault()
        world.machine.start_keeper()
        case.done()


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
def test_engine_and_control_plane_killed_together_at_each_boundary(world: World) -> None:
    for at in range(1, BOUNDARIES_MAX):
        engine = world.engine("release", at)
        if not engine.stopped():
            return
        case = world.case(f"engine and control plane killed at {at}, {world.where()}")
        engine.kill()
        kill_control_plane(world)
        case.fault()
        case.done()


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
def test_two_keepers_end_an_abandoned_release_once(world: World) -> None:
    for at in range(1, BOUNDARIES_MAX, 4):
        engine = world.engine("release", at)
        if not engine.stopped():
            return
        case = world.case(f"two keepers, engine killed at {at}, {world.where()}")
        world.machine.start_keeper("second keeper")
        engine.kill()
        case.fault()
        case.done()
        world.machine.kill("second keeper")


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("at", [1, 2])
def test_two_raced_releases_leave_one_version(world: World, at: int) -> None:
    """Both stop before, or just after, they are proposed, and then go on together."""
    case = world.case(f"two releases raced from boundary {at}")
    engines = [world.engine("release", at, lease_seconds=LEASE_SECONDS) for _ in range(2)]
    assert all([engine.stopped() for engine in engines])
    for engine in engines:
        engine.resume()
    until(lambda: all([engine.ended() for engine in engines]), "both engines' end")
    case.fault()
    case.done()


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("at", [3, 4, 6, 9, 20, 30])
def test_a_release_proposed_beside_another_waits_for_it(world: World, at: int) -> None:
    first = world.engine("release", at, lease_seconds=LEASE_SECONDS)
    assert first.stopped()
    case = world.case(f"second release while the first is at {at}, {world.where()}")
    second = world.engine("release", 0, lease_seconds=LEASE_SECONDS)
    version = str(world.version)
    until(
        lambda: world.ledger.releases(limit=1)[0].candidate.model_version == version,
        "the second proposal",
    )
    first.resume()
    until(lambda: first.ended() and second.ended(), "both engines' end")
    case.fault()
    case.done()
