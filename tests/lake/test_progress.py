"""Whoever watches an intake is told the rate, the rows and the time left."""

import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from lake_rows import make_rows, plain_check, to_lines

from lake.config import ScaleConfig
from lake.progress import Progress, telling, told
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


def test_parts_tell_how_far_they_are_as_each_is_done(
    lake: Lake, config: IngestConfig, data: Path
) -> None:
    rows = [*make_rows(90), *make_rows(10), {"id": "bad", "text": 5}]
    path = data / "day-1.jsonl"
    path.write_bytes(to_lines(rows))
    scaled = config.model_copy(update={"scale": ScaleConfig(parts=4)})
    seen: list[Progress] = []
    done: list[tuple[str, int]] = []

    def spread(step: Callable[[Any], Any], orders: Sequence[Any]) -> Iterator[Any]:
        for order in orders:
            done.append((step.__name__, len(seen)))
            yield step(order)

    day = list_days(config.data).days[0]
    report = lake.ingest_day(day, scaled, plain_check, watch=seen.append, spread=spread)
    # One part after the other, and each is told before the next one's result is waited for.
    assert [told for _, told in done] == [0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12]
    places = [progress.position for progress in seen]
    assert places == sorted(places)
    assert len(set(places)) == len(places) == 13
    size = path.stat().st_size
    assert places[-1] == seen[-1].size_bytes == size
    assert 0.75 * size < places[3] < 0.9 * size
    assert [progress.rows_in for progress in seen[:4]] == sorted(p.rows_in for p in seen[:4])
    last = seen[-1]
    assert (last.rows_in, last.duplicates, last.quarantined) == (101, 10, 1)
    assert (last.rows_in, last.duplicates, last.quarantined) == (
        report.rows_in, report.duplicates, report.quarantined,
    )  # fmt: skip
    assert last.decoded_bytes == size
    assert "left" in told(seen[0], 1.0)
