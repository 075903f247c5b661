"""Originals never reach the lake: every file that an ingestion writes is searched."""

import logging
from pathlib import Path
from typing import Any

import pytest
from lake_rows import MAPPING, Row, make_rows, plain_check, to_lines

from lake.config import ScaleConfig
from lake.sensitive import unescaped
from lake.sources import IngestConfig, list_days
from lake.table import IngestReport, Lake
from tests.file_search import leaks
from tests.planted_values import CARRIERS, VALUES, broken_lines, good_rows, refused_rows
from tests.spread import in_order


def planted_rows() -> list[Row]:
    rows = [*make_rows(10), *good_rows(make_rows(1, 50)[0])]
    for index, carrier in enumerate(CARRIERS.values()):
        fields = {"id": f"p{index}", "domain": f"d {carrier}", "language": "\x01".join(carrier)}
        row = make_rows(1, **fields)[0]
        rows.append({**row, "text": f"{index} {carrier}", "intent": f"yes, {carrier}"})
        rows.append({**row, "text": f"{index} {carrier}", "intent": f"no, {carrier}"})
    return rows


def ingested(lake: Lake, data: Path, content: bytes, **options: Any) -> IngestReport:
    (data / "day-1.jsonl").write_bytes(content)
    config = IngestConfig(data=str(data), mapping=MAPPING, rows_min=5, **options)
    spread = in_order if config.scale.spread else None
    return lake.ingest_day(list_days(config.data).days[0], config, plain_check, spread=spread)


@pytest.mark.parametrize("parts", [1, 3])
def test_originals_are_in_no_file_that_an_ingestion_writes(
    lake: Lake, data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, parts: int
) -> None:
    caplog.set_level(logging.DEBUG)
    lines = to_lines([*planted_rows(), *refused_rows()]) + b"\n".join(broken_lines())
    report = ingested(lake, data, lines, scale=ScaleConfig(parts=parts))
    assert report.kept == 10 + 3 * len(CARRIERS)
    # The second answer to each text came under an id that was taken.
    assert report.quarantined == len(CARRIERS) + len(refused_rows()) + len(broken_lines())
    (tmp_path / "lake" / "log.txt").write_text(caplog.text)
    assert leaks(tmp_path / "lake", VALUES) == []
    assert {"[EMAIL]", "[API_KEY]", "[CN_ID_CARD]"} <= {
        leak.text for leak in leaks(tmp_path / "lake", ["[EMAIL]", "[API_KEY]", "[CN_ID_CARD]"])
    }


def test_a_csv_file_in_utf_16_leaves_only_places(
    lake: Lake, config: IngestConfig, data: Path, tmp_path: Path
) -> None:
    table = "text,intent,domain\n" + "".join(f"{carrier},a,d\n" for carrier in CARRIERS.values())
    first = make_rows(3)
    (data / "day-1.csv").write_text(
        "id,text,intent,domain\n" + "".join(f"{r['id']},{r['text']},a,d\n" for r in first)
    )
    (data / "day-2.csv").write_bytes(table.encode("utf-16-le"))
    for day in list_days(config.data).days:
        lake.ingest_day(day, config, plain_check)
    refused = lake.quarantined(day="day-2")
    assert len(refused) >= len(CARRIERS)
    assert {row["text"] for row in refused} == {""}
    assert leaks(tmp_path / "lake", VALUES) == []


def test_quarantined_texts_hold_kinds_where_the_records_keep_everything(
    lake: Lake, data: Path
) -> None:
    rows = make_rows(2)
    rows.append({**rows[1], "text": "write to jo.doe@example.com"})
    assert ingested(lake, data, to_lines(rows), scrub=False).kept == 2
    assert "[EMAIL]" in lake.quarantined()[0]["text"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (r'{"a": "jo\u0040example.com"}', '{"a": "jo@example.com"}'),
        (r"\u8eab\u4EFD\u8bc1 \ud83d\ude00 \ud83d", "身份证 😀 " + r"\ud83d"),
        (r"a\u0000b\bc\fd\u007fe\u0001", "abcde"),
        (r"kept \n \t \" \\ \u000a \u0022 \u005c", r"kept \n \t \" \\ \n \" \\"),
        (r"no escape: \\u0040", r"no escape: \\u0040"),
        ("a\0b\x1bc\x9fd\n\te", "abcd\n\te"),
        ("\\u00", "\\u00"),
        ("\\", "\\"),
    ],
)
def test_letters_of_broken_json_are_written_out(text: str, shown: str) -> None:
    assert unescaped(text) == shown
    assert unescaped(shown) == shown
