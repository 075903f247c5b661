"""Refused rows are found, corrected by the same contract, and marked, never deleted."""

from pathlib import Path

import pytest
from lake_rows import Row, make_rows, plain_check, to_lines

from core.errors import InputError, NotFoundError
from lake.readmission import quarantined_row, quarantined_rows, readmit
from lake.sources import DayFile, IngestConfig, list_days
from lake.table import Lake


def day_of(path: Path) -> DayFile:
    return list_days(str(path)).days[0]


@pytest.fixture
def ingested(lake: Lake, config: IngestConfig, data: Path) -> Lake:
    rows = make_rows(10)
    rows[2]["text"] = 7
    rows[5]["intent"] = None
    rows[5]["note"] = "write to jo@example.com"
    (data / "day-1.jsonl").write_bytes(to_lines(rows) + b"\xff\xfe broken\n")
    lake.ingest_day(day_of(data / "day-1.jsonl"), config, plain_check)
    return lake


def fixed(tmp_path: Path, rows: list[Row]) -> DayFile:
    path = tmp_path / "fixed-1.jsonl"
    path.write_bytes(to_lines(rows))
    return day_of(path)


def test_a_row_is_shown_with_place_reason_and_scrubbed_text(ingested: Lake) -> None:
    rows = quarantined_rows(ingested)
    assert [row["row"] for row in rows] == [3, 6, 11]
    assert [row["readmitted_at"] for row in rows] == [None] * 3
    found = quarantined_row(ingested, rows[1]["id"])
    assert found == rows[1]
    assert "[EMAIL]" in found["text"]
    undecodable = rows[2]
    assert (undecodable["text"], undecodable["source"]) == ("", "day-1.jsonl")
    assert undecodable["offset"] > 0
    assert undecodable["length"] == len(b"\xff\xfe broken\n")
    assert len(undecodable["digest"]) == 32
    with pytest.raises(NotFoundError, match="no quarantined row"):
        quarantined_row(ingested, "0123456789ab-3")


def test_corrected_rows_come_in_on_their_day_and_are_marked(ingested: Lake, tmp_path: Path) -> None:
    ids = [row["id"] for row in quarantined_rows(ingested)]
    rows = make_rows(10)
    correction = fixed(
        tmp_path,
        [{**rows[2], "quarantine_id": ids[0]}, {**rows[5], "intent": 9, "quarantine_id": ids[1]}],
    )
    done = readmit(ingested, correction, plain_check)
    assert (done.readmitted, done.refused_again, done.report.kept) == ((ids[0],), 1, 1)
    assert done.report.day == "day-1"
    listed = {row["id"]: row["readmitted_at"] for row in quarantined_rows(ingested)}
    assert listed[ids[0]] is not None
    assert listed[ids[1]] is None
    assert len(listed) == 4
    stored = [row for batch in ingested.rows([done.report.version]) for row in batch]
    assert [(row["record_id"], row["day"], row["slice_name"]) for row in stored] == [
        ("r2", "day-1", "known")
    ]
    again = readmit(ingested, correction, plain_check)
    assert again.report.already_ingested
    assert again.readmitted == done.readmitted
    assert len(quarantined_rows(ingested)) == 4


def test_one_row_is_corrected_by_name(ingested: Lake, tmp_path: Path) -> None:
    name = quarantined_rows(ingested)[0]["id"]
    done = readmit(ingested, fixed(tmp_path, make_rows(1, 2)), plain_check, row=name)
    assert done.readmitted == (name,)
    with pytest.raises(InputError, match="has 2 rows"):
        readmit(ingested, fixed(tmp_path, make_rows(2)), plain_check, row=name)


def test_a_whole_file_again_corrects_its_rows_by_their_numbers(
    ingested: Lake, tmp_path: Path
) -> None:
    done = readmit(ingested, fixed(tmp_path, make_rows(11)), plain_check, day="day-1")
    assert (done.report.kept, done.report.duplicates) == (3, 8)
    assert len(done.readmitted) == 3
    assert all(row["readmitted_at"] for row in quarantined_rows(ingested))


def test_a_correction_says_what_it_corrects(ingested: Lake, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="quarantine_id"):
        readmit(ingested, fixed(tmp_path, make_rows(1)), plain_check)
    with pytest.raises(NotFoundError, match="no row of day-9"):
        readmit(ingested, fixed(tmp_path, make_rows(1)), plain_check, day="day-9")
    name = quarantined_rows(ingested)[0]["id"].rpartition("-")[0] + "-1"
    with pytest.raises(NotFoundError, match="row 1 of day-1.jsonl is not in quarantine"):
        readmit(ingested, fixed(tmp_path, make_rows(1)), plain_check, row=name)
    assert len(ingested.versions()) == 1
