"""Ids of answers: they say what was signed, and nobody without the key can make or change one."""

import stat
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.errors import ConfigurationError
from serving.gateway.response_ids import Mark, ResponseIds, make_nonce, read_key

KEY = b"k" * 32
MARK = Mark(b"n" * 12, "p", "assistant", "canary", "assistant-00002", "2", "r1", "r2", 0.05, True)
IDS = ResponseIds(KEY)


@pytest.mark.parametrize("prefix", ["", "chatcmpl-", "cmpl-"])
def test_an_id_says_what_was_signed(prefix: str) -> None:
    assert IDS.read(prefix + IDS.sign(MARK)) == MARK


def test_a_predictor_takes_the_id_even_with_the_longest_names() -> None:
    text = "r" * 63
    long = Mark(b"n" * 12, "p" * 16, "s" * 42, "stable", text, text, text, text, 1 / 3, True)
    name = IDS.sign(long)
    assert len(name) <= 512
    assert name.replace("-", "").replace("_", "").isalnum()


def test_nonces_differ() -> None:
    assert len({make_nonce() for _ in range(1000)}) == 1000


def test_another_key_reads_nothing() -> None:
    assert ResponseIds(b"x" * 32).read(IDS.sign(MARK)) is None


def test_every_changed_bit_is_found() -> None:
    text = IDS.sign(MARK)
    content = bytearray(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    for index in range(len(content) * 8):
        content[index // 8] ^= 1 << index % 8
        assert IDS.read(urlsafe_b64encode(content).rstrip(b"=").decode()) is None
        content[index // 8] ^= 1 << index % 8


@given(st.text(max_size=200))
def test_made_up_ids_are_refused(text: str) -> None:
    assert IDS.read(text) is None


@pytest.mark.parametrize("more", ["A", "=", " ", "!", "\n", "chatcmpl-"])
def test_an_id_with_more_is_another(more: str) -> None:
    assert IDS.read(IDS.sign(MARK) + more) is None


def test_a_very_long_id_is_refused() -> None:
    assert IDS.read("A" * 100_000) is None


def test_a_payload_of_another_form_is_unknown() -> None:
    payload = b"\x93\x01\x02\x03"
    code = IDS._code(payload)
    assert IDS.read(urlsafe_b64encode(payload + code).rstrip(b"=").decode()) is None


def test_the_key_is_made_once_private_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "control" / "response.key"
    key = read_key(path)
    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert read_key(path) == key
    assert [item.name for item in path.parent.iterdir()] == ["response.key"]


def test_processes_that_start_together_get_the_same_key(tmp_path: Path) -> None:
    path, keys = tmp_path / "response.key", set[bytes]()
    barrier = threading.Barrier(16)

    def read() -> None:
        barrier.wait()
        keys.add(read_key(path))

    threads = [threading.Thread(target=read) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(keys) == 1


def test_a_key_that_others_could_read_becomes_private(tmp_path: Path) -> None:
    path = tmp_path / "response.key"
    key = read_key(path)
    path.chmod(0o644)
    assert read_key(path) == key
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_damaged_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "response.key"
    path.write_bytes(b"short")
    with pytest.raises(ConfigurationError, match=r"response\.key.*delete it"):
        read_key(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file")
    with pytest.raises(ConfigurationError, match=r"response\.key"):
        read_key(tmp_path / "control" / "response.key")
