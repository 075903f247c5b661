"""Days and lake on an object store work as on a disk (moto speaks S3 on loopback)."""

import contextlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from lake_rows import MAPPING, make_rows, plain_check, to_lines

from lake.sources import IngestConfig, list_days
from lake.table import Lake

START_SECONDS_MAX = 60


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket served by a process of its own: delta-rs may hold the GIL while it waits."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    try:
        wait_for_port(port)
        fsspec.filesystem("s3", skip_instance_cache=True).mkdir("feed")
        yield "s3://feed"
    finally:
        fsspec.filesystem("s3").clear_instance_cache()
        server.terminate()
        server.wait(10)


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + START_SECONDS_MAX
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise TimeoutError("the object store did not start")


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
