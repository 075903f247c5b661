"""The mathematics and the text forms that gates rest on, against published or worked values."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.words import normal_form, script, words
from validation.intervals import compare, sign_test, token_f1, wilson
from validation.texts import letters, shingles


def test_wilson_gives_the_textbook_interval() -> None:
    # Newcombe 1998, table I: 81 of 263 and 15 of 148
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_sign_test_is_exact() -> None:
    assert sign_test(5, 5) == pytest.approx(1 / 32)
    assert sign_test(0, 5) == pytest.approx(1.0)
    assert sign_test(8, 10) == pytest.approx((45 + 10 + 1) / 1024)
    assert sign_test(0, 0) == 1.0
    assert 0 < sign_test(60_000, 100_000) < 1e-300 or sign_test(60_000, 100_000) == 0.0


def test_the_paired_interval_holds_its_coverage() -> None:
    draw = random.Random(7)
    truth, covered, rounds = -0.03, 0, 2000
    for _ in range(rounds):
        new, old = [], []
        for _ in range(150):
            kind = draw.random()
            new.append(float(kind < 0.85 or kind >= 0.94))
            old.append(float(kind < 0.85 or 0.85 <= kind < 0.91 or kind >= 0.97))
        item = compare(new, old)
        # P(loss) = .06, P(win) = .03
        covered += item.low <= truth <= item.high
    assert 0.93 <= covered / rounds <= 0.985


def test_the_paired_interval_of_nothing_is_the_widest() -> None:
    nothing = compare([], [])
    assert (nothing.low, nothing.high, nothing.p_worse) == (-1.0, 1.0, 1.0)
    assert math.isnan(nothing.difference)


def test_no_difference_in_few_records_is_not_certainty() -> None:
    few = compare([1.0] * 10, [1.0] * 10)
    assert few.low < -0.1


def test_token_f1_is_that_of_squad() -> None:
    assert token_f1(["a", "b"], ["a", "b"]) == 1
    assert token_f1(["a", "a"], ["a", "b"]) == pytest.approx(0.5)
    assert token_f1([], []) == 1
    assert token_f1(["a"], []) == 0


@given(st.lists(st.sampled_from("abc")), st.lists(st.sampled_from("abc")))
def test_token_f1_is_symmetric_and_bounded(one: list[str], other: list[str]) -> None:
    assert 0 <= token_f1(one, other) <= 1
    assert token_f1(one, other) == token_f1(other, one)


def test_normal_forms_hide_width_case_and_invisible_marks() -> None:
    assert normal_form("  Ｔrack\u200b_ORDER.  ") == "track_order"
    assert letters("What's  my balance?") == letters("whats my balance")
    assert letters("查询 余额。") == letters("查询余额")
    assert letters("👍") != letters("👎")


def test_every_chinese_character_is_a_word() -> None:
    assert words("查余额 now") == ["查", "余", "额", "now"]
    assert shingles("查余额", 3) == {"查余额"}
    assert shingles("ab", 3) == {"ab"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("where is my order", "latin"),
        ("我的 iPhone 订单", "zh"),
        ("注文はどこですか", "ja"),
        ("주문은 어디에", "ko"),
        ("где мой заказ", "cyrillic"),
        ("12345 ?!", "other"),
        ("", "other"),
    ],
)
def test_scripts_are_told_apart(text: str, expected: str) -> None:
    assert script(text) == expected
