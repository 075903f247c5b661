"""Originals never reach the lake: every file that an ingestion writes is searched."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from lake_rows import make_rows, plain_check, to_lines

from lake.sources import IngestConfig, list_days
from lake.table import Lake

SECRETS = (
    "jo.doe@example.com", "138-0013-8000", "4111 1111 1111 1111", "DE89370400440532013000",
    "219-09-9999", "11010519491231002X", "AKIAIOSFODNN7EXAMPLE", "s3cr3tPassw0rd",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789", "00:1A:2b:3c:4d:5e", "203.0.113.77",
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "粤B12345", "Jane O'Neill",
)  # fmt: skip
CARRIERS = (
    "jo.doe@example.com", "call 138-0013-8000", "card\n4111 1111 1111 1111", "DE893704004405"
                                                                             "32013000",
    "219-09-9999", "身份证11010519491231002X", "AKIAIOSFODNN7EXAMPLE",
    "postgres://app:s3cr3tPassw0rd@db/x", "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "00:1A:2b:3c:4d:5e", "203.0.113.77", "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa", "粤B12345",
    "my name is Jane O'Neill.",
)  # fmt: skip


def written(folder: Path) -> Iterator[tuple[Path, str]]:
    """Yield the text of each file; Parquet is compressed, so its values are read."""
    for path in folder.rglob("*"):
        if path.suffix == ".parquet":
            table = pq.read_table(path, partitioning=None)
            yield path, "\n".join(str(column.to_pylist()) for column in table.columns)
        if path.is_file():
            yield path, path.read_bytes().decode("utf-8", "replace")


def test_originals_are_in_no_file_that_an_ingestion_writes(
    lake: Lake, data: Path, config: IngestConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows = make_rows(10)
    for index, carrier in enumerate(CARRIERS):
        fields = {"id": f"p{index}", "domain": f"d {carrier}", "language": carrier}
        row = make_rows(1, **fields)[0]
        rows.append({**row, "text": f"{index} {carrier}", "intent": f"yes, {carrier}"})
        rows.append({**row, "id": carrier, "text": f"again {index}"})
        rows.append({**row, "id": f"q{index}", "text": 7, "note": {"deep": [carrier]}})
    lines = to_lines(rows) + "".join(f'{{"text": "{c}\n' for c in CARRIERS).encode()
    (data / "day-1.jsonl").write_bytes(lines + b"\xff\xfe " + "; ".join(CARRIERS).encode() + b"\n")
    report = lake.ingest_day(list_days(config.data).days[0], config, plain_check)
    assert report.kept == 10 + 2 * len(CARRIERS)
    assert report.quarantined >= 2 * len(CARRIERS)
    searched = [*written(tmp_path / "lake"), (Path("log"), caplog.text)]
    assert sum(path.suffix == ".parquet" for path, _ in searched) >= 4
    leaks = [(path.name, secret) for path, text in searched for secret in SECRETS if secret in text]
    assert leaks == []
    assert any("[EMAIL]" in text and "[API_KEY]" in text for _, text in searched)
