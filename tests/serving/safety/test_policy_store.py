"""Policies: validated, named by digest, reloaded from a watched folder, never an invalid one."""

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from core.errors import ConfigurationError
from serving.safety.policy import (
    POLICY_BYTES_MAX,
    POLICY_NAME,
    SHIPPED_POLICY,
    Policy,
    parse_policy,
    policy_yaml,
    read_policy,
)
from serving.safety.policy_store import PolicyStore

STRICT = "name: strict\nlexicon: {terms: {rivals: [acme]}}\n"
LAX = "name: lax\n"
ACTIVE_SECONDS_MAX = 1.0


def until(condition: Callable[[], bool], seconds: float = 10) -> float:
    """Poll until the condition holds; return how long it took."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < seconds, f"not within {seconds} s"
        time.sleep(0.005)
    return time.monotonic() - began


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A ConfigMap as kubelet mounts it: policy.yaml -> ..data/policy.yaml, ..data -> a folder."""
    config_map = tmp_path / "policy"
    config_map.mkdir()
    swap(config_map, STRICT, "first")
    (config_map / POLICY_NAME).symlink_to(Path("..data") / POLICY_NAME)
    return config_map


def swap(config_map: Path, text: str, version: str) -> None:
    """Change a ConfigMap's content as kubelet does: one rename of the ..data symlink."""
    (config_map / f"..{version}").mkdir()
    (config_map / f"..{version}" / POLICY_NAME).write_text(text)
    draft = config_map / "..data_tmp"
    draft.symlink_to(f"..{version}")
    os.replace(draft, config_map / "..data")


@pytest.fixture
def store(folder: Path) -> Iterator[PolicyStore]:
    made = PolicyStore(folder)
    made.start()
    yield made
    made.stop()


def test_a_config_maps_swap_is_in_force_within_a_second(folder: Path, store: PolicyStore) -> None:
    assert store.chain.check("user", "is acme better?").blocked
    wanted = parse_policy(LAX, "x").digest
    swap(folder, LAX, "second")
    assert until(lambda: store.policy_hash == wanted) < ACTIVE_SECONDS_MAX
    assert not store.chain.check("user", "is acme better?").blocked
    swap(folder, STRICT, "third")
    assert until(lambda: store.policy_hash != wanted) < ACTIVE_SECONDS_MAX


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name: [", "is not YAML"),
        ("- a list", "must hold one mapping"),
        ("name: x\ntoxicity: {threshold: 7}", "toxicity.threshold"),
        ("name: x\ntoxicty: {}", "toxicty: Extra inputs"),
        ("name: x\nrules: {patterns: [{name: a, pattern: '('}]}", "rule a: its pattern is wrong"),
        ("name: x\nlexicon: {categories: {rudeness: block}}", "no list has rudeness"),
        ("name: x\npersonal_data: {types: {SHOE: block}}", "unknown types of personal data"),
        ("name: x\ntoxicity: {model: /nowhere}", "the text model in /nowhere cannot be read"),
        (
            "name: x\nguards: [{name: g, kind: classifier, path: /nowhere}]",
            "no folder with a model",
        ),
        ("name: \xff", "is not UTF-8"),
    ],
)
def test_an_invalid_policy_never_becomes_active_and_is_told(
    folder: Path, store: PolicyStore, text: str, told: str
) -> None:
    before = store.policy_hash
    (folder / "..next").mkdir()
    (folder / "..next" / POLICY_NAME).write_bytes(text.encode("latin-1"))
    (folder / "..data_tmp").symlink_to("..next")
    os.replace(folder / "..data_tmp", folder / "..data")
    until(lambda: store.refusal is not None)
    assert store.refusal is not None
    assert told in store.refusal.reason
    assert store.policy_hash == before
    swap(folder, LAX, "good")
    until(lambda: store.policy_hash != before)
    assert store.refusal is None


def test_a_file_written_in_place_and_taken_away(tmp_path: Path) -> None:
    store = PolicyStore(tmp_path)
    store.start()
    assert store.policy_hash == read_policy(SHIPPED_POLICY).digest
    (tmp_path / POLICY_NAME).write_text(LAX)
    assert until(lambda: store.chain.policy.name == "lax") < ACTIVE_SECONDS_MAX
    (tmp_path / POLICY_NAME).unlink()
    until(lambda: store.refusal is not None)
    assert store.chain.policy.name == "lax"
    store.stop()


def test_an_invalid_first_policy_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / POLICY_NAME).write_text("name: x\nstream: {hold_characters: 1}")
    with pytest.raises(ConfigurationError, match="stream.hold_characters"):
        PolicyStore(tmp_path)


def test_the_digest_is_of_what_the_policy_says_not_of_how_it_is_written() -> None:
    plain = parse_policy("name: x\ntoxicity: {threshold: 0.7}", "a")
    noted = parse_policy("# note\ntoxicity:\n  threshold: 0.70\nname: 'x'", "b")
    assert plain.digest == noted.digest
    assert plain.digest != parse_policy("name: x\ntoxicity: {threshold: 0.71}", "c").digest


def test_what_is_shown_is_the_same_policy() -> None:
    shipped = read_policy(SHIPPED_POLICY)
    assert parse_policy(policy_yaml(shipped), "shown").digest == shipped.digest
    assert Policy(name="x").digest == Policy(name="x", rules={}).digest


def named(store: PolicyStore, name: str) -> bool:
    return store.chain.policy.name == name


def test_a_half_written_policy_is_not_believed_at_once(tmp_path: Path) -> None:
    (tmp_path / POLICY_NAME).write_text(STRICT)
    store = PolicyStore(tmp_path)
    (tmp_path / POLICY_NAME).write_text(LAX)
    assert not store.look()
    (tmp_path / POLICY_NAME).write_text(STRICT.replace("acme", "other"))
    assert not store.look()
    assert named(store, "strict")
    assert store.look()
    assert store.chain.check("user", "the other").blocked


def test_a_folder_that_is_made_later_or_replaced_is_watched(tmp_path: Path) -> None:
    folder = tmp_path / "policy"
    store = PolicyStore(folder)
    store.start()
    for number in range(2):
        folder.mkdir()
        (folder / POLICY_NAME).write_text(f"name: made {number}\n")
        until(partial(named, store, f"made {number}"))
        folder.rename(tmp_path / f"old {number}")
        until(lambda: store.refusal is not None)
    store.stop()


def test_a_policy_larger_than_any_is_refused(folder: Path, store: PolicyStore) -> None:
    before = store.policy_hash
    swap(folder, f"name: x\n# {'x' * POLICY_BYTES_MAX}\n", "large")
    until(lambda: store.refusal is not None)
    assert store.refusal is not None
    assert "larger than" in store.refusal.reason
    assert store.policy_hash == before
