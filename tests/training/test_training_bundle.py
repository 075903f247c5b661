"""Bundles: named by their content, the same when built again, and answering like the reference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.contracts import Message, Record
from core.digests import digest_files
from core.errors import InputError, IntegrityError
from core.manifests import read_manifest, verify_bundle
from tests.training.greedy import greedy
from training.base import BaseRef, load_model
from training.batches import encode_prompt, load_tokenizer
from training.bundle import BundleRef, build_bundle
from training.config import BundleConfig
from training.lora import AdapterRef, load_adapter
from training.reference import reference_answers


def test_a_bundle_is_named_by_its_content(
    bundle: BundleRef, base: BaseRef, adapter: AdapterRef
) -> None:
    manifest = verify_bundle(bundle.path, bundle.digest)
    assert bundle.path.name == bundle.digest == manifest.digest
    files = digest_files(bundle.path)
    assert files.pop("manifest.json")
    assert manifest.files == files
    assert manifest.base_digest == base.digest
    assert manifest.adapter_digest == adapter.digest
    assert manifest.snapshot_id == "snapshot-1"
    assert manifest.context_length == 256
    assert manifest.settings["kv_cache_precision"] == "u8"
    assert bundle.bytes == sum(path.stat().st_size for path in bundle.path.rglob("*.*"))
    assert not list(bundle.path.parent.glob(".*")), "nothing half-built is left"


def test_a_bundle_holds_no_machine_path(bundle: BundleRef, models: Path) -> None:
    for path in bundle.path.rglob("*"):
        if path.is_file():
            assert str(models).encode() not in path.read_bytes(), path.name


def test_building_again_gives_the_same_bundle(
    bundle: BundleRef, base: BaseRef, adapter: AdapterRef, tmp_path: Path
) -> None:
    again = build_bundle(BundleConfig(), base, adapter, "snapshot-1", tmp_path)
    assert again.digest == bundle.digest
    once_more = build_bundle(BundleConfig(), base, adapter, "snapshot-1", tmp_path)
    assert once_more.path == again.path
    assert len(list(tmp_path.iterdir())) == 1


def test_an_adapter_with_other_content_is_refused(
    base: BaseRef, adapter: AdapterRef, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="expected 000000"):
        build_bundle(BundleConfig(), base, replace(adapter, digest="0" * 64), "s", tmp_path)


def test_merged_weights_answer_like_base_and_adapter(
    bundle: BundleRef, base: BaseRef, adapter: AdapterRef, rows: list[Record]
) -> None:
    tokenizer = load_tokenizer(base.path)
    apart = greedy(load_adapter(load_model(base.path), adapter.path), tokenizer, rows[::16])
    weights = bundle.path / "weights"
    assert greedy(load_model(weights), load_tokenizer(weights), rows[::16]) == apart


def test_the_compiled_bundle_answers_like_the_reference(
    bundle: BundleRef, rows: list[Record]
) -> None:
    asked = rows[::16]
    weights = bundle.path / "weights"
    reference = greedy(load_model(weights), load_tokenizer(weights), asked)
    assert len(asked) == 20
    assert compiled_answers(bundle.path, asked) == reference
    assert set(reference) <= {row.response for row in rows}


def test_the_reference_answers_one_by_one_and_leaves_out_what_has_no_room(
    bundle: BundleRef, rows: list[Record]
) -> None:
    import torch

    weights = bundle.path / "weights"
    answer = reference_answers(weights, tokens_max=12)
    before = torch.get_num_threads()
    asked = [record.messages for record in rows[::16]]
    expected = greedy(load_model(weights), load_tokenizer(weights), rows[::16])
    assert list(answer(asked)) == expected
    assert list(answer([(Message("user", "word " * 2000),), asked[0]])) == ["", expected[0]]
    assert torch.get_num_threads() == before
    with pytest.raises(InputError):
        reference_answers(bundle.path / "nothing", 12)(asked[:1])


def test_fp32_weights_are_kept_when_asked_for(
    base: BaseRef, adapter: AdapterRef, bundle: BundleRef, rows: list[Record], tmp_path: Path
) -> None:
    config = BundleConfig(weight_precision="fp32", kv_cache_precision="f32")
    full = build_bundle(config, base, adapter, "snapshot-1", tmp_path)
    name = "openvino/openvino_model.bin"
    assert (full.path / name).stat().st_size > 3 * (bundle.path / name).stat().st_size
    weights = full.path / "weights"
    reference = greedy(load_model(weights), load_tokenizer(weights), rows[::16])
    assert compiled_answers(full.path, rows[::16]) == reference


def compiled_answers(folder: Path, records: list[Record]) -> list[str]:
    import numpy
    import openvino
    import openvino_genai

    settings = read_manifest(folder).settings
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        str(folder / "openvino"),
        scheduler,
        "CPU",
        {
            "KV_CACHE_PRECISION": settings["kv_cache_precision"],
            "INFERENCE_PRECISION_HINT": settings["inference_precision"],
            "INFERENCE_NUM_THREADS": 1,
        },
    )
    generation = openvino_genai.GenerationConfig(
        str(folder / "openvino" / "generation_config.json")
    )
    generation.max_new_tokens = 12
    tokenizer = load_tokenizer(folder / "weights")
    prompts = [encode_prompt(record.messages, tokenizer) for record in records]
    assert_tokenizers_agree(pipeline.get_tokenizer(), tokenizer, records, prompts)
    inputs = [openvino.Tensor(numpy.array([prompt], dtype=numpy.int64)) for prompt in prompts]
    outputs = pipeline.generate(inputs, [generation] * len(inputs))
    decode = pipeline.get_tokenizer().decode
    return [decode(output.m_generation_ids[0]) for output in outputs]


def assert_tokenizers_agree(
    compiled: Any, reference: Any, records: list[Record], prompts: list[list[int]]
) -> None:
    for record, prompt in zip(records, prompts, strict=True):
        turns = [{"role": turn.role, "content": turn.content} for turn in record.messages]
        text = compiled.apply_chat_template(turns, add_generation_prompt=True)
        assert text == reference.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True
        )
        assert compiled.encode(text).input_ids.data[0].tolist() == prompt


def test_answers_end_by_themselves(bundle: BundleRef) -> None:
    end = load_tokenizer(bundle.path / "weights").eos_token_id
    for name in ("weights", "openvino"):
        config = json.loads((bundle.path / name / "generation_config.json").read_text())
        assert config["eos_token_id"] == end
