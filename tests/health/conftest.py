"""One machine for all drills of a session, and the table of what they took."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from health_world import DRILL, HealthWorld


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[HealthWorld]:
    """Two released versions under load, real predictors with the fault switch."""
    made = HealthWorld(tmp_path_factory.mktemp("health"), bundle)
    try:
        made.begin()
        yield made
    finally:
        made.end()


@pytest.fixture(autouse=True)
def no_faults_left(world: HealthWorld) -> Iterator[None]:
    """What a test has broken is whole again for the next one, however it ended."""
    yield
    for file in (world.home / "control" / "faults").glob("*.json"):
        file.unlink()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not DRILL:
        return
    terminalreporter.write_sep("-", "health")
    line = "{:<17} {:<47} {:<16} {:>17} {:>18} {:>14}"
    head = ("row", "fault", "recovery", "seconds to detect", "seconds to recover", "client errors")
    terminalreporter.write_line(line.format(*head))
    for row in DRILL:
        recover = row.seconds_to_recover
        seconds = f"{row.seconds_to_detect:.1f}", "-" if recover is None else f"{recover:.1f}"
        errors = f"{row.failed} of {row.sent}"
        terminalreporter.write_line(line.format(row.row, row.fault, row.recovery, *seconds, errors))
