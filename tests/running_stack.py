"""A real stack for tests, its isolated environment, and the command line as a child process."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cli.environment import MEMBER_VARIABLE, stack_environment
from cli.processes import members
from core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
UP_SECONDS_MAX = 240
DOWN_SECONDS_MAX = 90


@dataclass(frozen=True, slots=True)
class Stack:
    """A running stack: its settings, and the environment in which a child process finds it.

    `outgoing` is the file in which every process of it notes an attempt to leave loopback.
    """

    home: Path
    settings: Settings
    environment: dict[str, str]
    outgoing: Path


def isolated_environment(home: Path) -> dict[str, str]:
    """Return this process's environment with a home of its own, free ports and no way outside."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("SERIN_")}
    names = ("GATEWAY", "CONTROL", "MLFLOW", "PREFECT", "PROMETHEUS", "EXPORTER")
    ports = {f"SERIN_PORT_{name}": "0" for name in names}
    paths = [str(ROOT / "tests/cli/offline"), *kept.get("PYTHONPATH", "").split(os.pathsep)]
    return {
        **kept,
        **ports,
        "SERIN_HOME": str(home),
        "SERIN_ALLOW_FAULTS": "1",
        "SERIN_TEST_OUTGOING": str(home / "outgoing.txt"),
        "PYTHONPATH": os.pathsep.join(filter(None, paths)),
    }


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


@contextmanager
def running(
    home: Path, environment: dict[str, str], *options: str
) -> Iterator[tuple[Settings, dict[str, str]]]:
    """A stack brought up with these options: its settings, and the environment that finds it.

    It is brought down at the end; what is left of it then is killed.
    """
    try:
        serin("up", *options, environment=environment, seconds=UP_SECONDS_MAX)
        settings = Settings.read(environment)
        yield settings, {**environment, **stack_environment(settings)}
    finally:
        serin("down", environment=environment, seconds=DOWN_SECONDS_MAX)
        for left in members(MEMBER_VARIABLE, str(home)):
            os.kill(left.pid, signal.SIGKILL)
