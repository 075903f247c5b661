"""Engines are killed, or stopped beyond their lease, at every boundary, under load."""

from collections.abc import Callable

import pytest
from chaos_world import Engine, World

Fate = Callable[[World, Engine, str], bool]
BOUNDARIES_MAX = 200
AT_SOME = (20,)
SOME = pytest.param(AT_SOME, id="some")
ALL = pytest.param(range(1, BOUNDARIES_MAX), id="all", marks=pytest.mark.chaos)
SECONDS_MAX = 3600


def killed(world: World, engine: Engine, name: str) -> bool:
    """Kill an engine where it stopped, and check what comes of it; False when it never stopped."""
    if not engine.stopped():
        return False
    case = world.case(f"{name}, {world.where()}")
    engine.kill()
    case.fault()
    case.done()
    return True


def slept(world: World, engine: Engine, name: str) -> bool:
    """Let an engine sleep until others ended its release, then wake it up."""
    if not engine.stopped():
        return False
    case = world.case(f"{name}, {world.where()}")
    case.done(engine.wake)
    return True


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("boundaries", [SOME, ALL])
def test_an_engine_killed_at_a_boundary_leaves_one_outcome(world: World, boundaries: range) -> None:
    for at in boundaries:
        if not killed(world, world.engine("release", at), f"engine killed at {at}"):
            return


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
def test_an_engine_killed_while_it_rolls_back_leaves_stable(world: World) -> None:
    for at in range(16, BOUNDARIES_MAX):
        engine = world.engine("release", at, decision="rollback")
        if not killed(world, engine, f"engine rolling back killed at {at}"):
            return


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("boundaries", [pytest.param((17,), id="one"), ALL])
def test_an_engine_stopped_beyond_its_lease_cannot_write_when_it_wakes_up(
    world: World, boundaries: range
) -> None:
    for at in boundaries:
        if not slept(world, world.engine("release", at), f"engine stopped at {at}"):
            return


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("fate", [killed, slept])
def test_a_keeper_that_fails_at_a_boundary_is_followed_by_the_next(
    world: World, fate: Fate
) -> None:
    """A keeper that stops itself is the only one until it has failed; then another takes over."""
    for at in range(1, BOUNDARIES_MAX):
        world.machine.kill("keeper")
        engine = world.engine("release", 16)
        assert engine.stopped()
        engine.kill()
        keeper = world.engine("keeper", at)
        stopped = keeper.stopped()
        world.machine.start_keeper()
        word = "killed" if fate is killed else "stopped"
        if not stopped or not fate(world, keeper, f"keeper {word} at {at}"):
            return
