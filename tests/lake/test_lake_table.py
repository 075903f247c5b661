"""One day file is one commit, all of it or nothing, and every row is accounted for."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lake_rows import MAPPING, Row, make_rows, plain_check, to_lines

from core.contracts import Rejection
from core.errors import InputError, IntegrityError, RefusedError
from lake.schema import migrate_lake
from lake.sources import DayFile, IngestConfig, list_days
from lake.table import IngestReport, Lake

WriteDay = Callable[[int, list[Row]], Path]
ROOT = Path(__file__).resolve().parents[2]


def day_of(path: Path) -> DayFile:
    return list_days(str(path)).days[0]


def stored(lake: Lake) -> list[dict[str, Any]]:
    versions = [entry.version for entry in lake.versions()]
    return [dict(row) for batch in lake.rows(versions) for row in batch]


def test_a_day_is_one_version_and_every_row_is_stored(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    assert lake.head_version() is None
    first = lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    second = lake.ingest_day(day_of(write_day(2, make_rows(10, 20))), config, plain_check)
    assert first == IngestReport("day-1", 20, 20, 0, 0, False, 1)
    assert second.version == lake.head_version() == 2
    row = sorted(stored(lake), key=lambda row: (row["day"], row["row"]))[0]
    assert (row["record_id"], row["prompt"], row["response"]) == (
        "r0",
        "question number 0",
        "label_0",
    )
    assert (row["day"], row["slice_name"], row["language"]) == ("day-1", "known", "en")
    assert (row["source"], row["row"]) == ("day-1.jsonl", 1)


def test_the_same_file_twice_adds_nothing(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    day_file = day_of(write_day(1, make_rows(20)))
    first = lake.ingest_day(day_file, config, plain_check)
    again = lake.ingest_day(day_file, config, plain_check)
    renamed = day_of(write_day(9, make_rows(20)))
    assert again.already_ingested
    assert (again.rows_in, again.version) == (first.rows_in, first.version)
    assert lake.ingest_day(renamed, config, plain_check).already_ingested
    assert lake.head_version() == 1
    assert len(stored(lake)) == 20


def test_rows_that_another_file_already_brought_are_duplicates(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    longer = [{**row, "id": f"new-{row['id']}"} for row in make_rows(25)] + make_rows(1)
    report = lake.ingest_day(day_of(write_day(2, longer)), config, plain_check)
    assert (report.rows_in, report.kept, report.duplicates) == (26, 5, 21)
    assert len(stored(lake)) == 25


def test_a_flagged_day_does_not_make_its_corrected_rows_duplicates(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    bad = lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    corrected = make_rows(20)
    corrected[0]["intent"] = "label_2"
    report = lake.ingest_day(day_of(write_day(2, corrected)), config, plain_check, [bad.version])
    assert (report.kept, report.duplicates) == (20, 0)


def test_a_day_without_any_new_row_is_a_version_too(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    day_file = day_of(write_day(2, make_rows(10)))
    assert lake.ingest_day(day_file, config, plain_check).kept == 0
    assert lake.ingest_day(day_file, config, plain_check).already_ingested
    assert [entry.duplicates for entry in lake.versions()] == [0, 10]


def test_bad_rows_are_quarantined_with_reason_position_and_scrubbed_text(
    lake: Lake, config: IngestConfig, data: Path
) -> None:
    rows = make_rows(6)
    rows[2]["text"] = 7
    rows[2]["note"] = "mail jo@example.com"
    path = data / "day-1.jsonl"
    path.write_bytes(to_lines(rows) + b'{"text": "call 13800138000\n\xff\xfe jo@example.com\n')
    report = lake.ingest_day(day_of(path), config, plain_check)
    assert (report.rows_in, report.kept, report.quarantined) == (8, 5, 3)
    found = lake.quarantined(day="day-1")
    assert [(row["row"], row["reason"].split(":")[0]) for row in found] == [
        (3, "not text"),
        (7, "the row is not JSON"),
        (8, "the row is not UTF-8"),
    ]
    assert "[EMAIL]" in found[0]["text"]
    assert "[PHONE]" in found[1]["text"]
    assert (found[2]["text"], found[2]["offset"] > 0, len(found[2]["digest"])) == ("", True, 32)
    assert lake.quarantined(reason="UTF-8") == [found[2]]
    on_disk = b"".join(p.read_bytes() for p in Path(lake.uri).rglob("*") if p.is_file())
    assert b"jo@example.com" not in on_disk
    assert b"13800138000" not in on_disk


def test_one_id_with_two_contents_in_a_file_is_quarantined(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    rows = make_rows(10)
    rows[9]["id"] = "r0"
    report = lake.ingest_day(day_of(write_day(1, rows)), config, plain_check)
    assert (report.kept, report.quarantined) == (9, 1)
    assert "another content" in lake.quarantined()[0]["reason"]


def test_a_wrong_mapping_is_an_error_on_the_first_day_only(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    other = [{"query": "x", "answer": "y"}] * 3
    with pytest.raises(InputError, match="it has answer, query"):
        lake.ingest_day(day_of(write_day(1, other)), config, plain_check)
    assert lake.versions() == []
    lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    assert lake.ingest_day(day_of(write_day(2, other)), config, plain_check).quarantined == 3


def test_a_file_that_changes_while_it_is_read_is_not_taken_in(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    path = write_day(1, make_rows(20))

    def check(rows: list[Row], now_seconds: float) -> list[Rejection]:
        with path.open("ab") as file:
            file.write(to_lines(make_rows(1, 500)))
        found: list[Rejection] = plain_check(rows)
        return found

    with pytest.raises(InputError, match="changed while it was read"):
        lake.ingest_day(day_of(path), config, check)
    assert lake.versions() == []


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.binary(min_size=1, max_size=40), max_size=30))
def test_any_bytes_are_accounted_for(tmp_path: Path, lines: list[bytes]) -> None:
    path = tmp_path / "day-1.jsonl"
    path.write_bytes(to_lines(make_rows(3)) + b"\n".join(lines))
    lake = Lake(str(tmp_path / os.urandom(8).hex()))
    config = IngestConfig(data=str(path), mapping=MAPPING, batch_rows=4)
    report = lake.ingest_day(day_of(path), config, plain_check)
    assert report.rows_in == report.kept + report.duplicates + report.quarantined
    assert report.kept >= 3
    assert len(stored(lake)) == report.kept


def test_statistics_count_rows_versions_and_reasons(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    assert lake.statistics().rows == 0
    lake.ingest_day(day_of(write_day(1, [*make_rows(40), {"id": 1}])), config, plain_check)
    lake.ingest_day(day_of(write_day(2, make_rows(5, 90, domain="other"))), config, plain_check)
    found = lake.statistics()
    assert (found.rows, found.versions, found.head_version) == (45, 2, 2)
    assert found.rows_by_slice == {"known": 40, "other": 5}
    assert found.quarantined_by_reason == {"not text": 1}
    assert 0 < found.held_out_rows < 15
    assert found.days == ("day-1", "day-2")


def test_retention_removes_only_what_no_version_needs(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    lake.ingest_day(day_of(write_day(1, make_rows(20))), config, plain_check)
    orphan = Path(lake.address()) / "part-00000-left-over.zstd.parquet"
    orphan.write_bytes(b"interrupted")
    plan = lake.retention(hours=0)
    assert [Path(name).name for name in plan.files["records"]] == [orphan.name]
    assert orphan.exists()
    lake.retention(hours=0, dry_run=False)
    assert not orphan.exists()
    assert len(stored(lake)) == 20


def test_a_lake_of_another_schema_is_refused_until_it_is_migrated(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    day_file = day_of(write_day(1, make_rows(20)))
    lake.ingest_day(day_file, config, plain_check)
    taken: list[int] = []
    assert migrate_lake(lake.uri, steps={1: lambda uri, options: taken.append(1)}, target=2) == 1
    assert taken == [1]
    copies = list(Path(lake.uri).glob("backup-schema-1-*/records/_delta_log/*.json"))
    assert len(copies) == 2
    with pytest.raises(RefusedError, match="newer than this program"):
        lake.ingest_day(day_file, config, plain_check)
    with pytest.raises(RefusedError, match="use the newer program"):
        migrate_lake(lake.uri)


def test_a_current_or_missing_lake_needs_no_migration(tmp_path: Path) -> None:
    assert migrate_lake(str(tmp_path / "none")) == 1


def test_a_delta_table_of_somebody_else_is_not_written_to(
    lake: Lake, config: IngestConfig, write_day: WriteDay
) -> None:
    import pyarrow as pa

    DeltaTable.create(lake.address(), schema=pa.schema([("x", pa.string())]))
    with pytest.raises(IntegrityError, match="no table of this lake"):
        lake.ingest_day(day_of(write_day(1, make_rows(3))), config, plain_check)
