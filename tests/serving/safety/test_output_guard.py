"""Streamed answers: what leaves was checked with what follows it; a block leaks nothing."""

import random

import pytest
from chains import only
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.safety.chain import Chain
from serving.safety.decisions import Context
from serving.safety.stream import OutputGuard

OUTPUT = Context("output")
SAFE = (
    "The balance is fine. Your card arrives on Monday! Is there anything else? 好的，没问题。"
    "再见！ One more thing: bring your passport and wait for the letter.\nBye.  "
)
LEXICON = {"enabled": True, "categories": {"profanity": "block"}}
SMALL = {"hold_characters": 16, "sentence_characters_max": 48, "context_characters": 64}


def run(chain: Chain, text: str, sizes: list[int]) -> tuple[str, bool, list[str]]:
    """Feed `text` in pieces of these sizes, over and over; return what left, and whether all."""
    guard = OutputGuard(chain, OUTPUT)
    left, start, number = [], 0, 0
    while start < len(text):
        size = max(1, sizes[number % len(sizes)])
        number += 1
        release = guard.feed(text[start : start + size], ended=start + size >= len(text))
        left.append(release.text)
        if release.blocked is not None:
            assert guard.feed("more", ended=True).text == ""
            return "".join(left), True, left
        start += size
    return "".join(left), False, left


@pytest.fixture(scope="module")
def strict() -> Chain:
    types = {"EMAIL_ADDRESS": "redact", "PHONE_NUMBER": "redact"}
    made: Chain = only(lexicon=LEXICON, personal_data={"types": types}, stream=SMALL)
    return made


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_harmless_answers_leave_whole_however_they_come(strict: Chain, sizes: list[int]) -> None:
    assert run(strict, SAFE * 3, sizes)[:2] == (SAFE * 3, False)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), st.integers(0, len(SAFE) - 1))
def test_nothing_of_a_blocked_word_leaves(strict: Chain, sizes: list[int], at: int) -> None:
    for word in ("f u c k", "fսck\u200bing", "FUUUCK"):
        text = f"{SAFE[:at]} {word} {SAFE}"
        left, blocked, _ = run(strict, text, sizes)
        assert blocked
        assert text.startswith(left)
        assert len(left) <= at + 1, "a part of the word left"


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 30), min_size=1, max_size=12), st.integers(0, len(SAFE) - 1))
def test_redactions_leave_whole_however_they_come(strict: Chain, sizes: list[int], at: int) -> None:
    head = SAFE[:at].rstrip()
    text = f"{head} write to wei.li@example.com or call +1 202-555-0122. {SAFE}"
    left, blocked, _ = run(strict, text, sizes)
    assert not blocked
    assert left == f"{head} write to [EMAIL_ADDRESS] or call [PHONE_NUMBER]. {SAFE}"


def test_a_sentence_leaves_only_when_it_is_complete(strict: Chain) -> None:
    _, _, pieces = run(strict, SAFE, [1])
    left = [piece for piece in pieces if piece]
    assert left[0] == "The balance is fine."
    assert left[1] == " Your card arrives on Monday!"


def test_a_long_sentence_leaves_in_parts(strict: Chain) -> None:
    endless = "and so on " * 40
    _, _, pieces = run(strict, endless, [5])
    longest = max(map(len, pieces[:-1]))
    assert 0 < longest <= SMALL["sentence_characters_max"] + 8


def test_a_toxic_sentence_is_blocked_before_its_first_word_leaves() -> None:
    chain = only(toxicity={})
    toxic = "You are all disgusting pieces of garbage, you stupid fucking morons."
    left, blocked, _ = run(chain, f"Here is what I think. {toxic} {SAFE}", [3])
    assert blocked
    assert left == "Here is what I think."[: len(left)]


def test_after_a_failing_filter_nothing_leaves() -> None:
    chain = only(rules={"patterns": [{"name": "slow", "pattern": r"^(.*?,){11}P"}]})
    left, blocked, _ = run(chain, "1," * 60 + " P. Fine. ", [7])
    assert blocked
    assert left == ""


def test_random_cuts_scan_every_character(strict: Chain) -> None:
    drawn = random.Random(7)
    for _ in range(20):
        guard = OutputGuard(strict, OUTPUT)
        text, sent = SAFE * 2, 0
        releases = []
        while sent < len(text):
            size = drawn.randint(1, 30)
            releases.append(guard.feed(text[sent : sent + size], sent + size >= len(text)))
            sent += size
        assert "".join(release.scanned for release in releases) == text
        assert "".join(release.text for release in releases) == text
