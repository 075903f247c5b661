"""Fixtures of the gateway's tests: worlds of real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from gateway_world import Predictor, World, until


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """An empty world; a test starts what it needs."""
    found = World(tmp_path)
    yield found
    found.close()


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[World, Predictor, Predictor]]:
    """One gateway with short time-outs and two predictors, for tests that leave them alive."""
    found = World(tmp_path_factory.mktemp("gateway"))
    stable, canary = (
        found.predictor("assistant-00001", "1"),
        found.predictor("assistant-00002", "2"),
    )
    found.start_gateway(
        head_seconds_max=0.5,
        body_seconds_max=0.5,
        body_bytes_max=20_000,
        buffer_bytes_max=50_000,
        deadline_seconds=20,
        eject_seconds_first=0.05,
        hold_seconds_max=3,
        seed=5,
    )
    yield found, stable, canary
    found.close()


@pytest.fixture
def calm(
    shared: tuple[World, Predictor, Predictor],
) -> tuple[World, Predictor, Predictor]:
    """The shared world with calm predictors and all traffic on stable."""
    world, stable, canary = shared
    stable.behave()
    canary.behave()
    world.route(stable)
    until(lambda: world.ask().status_code == 200)
    return shared
