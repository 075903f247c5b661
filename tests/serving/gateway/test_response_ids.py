"""Ids of answers: they say what was signed, and nobody without the key can make or change one."""

from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.gateway.response_ids import Mark, ResponseIds, make_nonce

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
