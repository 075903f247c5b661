"""The forms of a text in which evaded words are found again: leet, repeats, separators undone.

Every form is derived from core.plain_text; offsets of the original are lost on the way.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from core.plain_text import HAN_RANGES, plain_text

VIEWS_KEPT = 8
"""Texts whose forms are remembered, so that the filters of a chain share them."""
LEET_I = str.maketrans("013456789@$!|+", "oieasgtbgasiit")
LEET_L = str.maketrans("013456789@$!|+", "oleasgtbgasllt")
LEET = re.compile(r"[0-9@$!|+]")
LEET_TOKEN = re.compile(r"(?<![a-z0-9@$!|+])[a-z]*+[0-9@$!|+][a-z0-9@$!|+]*+")
LETTER = re.compile(r"[a-z]")
SPELT_OUT = re.compile(r"(?<![a-z0-9])(?:[a-z0-9@$!][^a-z0-9@$!]{1,3}){2,}[a-z0-9@$](?![a-z0-9])")
NOT_LETTERS = re.compile(r"[^a-z0-9@$!]+")
IN_WORD = re.compile(r"(?<=[a-z0-9@$])[._\-~'`^+|/\\\"#&:;,]+(?=[a-z0-9@$])")
IN_HAN = re.compile(rf"(?<=[{HAN_RANGES}])[\s*._\-~'`^+|/\\\"#&@·•0-9a-z]{{1,3}}(?=[{HAN_RANGES}])")
RUNS = re.compile(r"(.)\1+", re.DOTALL)
LONG_RUNS = re.compile(r"(.)\1{2,}", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Views:
    """`plain` is the text in plain form; `forms` are it and its undone disguises, each once.

    `singles` are the forms with every run of one character cut to one.
    """

    plain: str
    forms: tuple[str, ...]
    singles: tuple[str, ...]


@lru_cache(maxsize=VIEWS_KEPT)
def views(text: str) -> Views:
    """Return the forms of a text."""
    plain = " ".join(plain_text(text).split())
    forms = [plain]
    closed = IN_WORD.sub("", plain)
    joined = SPELT_OUT.sub(lambda found: NOT_LETTERS.sub("", found.group()), plain)
    forms += [closed, joined]
    if not plain.isascii():
        forms.append(IN_HAN.sub("", plain))
    for form in tuple(dict.fromkeys(forms)):
        if LEET.search(form):
            forms += [_letters_for_leet(form, table) for table in (LEET_I, LEET_L)]
    forms += [LONG_RUNS.sub(r"\1\1", form) for form in tuple(dict.fromkeys(forms))]
    kept = tuple(dict.fromkeys(forms))
    return Views(plain, kept, tuple(dict.fromkeys(RUNS.sub(r"\1", form) for form in kept)))


def _letters_for_leet(form: str, table: dict[int, int]) -> str:
    """Return the form with leet undone in tokens that have letters: numbers stay numbers."""

    def undone(found: "re.Match[str]") -> str:
        token = found.group()
        return token.translate(table) if LETTER.search(token) else token

    return LEET_TOKEN.sub(undone, form)
