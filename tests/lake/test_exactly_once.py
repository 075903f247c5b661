"""A file comes in exactly once, however often the process that takes it in is killed."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lake_rows import MAPPING, make_rows, plain_check, to_lines

from lake.log import batch_name
from lake.schema import QUARANTINE
from lake.snapshots import create_snapshot
from lake.sources import DayFile, FieldMapping, IngestConfig, list_days
from lake.table import Lake

ROOT = Path(__file__).resolve().parents[2]
SMALL_BATCHES = {"batch_bytes_max": 1 << 16, "commit_bytes": 1 << 16, "batch_rows": 100}
PROGRAM = """
import os, signal, sys
sys.path[:0] = [{tests!r}, {root!r}]
from lake_rows import MAPPING, plain_check
from lake.sources import IngestConfig, list_days
from lake.table import Lake

reached = dict()

def reach(point):
    reached[point] = reached.get(point, 0) + 1
    if (point, reached[point]) == ({point!r}, {number!r}):
        os.kill(os.getpid(), signal.SIGKILL)

def check(rows, now_seconds):
    reach("check")
    return plain_check(rows, now_seconds)

class Killed(Lake):
    def commit(self, name, *rest):
        reach("before " + name)
        super().commit(name, *rest)
        reach("after " + name)

config = IngestConfig(data="x", mapping=MAPPING, **{options!r})
day_file = list_days({path!r}).days[0]
Killed({lake!r}).ingest_day(day_file, config, check, watch=lambda _: reach("watch"))
"""


def program(lake: Lake, path: Path, point: str = "", number: int = 0) -> list[str]:
    code = PROGRAM.format(
        tests=str(Path(__file__).parent), root=str(ROOT), lake=lake.uri, path=str(path),
        point=point, number=number, options=SMALL_BATCHES,
    )  # fmt: skip
    return [sys.executable, "-c", code]


def day_of(path: Path) -> DayFile:
    return list_days(str(path)).days[0]


def stored(lake: Lake) -> set[tuple[Any, ...]]:
    versions = [entry.version for entry in lake.versions()]
    rows = [row for batch in lake.rows(versions) for row in batch]
    found = {(row["record_id"], row["row"], row["prompt"]) for row in rows}
    assert len(found) == len(rows)
    return found


def refused(lake: Lake) -> list[tuple[int, str]]:
    rows = [
        (row["row"], row["reason"])
        for batch in lake.columns(["row", "reason"], name=QUARANTINE)
        for row in batch.to_pylist()
    ]
    return sorted(rows)


@pytest.fixture
def large(data: Path) -> Path:
    """A file of several batches, with bad rows and duplicates across them."""
    lines = to_lines(make_rows(2000)).splitlines(keepends=True)
    for place in range(0, 2000, 97):
        lines.insert(place, b"not json %d\n" % place)
    lines += to_lines(make_rows(50, 300)).splitlines(keepends=True)
    lines += to_lines(make_rows(1, 7, text="another")).splitlines(keepends=True)
    path = data / "day-1.jsonl"
    path.write_bytes(b"".join(lines))
    return path


@pytest.mark.parametrize(
    ("point", "number"),
    [
        ("check", 9),
        ("before quarantine", 1),  # staged in the index, in no table yet
        ("before records", 2),  # in quarantine, not in records
        ("after records", 2),  # committed, not yet told to the index
        ("watch", 12),  # told to the index, the next batch begun
    ],
)
def test_killed_and_run_again_it_comes_to_the_same_rows(
    lake: Lake, tmp_path: Path, large: Path, point: str, number: int
) -> None:
    config = IngestConfig(data="x", mapping=MAPPING, **SMALL_BATCHES)
    straight = Lake(str(tmp_path / "straight"))
    expected = straight.ingest_day(day_of(large), config, plain_check)
    done = subprocess.run(
        program(lake, large, point, number), check=False, cwd=ROOT, capture_output=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert lake.versions() == []
    assert stored(lake) == set()
    assert create_snapshot(lake, None, (), tmp_path / "snapshots", 1) is None
    report = lake.ingest_day(day_of(large), config, plain_check)
    assert report.rows_in == report.kept + report.duplicates + report.quarantined == 2072
    assert (report.kept, report.duplicates, report.quarantined) == (2000, 50, 22)
    assert (report.kept, report.duplicates) == (expected.kept, expected.duplicates)
    assert stored(lake) == stored(straight)
    assert refused(lake) == refused(straight)
    assert lake.ingest_day(day_of(large), config, plain_check).already_ingested
    assert len(lake.versions()) == 1


def test_a_half_goes_on_after_its_last_batch(lake: Lake, large: Path) -> None:
    subprocess.run(program(lake, large, "after records", 3), check=False, cwd=ROOT)
    lines: list[int] = []

    def check(rows: list[dict[str, Any]], now_seconds: float) -> Any:
        lines.append(len(rows))
        return plain_check(rows, now_seconds)

    config = IngestConfig(data="x", mapping=MAPPING, **SMALL_BATCHES)
    report = lake.ingest_day(day_of(large), config, check)
    assert report.rows_in == 2072
    assert 0 < sum(lines) < 1200


def test_a_half_that_another_file_overtakes_is_removed_and_comes_in_whole_later(
    lake: Lake, data: Path, large: Path
) -> None:
    subprocess.run(program(lake, large, "after records", 2), check=False, cwd=ROOT)
    other = data / "day-2.jsonl"
    other.write_bytes(to_lines(make_rows(400)))
    config = IngestConfig(data="x", mapping=MAPPING, **SMALL_BATCHES)
    assert lake.ingest_day(day_of(other), config, plain_check).kept == 400
    report = lake.ingest_day(day_of(large), config, plain_check)
    assert (report.kept, report.duplicates, report.quarantined) == (1601, 450, 21)
    assert len(refused(lake)) == 21


def test_a_half_under_other_settings_starts_anew(lake: Lake, large: Path) -> None:
    subprocess.run(program(lake, large, "after records", 2), check=False, cwd=ROOT)
    mapping = FieldMapping(prompt="text", response="intent", slice_name="intent")
    config = IngestConfig(data="x", mapping=mapping, **SMALL_BATCHES)
    report = lake.ingest_day(day_of(large), config, plain_check)
    assert (report.kept, report.duplicates, report.quarantined) == (2000, 50, 22)
    assert len(stored(lake)) == 2000
    assert set(lake.statistics().rows_by_slice) == {"label_0", "label_1", "label_2"}


def test_each_batch_is_an_application_transaction_of_both_tables(lake: Lake, large: Path) -> None:
    config = IngestConfig(data="x", mapping=MAPPING, **SMALL_BATCHES)
    lake.ingest_day(day_of(large), config, plain_check)
    digest = lake.versions()[0].file_digest
    for name in ("records", QUARANTINE):
        table = lake.table(name)
        assert table is not None
        found = [table.transaction_version(batch_name(digest, 0, index)) for index in range(4)]
        assert None not in found
        assert len(set(found)) == 1


def test_several_processes_come_to_the_same_rows(lake: Lake, tmp_path: Path, data: Path) -> None:
    path = data / "day-1.jsonl"
    padded = make_rows(4000, note="x" * 9000)
    path.write_bytes(to_lines(padded) + b"broken\n" + to_lines(padded[:10]))
    config = IngestConfig(data="x", mapping=MAPPING)
    straight = Lake(str(tmp_path / "straight"))
    expected = straight.ingest_day(day_of(path), config, plain_check)
    several = config.model_copy(update={"processes": 2})
    assert lake.ingest_day(day_of(path), several, plain_check) == expected
    assert (expected.kept, expected.duplicates, expected.quarantined) == (4000, 10, 1)
    assert stored(lake) == stored(straight)


def test_a_lost_index_is_made_anew_from_the_lake(lake: Lake, data: Path, large: Path) -> None:
    config = IngestConfig(data="x", mapping=MAPPING, **SMALL_BATCHES)
    lake.ingest_day(day_of(large), config, plain_check)
    for path in sorted((Path(lake.uri) / "duplicates").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    other = data / "day-2.jsonl"
    other.write_bytes(to_lines(make_rows(100, 1950)))
    report = lake.ingest_day(day_of(other), config, plain_check)
    assert (report.kept, report.duplicates) == (50, 50)


def test_two_processes_with_the_same_file_take_it_in_once(lake: Lake, large: Path) -> None:
    both = [subprocess.Popen(program(lake, large), cwd=ROOT) for _ in range(2)]
    assert [process.wait() for process in both] == [0, 0]
    assert [entry.kept for entry in lake.versions()] == [2000]
