"""Plain form: what looks the same to a reader becomes the same text."""

import pytest

from core.plain_text import plain_text, shorten_repeats


@pytest.mark.parametrize(
    "written",
    [
        "Idiot",
        "ＩＤＩＯＴ",
        "i\u200bd\u200di\ufeffot",
        "іdіоt",
        "𝓲𝓭𝓲𝓸𝓽",
        "ídiöt",
        "i\u0336d\u0336iot",
        "ⓘⓓⓘⓞⓣ",
    ],
)
def test_disguised_letters_become_plain_ones(written: str) -> None:
    assert plain_text(written) == "idiot"


def test_white_space_becomes_blanks_and_controls_go() -> None:
    assert plain_text("a\tb\nc\u3000d\x00e\u2028f") == "a b c de f"
    assert plain_text("\x1bé\n") == "e "


def test_chinese_stays_chinese() -> None:
    assert plain_text("口一丨你好，世界") == "口一丨你好,世界"


def test_lone_surrogates_do_no_harm() -> None:
    assert plain_text("a\ud800b") == "ab"


def test_runs_are_cut() -> None:
    assert shorten_repeats("soooo good", 1) == "so god"
    assert shorten_repeats("soooo good", 2) == "soo good"
