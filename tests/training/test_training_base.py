"""The base: made once and seeded, or somebody's folder, or a hub's; safetensors only."""

import json
import shutil
from pathlib import Path

import pytest

from core.contracts import Record
from core.digests import digest_folder
from core.errors import ConfigurationError, InputError, NotFoundError, UnavailableError
from tests.training.greedy import share_right
from training.base import BaseRef, build_base, find_base, load_model, model_digest
from training.batches import PLAIN_TEMPLATE, load_tokenizer
from training.config import BaseConfig

QUICK = {"hidden_size": 32, "layers": 1, "heads": 2, "kv_heads": 1, "vocabulary": 300}


def quick(**changes: object) -> BaseConfig:
    return BaseConfig.model_validate({**QUICK, "epochs": 1, "threads": 1, **changes})


def test_builtin_base_learns_the_first_day(base: BaseRef, rows: list[Record]) -> None:
    right = share_right(load_model(base.path), load_tokenizer(base.path), rows[::10])
    assert right > 0.9


def test_builtin_base_is_made_once_per_configuration_and_rows(
    rows: list[Record], tmp_path: Path
) -> None:
    first = build_base(quick(), rows[:64], tmp_path)
    before = {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    assert build_base(quick(threads=2), rows[:64], tmp_path) == first
    assert before == {path: path.stat().st_mtime_ns for path in first.path.iterdir()}
    assert build_base(quick(seed=8), rows[:64], tmp_path).digest != first.digest
    assert build_base(quick(), rows[:65], tmp_path).path != first.path
    assert not list(tmp_path.glob(".*")), "nothing half-made is left"


def test_builtin_base_is_the_same_for_a_seed(rows: list[Record], tmp_path: Path) -> None:
    one = build_base(quick(), rows[:64], tmp_path / "one")
    two = build_base(quick(), rows[:64], tmp_path / "two")
    assert one.digest == two.digest == digest_folder(one.path) == model_digest(one.path)


def test_builtin_base_ends_its_answers(base: BaseRef) -> None:
    generation = json.loads((base.path / "generation_config.json").read_text())
    assert generation["eos_token_id"] == load_tokenizer(base.path).eos_token_id
    assert sum(value.numel() for value in load_model(base.path).parameters()) < 10_000_000


def test_builtin_base_needs_rows_and_a_shape_that_fits(rows: list[Record], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first day"):
        build_base(quick(), [], tmp_path)
    with pytest.raises(ConfigurationError, match="multiple of heads"):
        build_base(quick(heads=3), rows[:8], tmp_path)
    with pytest.raises(ConfigurationError, match="builtin:small"):
        build_base(BaseConfig(source="builtin:large"), rows[:8], tmp_path)


def test_a_local_folder_is_used_where_it_lies(base: BaseRef, tmp_path: Path) -> None:
    found = build_base(BaseConfig(source=str(base.path)), [], tmp_path)
    assert found == base


def test_other_files_in_a_local_folder_do_not_change_its_digest(
    base: BaseRef, tmp_path: Path
) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base.path, folder)
    (folder / "notes.md").write_text("mine")
    assert build_base(BaseConfig(source=str(folder)), [], tmp_path).digest == base.digest


def test_a_folder_with_pickled_weights_only_is_refused(base: BaseRef, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base.path, folder)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin.*safetensors"):
        build_base(BaseConfig(source=str(folder)), [], tmp_path)
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder)


def test_a_folder_that_wants_to_run_its_own_code_is_refused(base: BaseRef, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base.path, folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "evil.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text("raise SystemExit('code of the model folder ran')")
    with pytest.raises(InputError, match="cannot be loaded"):
        load_model(folder)


def test_a_tokenizer_without_template_gets_a_plain_one(base: BaseRef, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    shutil.copytree(base.path, folder)
    (folder / "chat_template.jinja").unlink()
    assert load_tokenizer(folder).chat_template == PLAIN_TEMPLATE


def test_a_hub_that_cannot_be_reached_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UnavailableError, match="nobody/nothing"):
        build_base(BaseConfig(source="nobody/nothing"), [], tmp_path)
    with pytest.raises(InputError, match="neither a folder nor a hub id"):
        build_base(BaseConfig(source="no/such/folder"), [], tmp_path)


def test_a_hub_model_in_the_cache_is_found_offline(
    base: BaseRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    home = tmp_path / "hub" / "models--somebody--small"
    shutil.copytree(base.path, home / "snapshots" / ("a" * 40))
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("a" * 40)
    found = build_base(BaseConfig(source="somebody/small"), [], tmp_path)
    assert found.digest == base.digest


def test_the_base_of_an_earlier_version_is_found_by_digest(
    base: BaseRef, base_config: BaseConfig, models: Path
) -> None:
    assert find_base(base_config, models, base.digest) == base
    with pytest.raises(NotFoundError, match="000000"):
        find_base(base_config, models, "0" * 64)
    with pytest.raises(ConfigurationError, match="keep the base"):
        find_base(BaseConfig(source=str(base.path)), models, "0" * 64)
