"""Whoever watches an intake is told the rate, the rows and the time left."""

import io
from pathlib import Path

from lake_rows import make_rows, plain_check, to_lines

from lake.ingestion import Progress
from lake.progress import telling, told
from lake.sources import IngestConfig, list_days
from lake.table import Lake


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_rate_rows_and_time_left_follow_from_the_progress() -> None:
    half = Progress("day-1.jsonl", 1000, 30, 10, 50_000_000, 5_000_000, 10_000_000)
    assert told(half, 4.0) == "12.5 MB/s  1000 rows  30 duplicates  10 quarantined  4 s left"
    assert "left" not in told(Progress("day-1.jsonl"), 1.0)


def test_a_terminal_shows_a_bar_and_a_small_day_says_nothing_elsewhere(
    lake: Lake, config: IngestConfig, data: Path
) -> None:
    for day in (1, 2):
        (data / f"day-{day}.jsonl").write_bytes(to_lines(make_rows(5, day * 10)))
    terminal, lines = Terminal(), list[str]()
    with telling(terminal) as watch:
        lake.ingest_day(list_days(config.data).days[0], config, plain_check, watch=watch)
    assert "day-1.jsonl" in terminal.getvalue()
    assert "MB/s" in terminal.getvalue()
    with telling(io.StringIO(), lines.append) as watch:
        lake.ingest_day(list_days(config.data).days[1], config, plain_check, watch=watch)
    assert lines == []
