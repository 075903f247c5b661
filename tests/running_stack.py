"""A real stack for tests, its isolated environment, and the command line as a child process."""

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

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
