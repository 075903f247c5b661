"""Adapters: they learn, continue their parent, and carry no trace of the machine."""

import json
import shutil
from pathlib import Path

import pytest

from core.contracts import Record
from core.digests import digest_folder
from core.errors import ConfigurationError, InputError, IntegrityError
from tests.training.greedy import share_right
from training.base import BaseRef, load_model
from training.batches import encode_records, load_tokenizer
from training.config import TrainConfig
from training.fused import fuse_lora
from training.lora import AdapterRef, load_adapter, train_adapter


def test_an_adapter_learns_a_new_answer_and_keeps_the_old_ones(
    base: BaseRef,
    adapter: AdapterRef,
    rows: list[Record],
    later_rows: list[Record],
    tmp_path: Path,
) -> None:
    tokenizer = load_tokenizer(base.path)
    first = load_adapter(load_model(base.path), adapter.path)
    assert share_right(first, tokenizer, later_rows[::8]) == 0.0
    config = TrainConfig(rank=8, epochs=12, batch_rows=16, replay_share=0.5, threads=1)
    second = train_adapter(config, base, later_rows, rows, adapter.path, tmp_path / "second")
    assert second.metrics["replay_rows"] == len(later_rows)
    model = load_adapter(load_model(base.path), second.path)
    assert share_right(model, tokenizer, later_rows[::8]) > 0.85
    assert share_right(model, tokenizer, rows[::10]) > 0.85


def test_without_steps_the_parents_weights_stay(
    base: BaseRef, adapter: AdapterRef, later_rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig(rank=8, epochs=0, threads=1)
    same = train_adapter(config, base, later_rows, [], adapter.path, tmp_path / "same")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (same.path / name).read_bytes() == (adapter.path / name).read_bytes()


def test_an_adapter_is_two_files_without_machine_paths(base: BaseRef, adapter: AdapterRef) -> None:
    assert sorted(path.name for path in adapter.path.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    config = json.loads((adapter.path / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == base.digest
    assert str(base.path.parent) not in json.dumps(config)
    assert adapter.digest == digest_folder(adapter.path)


def test_a_finished_training_is_not_repeated(
    base: BaseRef, adapter: AdapterRef, train_config: TrainConfig, rows: list[Record]
) -> None:
    before = (adapter.path / "adapter_model.safetensors").stat().st_mtime_ns
    again = train_adapter(train_config, base, rows, [], None, adapter.path)
    assert again == adapter
    assert (adapter.path / "adapter_model.safetensors").stat().st_mtime_ns == before


def test_a_changed_adapter_is_trained_again(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig(rank=2, epochs=1, threads=1)
    first = train_adapter(config, base, rows[:32], [], None, tmp_path / "a")
    (first.path / "adapter_model.safetensors").write_bytes(b"changed")
    assert train_adapter(config, base, rows[:32], [], None, tmp_path / "a") == _timeless(first)


def _timeless(adapter: AdapterRef) -> object:
    class SameWeights:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, AdapterRef) and other.digest == adapter.digest

    return SameWeights()


def test_a_parent_of_another_shape_or_base_is_refused(
    base: BaseRef, adapter: AdapterRef, rows: list[Record], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="r=8"):
        train_adapter(TrainConfig(rank=4), base, rows, [], adapter.path, tmp_path / "a")
    with pytest.raises(ConfigurationError, match="r=8"):
        train_adapter(TrainConfig(rank=16), base, rows, [], adapter.path, tmp_path / "a")
    other = BaseRef(base.path, "0" * 64)
    with pytest.raises(ConfigurationError, match="was trained on base"):
        train_adapter(TrainConfig(rank=8), other, rows, [], adapter.path, tmp_path / "a")


def test_training_needs_rows_and_layers_that_exist(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no rows"):
        train_adapter(TrainConfig(), base, [], rows, None, tmp_path / "a")
    config = TrainConfig(target_modules="no_such_layer", adapt_vocabulary=False)
    with pytest.raises(ConfigurationError, match="no_such_layer"):
        train_adapter(config, base, rows[:8], [], None, tmp_path / "a")


def test_a_damaged_adapter_folder_is_refused(
    base: BaseRef, adapter: AdapterRef, tmp_path: Path
) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(adapter.path, folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(IntegrityError, match=r"adapter_model\.safetensors"):
        load_adapter(load_model(base.path), folder)


@pytest.mark.parametrize("changes", [{"dora": True}, {"rslora": False}, {"dropout": 0.2}])
def test_every_kind_of_adapter_trains_and_loads(
    changes: dict[str, object], base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig.model_validate({"rank": 4, "epochs": 1, "threads": 1, **changes})
    made = train_adapter(config, base, rows[:64], [], None, tmp_path / "a")
    saved = json.loads((made.path / "adapter_config.json").read_text())
    assert saved["use_dora"] is config.dora
    assert saved["use_rslora"] is config.rslora
    load_adapter(load_model(base.path), made.path)


def test_the_fused_pass_gives_what_peft_gives(
    base: BaseRef, adapter: AdapterRef, rows: list[Record]
) -> None:
    import torch

    model = load_adapter(load_model(base.path), adapter.path, trainable=True)
    examples = encode_records(rows[:4], load_tokenizer(base.path), 64)
    width = min(len(example.ids) for example in examples)
    ids = torch.tensor([example.ids[:width] for example in examples])

    def run() -> tuple[torch.Tensor, list[torch.Tensor]]:
        model.zero_grad()
        logits = model(input_ids=ids).logits
        logits.square().mean().backward()
        return logits.detach(), [
            value.grad.clone() for value in model.parameters() if value.grad is not None
        ]

    plain, plain_gradients = run()
    assert fuse_lora(model) == 15, "seven in each of two layers, and the head"
    fused, fused_gradients = run()
    torch.testing.assert_close(fused, plain, rtol=1e-4, atol=1e-5)
    for one, two in zip(fused_gradients, plain_gradients, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-6)
