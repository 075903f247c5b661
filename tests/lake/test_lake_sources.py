"""Which files are days, and rows that come whatever the bytes are."""

import gzip
import json
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from core.errors import InputError, NotFoundError
from lake.sources import DayFile, IngestConfig, RawRow, day_blocks, list_days

ROWS = [{"text": f"question {index}", "intent": "a"} for index in range(10)]
LINES = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)


def read(path: Path, **options: Any) -> list[RawRow]:
    day_file = list_days(str(path)).days[0]
    config = IngestConfig(data=str(path), **options)
    return decoded(day_file, config)


def decoded(day_file: DayFile, config: IngestConfig) -> list[RawRow]:
    """Return a file's rows, numbered through."""
    rows: list[RawRow] = []
    for block in day_blocks(day_file, config):
        before = len(rows)
        rows += block.decoded(config.row_bytes_max)
        for row in rows[before:]:
            row.row += before
    return rows


def names(folder: Path | str, **options: Any) -> list[str]:
    return [day.name for day in list_days(str(folder), **options).days]


def test_days_come_in_name_order_with_numbers_as_numbers(data: Path) -> None:
    for name in ("day-10.jsonl", "day-2.csv", "day-1.jsonl.gz", ".hidden.jsonl", "notes.txt"):
        (data / name).write_bytes(b"x\n")
    listing = list_days(str(data))
    assert [day.day for day in listing.days] == ["day-1", "day-2", "day-10"]
    assert listing.left_out == ("notes.txt (not a data file)",)


def test_files_without_number_are_no_days_beside_numbered_ones(data: Path) -> None:
    for name in ("2026-03-01.jsonl", "2026-03-02.jsonl", "eval.jsonl", "out_of_scope.jsonl"):
        (data / name).write_bytes(LINES)
    listing = list_days(str(data), excluded=[str(data / "eval.jsonl")])
    assert [day.day for day in listing.days] == ["2026-03-01", "2026-03-02"]
    assert listing.left_out == (
        "eval.jsonl (given for another purpose)",
        "out_of_scope.jsonl (no number or date in its name)",
    )


def test_files_without_any_number_are_all_days(data: Path) -> None:
    for name in ("monday.jsonl", "friday.jsonl"):
        (data / name).write_bytes(LINES)
    assert names(data) == ["friday.jsonl", "monday.jsonl"]
    assert names(data, pattern="mon*") == ["monday.jsonl"]


def test_same_stem_twice_gives_two_days(data: Path) -> None:
    for name in ("day-1.jsonl", "day-1.csv"):
        (data / name).write_bytes(LINES)
    assert [day.day for day in list_days(str(data)).days] == ["day-1.csv", "day-1.jsonl"]


def test_a_glob_gives_the_days_of_several_folders(data: Path) -> None:
    for folder in ("2026-10", "2026-9"):
        (data / folder).mkdir()
        (data / folder / "chat.jsonl.zst").write_bytes(zstandard.compress(LINES))
        (data / folder / "notes.txt").write_bytes(b"x")
    listing = list_days(f"{data}/2026-*/*")
    assert [day.day for day in listing.days] == ["2026-9-chat", "2026-10-chat"]
    assert listing.left_out == ("notes.txt (not a data file)",) * 2
    assert [row.value for row in decoded(listing.days[0], IngestConfig(data="x"))] == ROWS
    with pytest.raises(NotFoundError, match="no data"):
        list_days(f"{data}/2027-*/*")


def test_missing_folder_and_empty_folder_are_told_apart(data: Path) -> None:
    with pytest.raises(NotFoundError, match="no data"):
        list_days(str(data / "nowhere"))
    with pytest.raises(InputError, match="no daily file"):
        list_days(str(data))
    with pytest.raises(InputError, match="is refused"):
        list_days("nosuchscheme://bucket/x")


def test_any_fsspec_url_is_read_like_a_path() -> None:
    system = fsspec.filesystem("memory")
    system.pipe("/feed/day-1.jsonl", LINES)
    day_file = list_days("memory://feed").days[0]
    rows = decoded(day_file, IngestConfig(data="memory://feed"))
    assert [row.value for row in rows] == ROWS


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst", "d.csv", "d.csv.gz", "d.csv.zst", "d.parquet"]
)
def test_every_format_gives_the_same_rows(data: Path, name: str) -> None:
    content = LINES
    if ".csv" in name:
        content = b"text,intent\r\n" + b"".join(b'"%s",a\r\n' % r["text"].encode() for r in ROWS)
    if name.endswith(".parquet"):
        pq.write_table(pa.Table.from_pylist(ROWS), data / name)
    else:
        pack: Any = {".gz": gzip.compress, ".zst": zstandard.compress}.get(Path(name).suffix, bytes)
        (data / name).write_bytes(pack(content))
    rows = read(data / name)
    assert [row.value for row in rows] == ROWS
    assert [row.row for row in rows] == list(range(1, 11))


def test_blocks_are_bounded_by_rows_and_by_bytes(data: Path) -> None:
    path = data / "day-1.jsonl"
    path.write_bytes(LINES)

    def sizes(**limits: int) -> list[int]:
        config = IngestConfig(data="x", **limits)
        blocks = day_blocks(list_days(str(path)).days[0], config)
        return [len(block.decoded(config.row_bytes_max)) for block in blocks]

    assert sizes(batch_rows=4) == [4, 4, 2]
    path.write_bytes(b"".join(b'{"text": "%s"}\n' % (b"x" * 30_000) for _ in range(6)))
    assert sizes(batch_bytes_max=1 << 16) == [2, 2, 2]
    path.write_bytes(b"".join(b'{"text": "%s"}\n' % (b"x" * 300_000) for _ in range(3)))
    assert sizes(batch_bytes_max=1 << 16) == [1, 1, 1]


def test_bad_lines_are_rows_with_position_and_reason(data: Path) -> None:
    bad = [
        b'{"text": "cut of',
        b"\xff\xfe\x00 no text",
        b'{"text": "\x93quoted\x94"}',
        b"[1, 2]",
        b"null",
        b'{"text": NaN}',
        b'{"text": "' + b"x" * 5000 + b'"}',
        b'{"a":' * 5000,
        b'{"text": "\\ud800"}',
    ]
    (data / "d.jsonl").write_bytes(b"\n".join([LINES.strip(), *bad, b"", LINES.strip()]))
    rows = read(data / "d.jsonl", row_bytes_max=2048)
    refused = [row for row in rows if row.value is None]
    assert len(rows) == 2 * len(ROWS) + len(bad)
    assert len(refused) == len(bad)
    assert [row.row for row in refused] == list(range(11, 11 + len(bad)))
    assert refused[0].offset == len(LINES)
    assert refused[1].reason == refused[2].reason == "the row is not UTF-8"
    assert refused[1].text == ""
    assert refused[1].digest
    assert refused[6].reason == "the row is longer than 2048 bytes"
    assert refused[6].length == len(bad[6]) + 1
    assert refused[3].reason == "the row is not a JSON object"


def test_rows_before_the_end_of_a_truncated_gzip_are_kept(data: Path) -> None:
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, str(i * 7919).encode()) for i in range(5000))
    whole = gzip.compress(lines)
    (data / "d.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    rows = read(data / "d.jsonl.gz")
    assert len(rows) > 1000
    assert all(row.value is not None for row in rows[:-2])
    assert "compressed file is broken" in rows[-1].reason


def test_byte_order_mark_is_no_part_of_the_first_row(data: Path) -> None:
    (data / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + LINES)
    (data / "b.csv").write_bytes(b"\xef\xbb\xbftext;intent\nhi;a\n")
    assert read(data / "a.jsonl")[0].value == ROWS[0]
    assert read(data / "b.csv")[0].value == {"text": "hi", "intent": "a"}


def test_csv_rows_with_wrong_columns_or_bytes_are_refused_alone(data: Path) -> None:
    lines = [
        b"text,intent",
        b'"two\nlines, one row",a',
        b"too,many,cells",
        b"not \xff utf8,a",
        b"x" * 4000 + b",a",
        b"nul \x00 inside,a",
        b"fine,a",
    ]
    (data / "d.csv").write_bytes(b"\n".join(lines) + b"\n")
    rows = read(data / "d.csv", row_bytes_max=2048)
    assert [row.reason for row in rows] == [
        "",
        "the row has 3 columns, the header 2",
        "the row is not UTF-8",
        "the row is longer than 2048 bytes",
        "",
        "",
    ]
    assert rows[0].value == {"text": "two\nlines, one row", "intent": "a"}
    assert rows[-1].value == {"text": "fine", "intent": "a"}
    assert rows[1].offset == len(lines[0]) + len(lines[1]) + 2


def test_a_broken_parquet_file_is_one_refused_row(data: Path) -> None:
    (data / "d.parquet").write_bytes(b"PAR1 this is not parquet PAR1")
    rows = read(data / "d.parquet")
    assert len(rows) == 1
    assert "Parquet file is broken" in rows[0].reason
