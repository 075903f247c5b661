"""The OpenVINO engine has answered before it says that it has started."""

import asyncio
from pathlib import Path

import pytest

from core.contracts import Message
from core.errors import UnavailableError
from core.manifests import read_manifest
from serving.engines.engine import GenerationRequest, Sampling
from serving.engines.openvino import WARM_UP_ROWS, OpenVinoEngine
from serving.predictor_config import PredictorConfig
from tests.bundles import CHAT_LOOP, scripted_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_bundle(tmp_path_factory.mktemp("scripted"))


def engine(bundle: Path, **config: float) -> OpenVinoEngine:
    return OpenVinoEngine(bundle, read_manifest(bundle), PredictorConfig(threads=1, **config))


async def answer(started: OpenVinoEngine) -> str:
    ids = started.encode((Message("user", "hello"),))
    request = GenerationRequest(ids, Sampling(max_tokens=3))
    return "".join([piece.text async for piece in started.generate(request)])


@pytest.mark.parametrize("concurrency", [1, WARM_UP_ROWS])
def test_a_started_engine_has_run_its_graph_at_the_sizes_that_it_will_see(
    bundle: Path, concurrency: int
) -> None:
    started = engine(bundle, concurrency=concurrency)
    started.start()
    metrics = started._pipeline.get_metrics()
    assert metrics.requests >= 1
    assert metrics.max_cache_usage > 0
    assert not started._pipeline.has_non_finished_requests()
    assert started.load().answers == 0
    assert asyncio.run(answer(started)) == CHAT_LOOP[:3]


def test_a_cache_with_room_for_two_prompts_is_enough_to_warm_up(bundle: Path) -> None:
    started = engine(bundle, cache_gigabytes=1e-9)
    started.start()
    assert asyncio.run(answer(started)) == CHAT_LOOP[:3]


def test_an_engine_whose_graph_cannot_run_does_not_start(bundle: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "openvino").mkdir()
    for name in ("weights", "manifest.json"):
        (broken / name).symlink_to(bundle / name)
    for path in (bundle / "openvino").iterdir():
        if path.name != "openvino_model.bin":
            (broken / "openvino" / path.name).symlink_to(path)
    with pytest.raises(UnavailableError, match="build the bundle again"):
        engine(broken).start()
