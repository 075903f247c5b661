"""Approvers: names with codes of which only salted hashes are kept."""

from pathlib import Path

import pytest
import yaml

from core.errors import ConfigurationError, ConflictError, InputError, NotFoundError
from rollout.approvers import Approvers

CODE = "correct horse 77"


@pytest.fixture
def approvers(tmp_path: Path) -> Approvers:
    return Approvers(tmp_path / "home" / "approvers.yaml")


def test_a_code_proves_its_own_name_only(approvers: Approvers) -> None:
    assert approvers.names() == ()
    approvers.add("Ada", CODE)
    approvers.add("Grace Hopper", "nanoseconds")
    assert approvers.names() == ("Ada", "Grace Hopper")
    assert approvers.proven(" ada ", CODE) == "Ada"
    for name, code in (("Ada", "nanoseconds"), ("Ada", ""), ("Linus", CODE), ("", CODE)):
        assert approvers.proven(name, code) is None


def test_the_file_holds_salted_hashes_for_its_owner_only(approvers: Approvers) -> None:
    approvers.add("Ada", CODE)
    approvers.add("Grace", CODE)
    text = approvers.path.read_text()
    assert CODE not in text
    entries = yaml.safe_load(text)["approvers"]
    assert entries["Ada"]["scrypt"] != entries["Grace"]["scrypt"]
    assert approvers.path.stat().st_mode & 0o077 == 0
    assert [path.name for path in approvers.path.parent.iterdir()] == ["approvers.yaml"]


def test_who_was_removed_proves_nothing_any_more(approvers: Approvers) -> None:
    approvers.add("Ada", CODE)
    with pytest.raises(ConflictError, match="remove it first"):
        approvers.add("ADA", "another code")
    approvers.remove("Ada")
    assert approvers.proven("Ada", CODE) is None
    with pytest.raises(NotFoundError):
        approvers.remove("Ada")


@pytest.mark.parametrize(
    ("name", "code"), [("", CODE), ("a\nb", CODE), ("Ada", "short"), ("Lovelace", "lovelace")]
)
def test_bad_names_and_codes_are_refused(approvers: Approvers, name: str, code: str) -> None:
    with pytest.raises(InputError) as refused:
        approvers.add(name, code)
    assert code == "lovelace" or code not in str(refused.value)
    assert approvers.names() == ()


@pytest.mark.parametrize(
    "text", ["approvers: [", "approvers: {Ada: {salt: x}}", "others: {}", "approvers: {Ada: 1}"]
)
def test_a_malformed_file_lets_nobody_in(approvers: Approvers, text: str) -> None:
    approvers.path.parent.mkdir()
    approvers.path.write_text(text)
    with pytest.raises(ConfigurationError, match="malformed"):
        approvers.proven("Ada", CODE)
