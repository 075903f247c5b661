"""Text as a reader sees it: one form for look-alikes, invisible characters, accents and case.

Shared by what trains a text classifier and what scores with it; knows neither.
"""

import re
import unicodedata
from functools import cache

TABLE_ENTRIES_MAX = 20_000
"""Characters remembered; beyond it each is looked up anew, so that nobody can fill the memory."""
HAN_FIRST = 0x2E80
"""From here on scripts are East Asian: look-alikes of Latin letters there are words of their own"""
DROPPED = {"Cf", "Mn", "Me", "Cc", "Co", "Cn", "Cs"}
SPACES = {"Zs", "Zl", "Zp"}
HAN_RANGES = "\u3400-\u4dbf\u4e00-\u9fff"
"""Chinese characters as a pattern's set: CJK ideographs and extension A."""
HAN = re.compile(f"[{HAN_RANGES}]")
ASCII_TABLE = {code: " " if chr(code) in "\t\n\v\f\r" else None for code in [*range(32), 127]}


class _Folding(dict[int, str]):
    """A translation table that fills itself: character after NFKD -> what a reader sees."""

    def __missing__(self, code: int) -> str:
        folded = _fold(chr(code))
        if len(self) < TABLE_ENTRIES_MAX:
            self[code] = folded
        return folded


def plain_text(text: str) -> str:
    """Return `text` in lower case with compatibility forms, look-alikes and accents folded.

    NFKD, then: format, control and combining characters go, confusables (Unicode TR 39) become
    the Latin letter that they look like, each white space becomes one blank. Line breaks too:
    whoever splits into sentences does so before.
    """
    if text.isascii():
        return text.translate(ASCII_TABLE).lower()
    folded = unicodedata.normalize("NFKD", text).translate(_FOLDING)
    return unicodedata.normalize("NFKC", folded).lower()


def shorten_repeats(text: str, kept: int) -> str:
    """Return `text` with every run of one character longer than `kept` cut to `kept`."""
    return _runs(kept).sub(lambda found: found[1] * kept, text)


@cache
def _runs(kept: int) -> re.Pattern[str]:
    return re.compile(rf"(.)\1{{{kept},}}", re.DOTALL)


def is_han(character: str) -> bool:
    """Return whether a character is a Chinese one (CJK ideographs and extension A)."""
    return HAN.match(character) is not None


def _fold(character: str) -> str:
    if character in "\t\n\v\f\r":
        return " "
    category = unicodedata.category(character)
    if category in SPACES:
        return " "
    if category in DROPPED:
        return ""
    if ord(character) < 128 or ord(character) >= HAN_FIRST and not _mathematical(character):
        return character
    return _look_alikes().get(character, character)


def _mathematical(character: str) -> bool:
    return ord(character) >= 0x1D400


@cache
def _look_alikes() -> dict[str, str]:
    """Return {character outside ASCII: ASCII letter or digit that it looks like}."""
    from confusable_homoglyphs import confusables

    found = {}
    for character, others in confusables.confusables_data.items():
        if len(character) != 1 or character.isascii():
            continue
        letters = [_base(item["c"]) for item in others]
        alone = [letter for letter in letters if letter.isascii() and letter.isalnum()]
        if alone and len(alone[0]) == 1:
            found[character] = alone[0]
    return found


def _base(text: str) -> str:
    """Return a text without its combining marks."""
    parts = unicodedata.normalize("NFKD", text)
    return "".join(part for part in parts if unicodedata.category(part) not in DROPPED)


_FOLDING = _Folding()
