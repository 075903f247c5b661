"""Fixtures of the one-machine control plane: as a process, and as a simulation of its plans."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.serving.local.local_plane import (
        ALL_SERVICES,
        HTTP,
        SERVICES,
        ControlPlane,
        Planes,
        WaitFor,
        end_all,
        finish,
        wait,
    )
    from tests.serving.local.local_simulation import Simulation
else:
    from local_plane import (
        ALL_SERVICES,
        HTTP,
        SERVICES,
        ControlPlane,
        Planes,
        WaitFor,
        end_all,
        finish,
        wait,
    )
    from local_simulation import Simulation


@pytest.fixture
def wait_for() -> WaitFor:
    return wait


@pytest.fixture
def planes(tmp_path: Path) -> Iterator[Planes]:
    """Make control planes, each on a home of its own; nothing is left running."""
    made: list[ControlPlane] = []

    def make(name: str = "home", **options: Any) -> ControlPlane:
        plane = ControlPlane(tmp_path / name, **options)
        made.append(plane)
        return plane

    yield make
    for plane in made:
        finish(plane)


@pytest.fixture
def own_plane(planes: Planes) -> ControlPlane:
    """Return a running control plane that the test may kill."""
    made = planes()
    made.start()
    return made


@pytest.fixture(scope="session")
def running_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    made = ControlPlane(tmp_path_factory.mktemp("shared") / "home")
    made.start()
    yield made
    finish(made)


@pytest.fixture
def plane(running_plane: ControlPlane) -> Iterator[ControlPlane]:
    """Return the session's control plane, without a service; it must be left running."""
    yield running_plane
    for found in HTTP.get(running_plane.url + ALL_SERVICES).json()["items"]:
        metadata = found["metadata"]
        path = SERVICES.replace("default", metadata["namespace"])
        HTTP.delete(f"{running_plane.url}{path}/{metadata['name']}")
    end_all(running_plane.home)
    wait(lambda: not running_plane.entries(), "the end of every predictor")
    for folder in ("logs", "standin"):
        for file in (running_plane.home / folder).glob("*"):
            file.unlink()


@pytest.fixture
def simulation(tmp_path: Path) -> Simulation:
    return Simulation(tmp_path)
