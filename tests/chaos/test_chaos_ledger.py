"""The ledger is locked or full, the clock jumps, or a release is taken back by an operator."""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chaos_world import World, folder_flag

from tests.one_machine import SERVICE, until

SECONDS_MAX = 1800
BOUNDARIES_MAX = 200
BEYOND_LEASE_SECONDS = 3.0
LONG_LEASE_SECONDS = 30.0
HELD_SECONDS = -86_400
"""A share is held this much longer when the clock is set back by it; an operator can end it."""


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the ledger's write lock."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")
        connection.close()


def without_free_pages(path: Path) -> None:
    """Leave no room inside the file: else whole releases fit into pages that were freed before."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=30)
    connection.execute("VACUUM")
    connection.close()


def busy(world: World, seconds: float) -> None:
    """Let some time pass in which requests are sent."""
    goal = time.monotonic() + seconds
    sent = world.load.report().sent
    until(lambda: time.monotonic() > goal and world.load.report().sent > sent, "time")


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("at", [8, 9, 11, 17, 20, 25])
def test_a_locked_ledger_delays_everybody_and_breaks_nothing(world: World, at: int) -> None:
    engine = world.engine("release", at)
    assert engine.stopped()
    case = world.case(f"ledger locked beyond the lease at {at}, {world.where()}")
    with locked(world.machine.home / "ledger.db"):
        engine.resume()
        busy(world, BEYOND_LEASE_SECONDS)
    case.fault()
    until(engine.ended, "the engine's end")
    case.done()


@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize(
    "at", [9, *(pytest.param(at, marks=pytest.mark.chaos) for at in (1, 3, 7, 11, 16, 20, 25))]
)
def test_a_full_disk_under_the_ledger_holds_the_release_where_it_is(world: World, at: int) -> None:
    """The engine's database cannot grow by one page: SQLite says that the disk is full.

    Without an intent on disk no traffic moves; with space again the release goes on.
    """
    engine = world.engine("release", at)
    assert engine.stopped()
    case = world.case(f"disk full for the engine at {at}, {world.where()}")
    log = world.machine.home / "engines.log"
    known = log.stat().st_size
    without_free_pages(world.machine.home / "ledger.db")
    folder_flag(world.machine.home, "full", "")
    try:
        case.fault()
        engine.resume()
        until(lambda: b"disk is full" in log.read_bytes()[known:], "the full disk")
        busy(world, BEYOND_LEASE_SECONDS)
    finally:
        folder_flag(world.machine.home, "full", None)
        until(engine.ended, "the engine's end")
    case.done()


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
@pytest.mark.parametrize("jump_seconds", [HELD_SECONDS, -2, 2, 86_400])
def test_a_jump_of_the_engines_clock_leaves_one_outcome(world: World, jump_seconds: int) -> None:
    for at in (9, 20):
        engine = world.engine("release", at, lease_seconds=LONG_LEASE_SECONDS)
        assert engine.stopped()
        case = world.case(f"clock jumps by {jump_seconds} s at {at}, {world.where()}")
        folder_flag(world.machine.home, "clock", str(jump_seconds))
        try:
            case.fault()
            engine.resume()
            if jump_seconds == HELD_SECONDS:
                operator = world.machine.conductor(world.ledger, f"operator-{at}")
                operator.roll_back_service(SERVICE, "ann", "the clock was set back")
            until(engine.ended, "the engine's end")
            case.done()
        finally:
            folder_flag(world.machine.home, "clock", None)


@pytest.mark.chaos
@pytest.mark.timeout(SECONDS_MAX)
def test_an_operators_rollback_killed_at_a_boundary_is_finished_by_the_keeper(
    world: World,
) -> None:
    for at in range(1, BOUNDARIES_MAX):
        world.promote()
        engine = world.engine("rollback", at, lease_seconds=LONG_LEASE_SECONDS)
        if not engine.stopped():
            return
        case = world.case(f"operator's rollback killed at {at}, {world.where()}")
        engine.kill()
        case.fault()
        case.done()
