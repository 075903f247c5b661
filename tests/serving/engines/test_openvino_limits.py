"""What a pipeline may hold follows from the model's size, unless somebody says otherwise."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.errors import IntegrityError
from core.manifests import BundleManifest, read_manifest
from serving.engines.engine import GenerationRequest, Sampling
from serving.engines.openvino import OpenVinoEngine
from serving.engines.openvino_limits import (
    LARGE,
    SMALL,
    SMALL_MODEL_BYTES,
    cache_blocks,
    step_limits,
)
from serving.predictor_config import PredictorConfig
from tests.bundles import scripted_bundle

CONFIG = PredictorConfig(threads=1)
LONG_PROMPT_TOKENS = 2 * SMALL.tokens


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scripted_bundle(tmp_path_factory.mktemp("scripted"))


def with_settings(manifest: BundleManifest, **settings: Any) -> BundleManifest:
    return replace(manifest, settings={**manifest.settings, **settings})


def model_of(folder: Path, weights_bytes: int) -> Path:
    with (folder / "openvino_model.bin").open("wb") as file:
        file.truncate(weights_bytes)
    return folder


@pytest.mark.parametrize(
    ("weights_bytes", "limits"), [(SMALL_MODEL_BYTES, SMALL), (SMALL_MODEL_BYTES + 1, LARGE)]
)
def test_a_larger_model_takes_longer_steps_and_keeps_fewer_kernels(
    bundle: Path, tmp_path: Path, weights_bytes: int, limits: Any
) -> None:
    folder = model_of(tmp_path, weights_bytes)
    assert step_limits(folder, read_manifest(bundle), CONFIG) == limits


def test_the_predictor_s_configuration_is_above_the_bundle_s(bundle: Path) -> None:
    manifest = with_settings(read_manifest(bundle), batched_tokens_max=64)
    assert step_limits(bundle / "openvino", manifest, CONFIG).tokens == 64
    asked = CONFIG.model_copy(update={"batched_tokens_max": 32})
    assert step_limits(bundle / "openvino", manifest, asked).tokens == 32


def test_the_longest_prompt_fits_a_step_where_prompts_are_not_split(bundle: Path) -> None:
    manifest = with_settings(read_manifest(bundle), dynamic_split_fuse=False)
    limits = step_limits(bundle / "openvino", manifest, CONFIG)
    assert limits.tokens == max(SMALL.tokens, manifest.context_length)


@pytest.mark.parametrize("split", [True, False])
def test_a_prompt_longer_than_a_small_model_s_step_is_answered(bundle: Path, split: bool) -> None:
    manifest = with_settings(read_manifest(bundle), dynamic_split_fuse=split)
    assert manifest.context_length > LONG_PROMPT_TOKENS + 4
    started = OpenVinoEngine(bundle, manifest, CONFIG)
    started.start()

    async def tokens() -> int:
        request = GenerationRequest((5,) * LONG_PROMPT_TOKENS, Sampling(max_tokens=3))
        pieces = [piece async for piece in started.generate(request)]
        return sum(len(piece.text) > 0 for piece in pieces)

    assert asyncio.run(tokens()) > 0
    started.stop()


@pytest.mark.parametrize(("large", "most"), [(False, SMALL.tokens), (True, 0)])
def test_a_small_model_meets_every_step_before_it_is_ready(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, large: bool, most: int
) -> None:
    config = CONFIG.model_copy(update={"warm_up_seconds": 600.0})
    engine = OpenVinoEngine(bundle, read_manifest(bundle), config)
    met: list[int] = []
    answers = engine._answers

    def noted(rows: int, length: int, tokens_max: int, until: float | None) -> bool:
        if until is not None and rows == 1:
            met.append(length)
        return answers(rows, length, tokens_max, until)

    monkeypatch.setattr(engine, "_answers", noted)
    monkeypatch.setattr("serving.engines.openvino.is_small", lambda folder: not large)
    engine.start()
    engine.stop()
    assert met == list(range(1, most + 1))


def test_cache_blocks_are_as_many_as_fit_are_useful_and_hold_two_prompts(bundle: Path) -> None:
    folder, manifest = bundle / "openvino", read_manifest(bundle)
    answer = -(-manifest.context_length // 32) + 1

    def blocks(gigabytes: float, answers: int) -> int:
        asked = {"cache_gigabytes": gigabytes, "concurrency": answers}
        return cache_blocks(folder, manifest, CONFIG.model_copy(update=asked))

    assert blocks(1e-9, 4) == 2 * answer
    assert blocks(1000.0, 4) == 2 * 5 * answer
    assert blocks(0.01, 1000) == pytest.approx(2 * blocks(0.005, 1000), abs=1)


def test_a_bundle_that_does_not_tell_its_shape_is_refused(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 8}))
    with pytest.raises(IntegrityError, match="build the bundle again"):
        cache_blocks(tmp_path, read_manifest(bundle), CONFIG)
