"""Whatever a day file holds: bad rows go to quarantine with reason and place, good ones land."""

import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from lake_rows import MAPPING, make_rows, to_lines

from lake.sources import IngestConfig, list_days
from lake.table import Lake
from validation.records import check_rows, describe

GOOD = make_rows(6)
MEGABYTE = 1 << 20
SAME_TWICE = ("user", "user", "assistant")


def line(**changes: Any) -> bytes:
    return json.dumps({**make_rows(1, 900)[0], **changes}, ensure_ascii=False).encode() + b"\n"


HOSTILE: dict[str, tuple[bytes, str]] = {
    "cut off": (line()[:40] + b"\n", "the row is not JSON"),
    "latin-1 among UTF-8": (
        line(text="caf\u00e9").decode().encode("latin-1"), "the row is not UTF-8",
    ),
    "UTF-16": ("no UTF-8".encode("utf-16") + b"\n", "the row is not UTF-8"),
    "null": (b"null\n", "the row is not a JSON object"),
    "null text": (line(text=None), "the prompt is missing or not text"),
    "null answer": (line(intent=None), "the response is missing or not text"),
    "empty answer": (line(intent="  "), "the response is empty"),
    "50 MB": (line(text="x" * (50 * MEGABYTE)), "the row is longer than 1048576 bytes"),
    "long text": (line(text="word " * 5000), "the prompt is longer than 20000 characters"),
    "nested deeply": (b'{"text":' * 100_000 + b"\n", "the row is nested too deeply"),
    "nested list": (line(text=[[[["deep"]]]]), "the prompt is missing or not text"),
    "number for text": (line(text=12), "the prompt is missing or not text"),
    "text for messages": (b'{"messages": "none", "id": "m", "domain": "d"}\n', "the turns are not"),
    "same role twice": (
        json.dumps({"messages": [{"role": role, "content": "c"} for role in SAME_TWICE],
                    "id": "m", "domain": "d"}).encode() + b"\n",
        "the turns are not user and assistant in turn",
    ),
    "NUL in JSON": (b'{"text": "a\0b"}\n', "the row is not JSON"),
    "NUL in text": (line(text="a\0b"), "the text holds NUL characters"),
    "byte order mark in the middle": (b"\xef\xbb\xbf" + line(), "the row is not JSON"),
    "replacement characters": (line(text="\ufffd\ufffd?"), "the text was decoded wrongly"),
    "lone surrogate": (b'{"text": "\\ud800", "intent": "a"}\n', "the row is not JSON"),
    "future": (line(created_at="2999-01-01T00:00:00Z"), "the time lies in the future"),
    "no time": (line(created_at="soon"), "the time is not ISO 8601"),
    "same id, other text": (line(id="r1"), "the record id stands in this file"),
}  # fmt: skip


def taken_in(lake: Lake, path: Path, **options: Any) -> Any:
    config = IngestConfig(data=str(path), mapping=MAPPING, **options)
    return lake.ingest_day(list_days(str(path)).days[0], config, check_rows, describe=describe)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_row_is_quarantined_and_the_others_land(
    lake: Lake, data: Path, name: str
) -> None:
    bad, reason = HOSTILE[name]
    path = data / "day-1.jsonl"
    before = to_lines(GOOD[:3])
    path.write_bytes(before + bad + to_lines(GOOD[3:]))
    report = taken_in(lake, path)
    assert (report.kept, report.quarantined, report.rows_in) == (6, 1, 7)
    row = lake.quarantined()[0]
    assert row["reason"].startswith(reason)
    assert (row["row"], row["offset"], row["length"]) == (4, len(before), len(bad))
    assert len(row["text"]) <= 2000


def test_a_byte_order_mark_at_the_start_is_no_fault(lake: Lake, data: Path) -> None:
    path = data / "day-1.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + to_lines(GOOD))
    assert taken_in(lake, path).kept == 6


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_what_comes_before_the_end_of_a_cut_file_lands(lake: Lake, data: Path, ending: str) -> None:
    lines = to_lines([{**row, "text": f"{index * 7919} {index}"} for index, row in
                      enumerate(make_rows(4000))])  # fmt: skip
    pack: Callable[[bytes], bytes] = gzip.compress if ending == "gz" else compressed_in_blocks
    whole = pack(lines)
    path = data / f"day-1.jsonl.{ending}"
    path.write_bytes(whole[: len(whole) // 2])
    report = taken_in(lake, path)
    assert report.kept > 1000
    assert 1 <= report.quarantined <= 2
    reasons = [row["reason"] for row in lake.quarantined()]
    assert "the compressed file is broken here" in reasons[-1]
    assert report.rows_in == report.kept + report.quarantined


def compressed_in_blocks(data: bytes) -> bytes:
    target = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(target, closefd=False) as writer:
        for start in range(0, len(data), 10_000):
            writer.write(data[start : start + 10_000])
            writer.flush(zstandard.FLUSH_BLOCK)
    return target.getvalue()


def test_several_compressed_members_are_one_file(lake: Lake, data: Path) -> None:
    path = data / "day-1.jsonl.gz"
    path.write_bytes(gzip.compress(to_lines(GOOD[:3])) + gzip.compress(to_lines(GOOD[3:])))
    assert taken_in(lake, path).kept == 6


def test_csv_and_parquet_rows_pass_the_same_contract(lake: Lake, data: Path) -> None:
    csv = data / "day-1.csv"
    csv.write_text('id,text,intent,domain\n1,"a, b",x,d\n2,,x,d\n3,c\n4,"two\nlines",y,d\n')
    report = taken_in(lake, csv)
    assert (report.kept, report.quarantined) == (2, 2)
    rows = [{"id": "7", "text": "new", "intent": "x", "domain": "d"},
            {"id": "8", "text": None, "intent": "x", "domain": "d"}]  # fmt: skip
    parquet = data / "day-2.parquet"
    pq.write_table(pa.Table.from_pylist(rows), parquet)
    report = taken_in(lake, parquet)
    assert (report.kept, report.quarantined) == (1, 1)


def test_the_evidence_holds_no_text_and_counts_every_row(lake: Lake, data: Path) -> None:
    path = data / "day-1.jsonl"
    path.write_bytes(to_lines(GOOD) + line(text="secret words", intent="") + b"broken\n")
    evidence = taken_in(lake, path).evidence
    assert evidence.batches == ({"rows": 8, "refused": 2, "reasons": {"the response is empty": 1}},)
    assert sorted(row["reason"] for row in evidence.sample) == [
        "",
        *[""] * 5,
        "the response is empty",
    ]
    assert "secret" not in str(evidence)
