"""Bundles: named by their content, the same when built again, and answering like the reference."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core.contracts import Message, Record
from core.digests import digest_files, digest_folder
from core.errors import InputError, IntegrityError
from core.manifests import read_manifest, verify_bundle
from tests.training.greedy import greedy
from training.base import BaseRef, load_model
from training.batches import encode_prompt, load_tokenizer
from training.bundle import BundleRef, build_bundle, build_less_aggressive
from training.config import BundleConfig
from training.graph import BuildStep
from training.logits import logit_differences
from training.lora import AdapterRef, load_adapter
from training.reference import reference_answers


def test_a_bundle_is_named_by_its_content(
    bundle: BundleRef, base: BaseRef, adapter: AdapterRef
) -> None:
    manifest = verify_bundle(bundle.path, bundle.digest)
    assert bundle.path.name == bundle.digest == manifest.digest
    files = digest_files(bundle.path)
    assert files.pop("manifest.json")
    assert files.pop("build.json")
    assert manifest.files == files
    assert manifest.base_digest == base.digest
    assert manifest.adapter_digest == adapter.digest == digest_folder(bundle.path / "adapter")
    assert manifest.snapshot_id == "snapshot-1"
    assert manifest.context_length == 256
    assert manifest.settings["kv_cache_precision"] == "u8"
    assert bundle.bytes == sum(path.stat().st_size for path in bundle.path.rglob("*.*"))
    assert not list(bundle.path.parent.glob(".*")), "nothing half-built is left"


def test_a_bundle_holds_no_machine_path(bundle: BundleRef, models: Path) -> None:
    for path in bundle.path.rglob("*"):
        if path.is_file():
            assert str(models).encode() not in path.read_bytes(), path.name


def test_building_again_gives_the_same_bundle(bundle: BundleRef, ladder: list[BundleRef]) -> None:
    by_precision = {item.recipe.config.weight_precision: item for item in ladder}
    assert by_precision["int8"].digest == bundle.digest, "however it came to be built"
    for precision in ("int4", "fp16"):
        before = by_precision[precision]
        recipe = before.recipe
        again = build_bundle(
            recipe.config, recipe.base, recipe.adapter, recipe.snapshot_id, recipe.bundles
        )
        assert again.path == before.path
    assert len(list(ladder[0].path.parent.iterdir())) == len(ladder)


def test_a_bundle_keeps_what_each_step_took_and_left(bundle: BundleRef) -> None:
    steps = json.loads((bundle.path / "build.json").read_text())
    assert [BuildStep(**step) for step in steps] == list(bundle.steps)
    assert [step.name for step in bundle.steps] == [
        "merge", "export", "fusion", "weight_compression", "cache_compression", "write",
    ]  # fmt: skip
    named = {step.name: step for step in bundle.steps}
    assert named["fusion"].operations < named["export"].operations
    assert named["weight_compression"].bytes < 0.3 * named["export"].bytes
    assert named["write"].bytes > named["weight_compression"].bytes
    assert sum(step.seconds for step in bundle.steps) <= bundle.seconds
    assert bundle.figures["precision"] == "int8"


def test_an_optimisation_that_is_left_out_is_not_done(
    base: BaseRef, adapter: AdapterRef, bundle: BundleRef, tmp_path: Path
) -> None:
    plain = build_bundle(BundleConfig(optimisations=()), base, adapter, "snapshot-1", tmp_path)
    settings = verify_bundle(plain.path).settings
    assert settings["optimisations"] == ""
    assert settings["weight_precision"] == "fp32"
    assert settings["kv_cache_precision"] == "f32"
    assert settings["sequences_max"] == 1
    assert [step.name for step in plain.steps] == ["merge", "export", "write"]
    assert plain.steps[-1].bytes > bundle.steps[-1].bytes
    assert build_less_aggressive(plain) is None


@pytest.fixture(scope="module")
def ladder(
    base: BaseRef, adapter: AdapterRef, tmp_path_factory: pytest.TempPathFactory
) -> list[BundleRef]:
    """A bundle of every precision, each built as the one before it was refused."""
    first = BundleConfig(weight_precision="int4")
    folder = tmp_path_factory.mktemp("ladder")
    tries = [build_bundle(first, base, adapter, "snapshot-1", folder)]
    while wider := build_less_aggressive(tries[-1]):
        tries.append(wider)
    return tries


def test_each_rung_of_the_ladder_is_nearer_to_the_reference(
    ladder: list[BundleRef], rows: list[Record]
) -> None:
    settings = [verify_bundle(item.path, item.digest).settings for item in ladder]
    assert [(one["weight_precision"], one["kv_cache_precision"]) for one in settings] == [
        ("int4", "u8"), ("int8", "u8"), ("fp16", "f16"), ("fp32", "f32"),
    ]  # fmt: skip
    sizes = [(item.path / "openvino" / "openvino_model.bin").stat().st_size for item in ladder]
    assert sizes == sorted(sizes)
    differences = [max(logit_differences(item.path, rows[::40])) for item in ladder]
    assert differences == sorted(differences, reverse=True)
    assert differences[0] > 4 * differences[1]
    assert differences[-1] < 1e-4
    weights = ladder[0].path / "weights"
    reference = greedy(load_model(weights), load_tokenizer(weights), rows[::16])
    for item in ladder[2:]:
        assert compiled_answers(item.path, rows[::16]) == reference


def test_only_precisions_of_the_ladder_are_tried() -> None:
    first = BundleConfig(weight_precision="int4", fallback_precisions=("fp32", "int8"))
    second = first.less_aggressive()
    assert second is not None
    assert second.weight_precision == "int8"
    third = second.less_aggressive()
    assert third is not None
    assert (third.weight_precision, third.kv_cache_precision) == ("fp32", "f32")
    assert third.less_aggressive() is None
    assert BundleConfig(fallback_precisions=()).less_aggressive() is None


def test_logits_are_compared_over_the_answer_of_a_cut_row_too(
    bundle: BundleRef, rows: list[Record]
) -> None:
    long = replace(rows[0], messages=(Message("user", "word " * 2000),))
    differences = logit_differences(bundle.path, [long, rows[0]])
    assert len(differences) == 2
    assert all(0 < difference < 0.5 for difference in differences)
    assert logit_differences(bundle.path, []) == []


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
