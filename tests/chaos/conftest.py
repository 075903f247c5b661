"""One machine per module, under load for its whole life, and the table of all cases."""

from collections.abc import Iterator

import pytest
from chaos_world import ROWS, World

from tests.one_machine import ANSWERING, OneMachine


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A machine that serves version 1, with a keeper, under load."""
    machine = OneMachine(tmp_path_factory.mktemp("chaos"), ANSWERING)
    made = World(machine)
    try:
        made.begin()
        yield made
    finally:
        made.end()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not ROWS:
        return
    terminalreporter.write_sep("-", "chaos")
    line = "{:<58} {:<28} {:>15} {:>15}"
    head = ("case", "outcome", "seconds to safe", "failed requests")
    terminalreporter.write_line(line.format(*head))
    for row in ROWS:
        safe = f"{row.seconds_to_safe:.2f}"
        shown = (row.case, row.outcome, safe, f"{row.failed} of {row.sent}")
        terminalreporter.write_line(line.format(*shown))
