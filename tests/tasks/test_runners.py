"""A day spread over Prefect's task runners: the same rows on threads, on Dask and on Ray."""

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from benchmarks.support.duplicate_texts import Writer
from core.errors import ConfigurationError
from lake.config import FieldMapping, IngestConfig, ScaleConfig
from tasks.runners import spreading

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


def test_tasks_carry_a_flow_that_any_process_can_load() -> None:
    from prefect.context import FlowRunContext
    from prefect.flows import load_flow_from_entrypoint

    from tasks.runners import portable_flow

    loaded = load_flow_from_entrypoint(f"{Path(__file__).parent}/spread_day.py:spread_day")
    with FlowRunContext.model_construct(flow=loaded, flow_run=None) as around:
        with portable_flow():
            context = FlowRunContext.get()
            assert context is not None
            assert context.flow is not None
            assert (context.flow.name, context.flow.fn.__module__) == (loaded.name, "tasks.runners")
        assert FlowRunContext.get() is around
    with portable_flow():
        assert FlowRunContext.get() is None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", RUNNERS)
def test_every_runner_comes_to_the_same_rows(
    prefect: None, tmp_path: Path, config: IngestConfig, runner: str
) -> None:
    if runner == "ray" and find_spec("ray") is None:
        pytest.skip("Ray is an extra: install serin[ray]")
    from prefect.flows import load_flow_from_entrypoint

    # A name that no worker could import: deployments' flows are loaded from files, too.
    take: Any = load_flow_from_entrypoint(f"{Path(__file__).parent}/spread_day.py:spread_day")
    streamed, snapshot = take(tmp_path / "streamed", config)
    scale = ScaleConfig.model_validate({"runner": runner, "parts": 4, "workers": 2})
    spread, other = take(tmp_path / "spread", config.model_copy(update={"scale": scale}))
    assert (streamed.kept, streamed.duplicates) == (300, 50)
    assert (spread.kept, spread.duplicates, spread.near_duplicates) == (300, 50, 30)
    assert other == snapshot
