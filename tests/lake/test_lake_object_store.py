"""Days and lake on an object store work as on a disk (moto speaks S3 on loopback)."""

from collections.abc import Iterator

import fsspec
import pytest
from lake_rows import MAPPING, make_rows, plain_check, to_lines

from lake.sources import IngestConfig, list_days
from lake.table import Lake
from tests.object_store import object_store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    with object_store("feed", monkeypatch) as address:
        yield address


def test_days_and_lake_in_a_bucket(bucket: str) -> None:
    system = fsspec.filesystem("s3")
    system.pipe("feed/days/day-1.jsonl", to_lines(make_rows(30)) + b"broken\n")
    system.pipe("feed/days/day-2.jsonl", to_lines(make_rows(30, 20)))
    listing = list_days(f"{bucket}/days", excluded=[f"{bucket}/days/eval.jsonl"])
    assert [day.day for day in listing.days] == ["day-1", "day-2"]
    lake = Lake(f"{bucket}/lake")
    config = IngestConfig(data=f"{bucket}/days", mapping=MAPPING)
    reports = [lake.ingest_day(day, config, plain_check) for day in listing.days]
    assert [(report.kept, report.duplicates) for report in reports] == [(30, 0), (20, 10)]
    assert lake.ingest_day(listing.days[1], config, plain_check).already_ingested
    assert lake.statistics().quarantined == 1
