"""A day taken in by parts: the same rows whatever the number of parts and the order of the work."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lake_rows import Row, plain_check, to_lines

from benchmarks.support.duplicate_texts import Writer
from lake.config import ScaleConfig
from lake.parts import IS_EXACT, IS_NEAR, IS_NEW, Matches
from lake.schema import QUARANTINE, RECORDS
from lake.snapshots import create_snapshot
from lake.sources import DayFile, IngestConfig, list_days
from lake.spreading import Spread, judge_matches
from lake.table import IngestReport, Lake
from tests.spread import in_order


def check(rows: list[Row], now: float) -> Any:
    del now
    return plain_check(rows)


def shuffled(seed: int) -> Spread:
    def spread(step: Callable[[Any], Any], orders: Sequence[Any]) -> list[Any]:
        order = list(range(len(orders)))
        random.Random(seed).shuffle(order)
        done = {place: step(orders[place]) for place in order}
        return [done[place] for place in range(len(orders))]

    return spread


def day_rows(seed: int = 1, count: int = 400) -> list[Row]:
    """Rows with repeats, near repeats, a taken id and bad rows, far from each other."""
    writer = Writer.of("en", seed)
    rows: list[Row] = [
        {"id": f"{seed}-{n}", "text": writer.text(), "intent": "ok", "domain": f"d{n % 3}"}
        for n in range(count)
    ]
    extra = [{**rows[n], "id": f"{seed}-again-{n}"} for n in range(0, count, 20)]
    extra += [
        {**rows[n], "id": f"{seed}-near-{n}", "text": writer.near(rows[n]["text"], 1)}
        for n in range(7, count, 20)
    ]
    bad: list[Row] = [{"id": "bad", "text": 5}, {"nothing": 1}]
    extra += [{**rows[3], "text": writer.text()}, *bad]
    random.Random(seed).shuffle(extra)
    return rows + extra


def write(path: Path, rows: list[Row]) -> None:
    if path.suffix == ".parquet":
        good = [row for row in rows if "text" in row and isinstance(row["text"], str)]
        pq.write_table(pa.Table.from_pylist(good), path, row_group_size=50)
    else:
        path.write_bytes(to_lines(rows))


def take(lake: Lake, config: IngestConfig, parts: int, spread: Spread) -> list[IngestReport]:
    scaled = config.model_copy(update={"scale": ScaleConfig(parts=parts)})
    days: Sequence[DayFile] = list_days(config.data).days
    return [lake.ingest_day(day, scaled, check, spread=spread) for day in days]


def content(lake: Lake, name: str) -> list[str]:
    table = lake.table(name)
    assert table is not None
    rows = table.to_pyarrow_table().to_pylist()
    for row in rows:
        row.pop("quarantined_at", None)
    return sorted(json.dumps(row, sort_keys=True) for row in rows)


@pytest.mark.parametrize("ending", ["jsonl", "parquet", "csv"])
def test_parts_and_their_order_change_nothing(
    tmp_path: Path, data: Path, config: IngestConfig, ending: str
) -> None:
    for day in (1, 2):
        rows = day_rows(day)
        if day == 2:
            rows += day_rows(1)[:60]
        if ending == "csv":
            names = ("id", "text", "intent", "domain")
            lines = [",".join(f'"{row.get(name, "")}"' for name in names) for row in rows]
            (data / f"day-{day}.csv").write_text("\n".join([",".join(names), *lines]))
        else:
            write(data / f"day-{day}.{ending}", rows)
    outcomes = []
    for number, (parts, spread) in enumerate(
        [(1, in_order), (2, shuffled(1)), (4, in_order), (4, shuffled(2)), (7, shuffled(3))]
    ):
        lake = Lake(str(tmp_path / f"lake-{number}"))
        reports = take(lake, config, parts, spread)
        for report in reports:
            assert report.rows_in == report.kept + report.duplicates + report.quarantined
        snapshot = create_snapshot(lake, None, (), tmp_path / f"snapshots-{number}", 5)
        assert snapshot is not None
        figures = [(r.kept, r.duplicates, r.near_duplicates, r.quarantined) for r in reports]
        rows = [content(lake, name) for name in (RECORDS, QUARANTINE)]
        outcomes.append((snapshot.snapshot_id, figures, rows))
        assert not [*(tmp_path / f"lake-{number}" / ".parts").iterdir()]
    assert all(outcome == outcomes[0] for outcome in outcomes)
    first, second = outcomes[0][1]
    assert first[:2] == (400, 40)
    assert 15 <= first[2] <= 20
    assert second[:2] == (400, 100)


def test_the_first_row_of_a_group_stays() -> None:
    matches = [
        Matches(np.array([5]), np.array([1]), np.array([[5, 7], [2, 6]])),
        Matches(np.array([4]), np.array([3]), np.array([[6, 8]])),
    ]
    verdicts = judge_matches(9, matches)
    expected = [IS_NEW] * 9
    expected[5] = expected[4] = IS_EXACT
    expected[7] = expected[6] = expected[8] = IS_NEAR
    assert verdicts.tolist() == expected
    assert judge_matches(9, matches[::-1]).tolist() == expected


def test_parts_agree_with_the_streamed_pass(
    tmp_path: Path, data: Path, config: IngestConfig
) -> None:
    write(data / "day-1.jsonl", day_rows())
    streamed, parted = Lake(str(tmp_path / "streamed")), Lake(str(tmp_path / "parted"))
    day = list_days(config.data).days[0]
    streamed.ingest_day(day, config, check)
    take(parted, config, 3, shuffled(4))
    assert content(streamed, RECORDS) == content(parted, RECORDS)
    assert content(streamed, QUARANTINE) == content(parted, QUARANTINE)


def test_a_failed_part_leaves_nothing_and_the_next_attempt_is_whole(
    lake: Lake, data: Path, config: IngestConfig
) -> None:
    write(data / "day-1.jsonl", day_rows())
    calls = 0

    def failing(step: Callable[[Any], Any], orders: Sequence[Any]) -> list[Any]:
        nonlocal calls
        calls += 1
        if calls == 3:
            step(orders[0])
            raise OSError("the worker is gone")
        return in_order(step, orders)

    with pytest.raises(OSError, match="gone"):
        take(lake, config, 4, failing)
    assert content(lake, RECORDS) == []
    report = take(lake, config, 2, in_order)[0]
    assert (report.kept, report.duplicates, report.quarantined) == (400, 40, 3)
    assert len(content(lake, RECORDS)) == 400
    assert take(lake, config, 2, in_order)[0].already_ingested
