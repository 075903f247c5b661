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


@pytest.fixture(scope="session")
def predictors(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Predictor, Predictor]]:
    """Two predictors for tests that leave them alive."""
    found = World(tmp_path_factory.mktemp("predictors"))
    yield found.predictor("assistant-00001", "1"), found.predictor("assistant-00002", "2")
    found.close()


@pytest.fixture
def stable(predictors: tuple[Predictor, Predictor]) -> Predictor:
    """A calm predictor of version 1."""
    predictors[0].behave()
    return predictors[0]


@pytest.fixture
def canary(predictors: tuple[Predictor, Predictor]) -> Predictor:
    """A calm predictor of version 2."""
    predictors[1].behave()
    return predictors[1]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway with short time-outs, for tests that leave it alive."""
    found = World(tmp_path_factory.mktemp("gateway"))
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
    yield found
    found.close()


@pytest.fixture
def calm(shared: World, stable: Predictor, canary: Predictor) -> tuple[World, Predictor, Predictor]:
    """The shared world with calm predictors and all traffic on stable."""
    shared.route(stable)
    until(lambda: shared.ask().status_code == 200)
    stable.behave()
    return shared, stable, canary
