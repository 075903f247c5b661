"""A day spread over Prefect's task runners: the same rows on threads, on Dask and on Ray."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from benchmarks.support.duplicate_texts import Writer
from core.errors import ConfigurationError
from lake.config import FieldMapping, IngestConfig, ScaleConfig
from lake.snapshots import create_snapshot
from lake.sources import list_days
from lake.table import IngestReport, Lake
from tasks.runners import spreading
from validation.records import check_rows

MAPPING = FieldMapping(prompt="text", response="intent")
RUNNERS = ("local", "dask", "ray")


@pytest.fixture(scope="module")
def prefect() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def config(tmp_path: Path) -> IngestConfig:
    import msgspec

    data = tmp_path / "data"
    data.mkdir()
    writer = Writer.of("en", 3)
    texts = [writer.text() for _ in range(300)]
    texts += [writer.near(text, 1) for text in texts[:30]] + texts[40:60]
    rows = [{"text": text, "intent": "ok", "id": str(place)} for place, text in enumerate(texts)]
    lines = [msgspec.json.encode(row) + b"\n" for row in rows]
    (data / "day-1.jsonl").write_bytes(b"".join(lines))
    return IngestConfig(data=str(data), mapping=MAPPING, rows_min=5)


def take(folder: Path, config: IngestConfig, scale: ScaleConfig) -> tuple[IngestReport, str]:
    lake = Lake(str(folder / "lake"))
    scaled = config.model_copy(update={"scale": scale})
    with spreading(scale) as spread:
        report = lake.ingest_day(list_days(config.data).days[0], scaled, check_rows, spread=spread)
    snapshot = create_snapshot(lake, None, (), folder / "snapshots", 5)
    assert snapshot is not None
    return report, snapshot.snapshot_id


def test_one_local_part_is_not_spread() -> None:
    with spreading(ScaleConfig()) as spread:
        assert spread is None


@pytest.mark.skipif(find_spec("ray") is not None, reason="Ray is installed")
def test_a_missing_runner_says_what_to_install() -> None:
    with (
        pytest.raises(ConfigurationError, match=r"serin\[ray\]"),
        spreading(ScaleConfig(runner="ray")),
    ):
        pass


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_comes_to_the_same_rows(
    prefect: None, tmp_path: Path, config: IngestConfig, runner: str
) -> None:
    if runner == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is an extra: install serin[ray]")
    from prefect import flow

    in_flow = flow(take, validate_parameters=False)
    streamed, snapshot = in_flow(tmp_path / "streamed", config, ScaleConfig())
    scale = ScaleConfig.model_validate({"runner": runner, "parts": 4, "workers": 2})
    spread, other = in_flow(tmp_path / "spread", config, scale)
    assert (streamed.kept, streamed.duplicates) == (300, 50)
    assert (spread.kept, spread.duplicates, spread.near_duplicates) == (300, 50, 30)
    assert other == snapshot
