"""Fixtures for every room: free ports, the repository, shared data, and one real stack."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.environment import silence, stack_environment
from core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
UP_SECONDS_MAX = 240
DOWN_SECONDS_MAX = 90

silence()


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack: its settings, and the environment in which a child process finds it."""

    home: Path
    settings: Settings
    environment: dict[str, str]


@pytest.fixture(scope="session")
def repo_root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public data sets beside the repository; tests are skipped without it."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("needs the folder ../shared/data beside the repository")
    return folder


@pytest.fixture
def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The real stack on free ports, without the worker: started at most once, stopped at the end.

    A test that breaks a part must leave it running again.
    """
    home = tmp_path_factory.mktemp("stack")
    environment = isolated_environment(home)
    try:
        serin("up", "--no-worker", environment=environment, seconds=UP_SECONDS_MAX)
        settings = Settings.read(environment)
        yield Stack(home, settings, {**environment, **stack_environment(settings)})
    finally:
        serin("down", environment=environment, seconds=DOWN_SECONDS_MAX)


def isolated_environment(home: Path) -> dict[str, str]:
    """Return this process's environment with a home of its own and free ports."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SERIN_")}
    ports = {f"SERIN_PORT_{name}": "0" for name in ("GATEWAY", "CONTROL", "MLFLOW", "PREFECT")}
    return {**kept, **ports, "SERIN_HOME": str(home), "SERIN_ALLOW_FAULTS": "1"}


def serin(*arguments: str, environment: dict[str, str], seconds: float) -> str:
    """Run the command line as a child process and return what it printed; fail with its errors."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=seconds,
        check=False,
    )
    assert done.returncode == 0, f"serin {' '.join(arguments)}: {done.stdout}{done.stderr}"
    return done.stdout
