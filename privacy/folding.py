"""The form of a text in which patterns look: compatibility forms folded, invisible ones dropped.

One character stays one character, so that every place maps back to the original text.
"""

import functools
import unicodedata
from dataclasses import dataclass
from typing import Any

import numpy as np

Codes = np.ndarray[Any, np.dtype[np.uint32]]
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
Places = np.ndarray[Any, np.dtype[np.int64]]

CODE_POINTS_COUNT = 0x110000
DROPPED = CODE_POINTS_COUNT - 1
OTHER = ord("?")
FOLDED_RANGES = (
    (0x80, 0x2100), (0x2100, 0x2E80), (0x3000, 0x3100), (0xA600, 0xABFF), (0xFB00, 0x10000),
    (0x104A0, 0x104AA), (0x11066, 0x11070), (0x16A60, 0x16A6A), (0x1D400, 0x1D800),
    (0x1F100, 0x1F200), (0x1FBF0, 0x1FBFA), (0xE0000, 0xE0200),
)  # fmt: skip
"""Where characters with a compatibility form of one character, digits and format characters are."""
DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\u2043\ufe58\ufe63"
UNSEEN = "\u034f\u20e3\ufffc\u115f\u1160\u3164\uffa0" + "".join(map(chr, range(0xFE00, 0xFE10)))
"""Draw nothing of their own beside the format characters (category Cf)."""
KEYCAP_BASE = ord("0")


@dataclass(frozen=True, slots=True)
class Folded:
    """A folded text: `buffer` has one byte per character of `text`.

    `places[i]` is where character i stood in the original; None: at i itself.
    """

    text: str
    buffer: bytes
    places: Places | None


class CodePage:
    """Maps folded characters to single bytes: ASCII to itself, known characters to 0x80-0xFF.

    Byte patterns can then find words of any script at the speed of bytes. Beyond 128 known
    characters some share a byte, so a pattern may find too much, never too little; all other
    characters are the byte `?`.
    """

    def __init__(self, characters: str) -> None:
        known = sorted({character for character in characters if ord(character) > 0x7F})
        self._bytes = {character: 0x80 | index % 0x80 for index, character in enumerate(known)}
        self.table: Bytes = np.full(CODE_POINTS_COUNT, OTHER, dtype=np.uint8)
        self.table[:0x80] = np.arange(0x80, dtype=np.uint8)
        for character, byte in self._bytes.items():
            self.table[ord(character)] = byte

    def pattern(self, expression: str) -> bytes:
        """Return the byte pattern that stands for a pattern over characters."""
        known = ((self._bytes.get(character), character) for character in expression)
        return "".join(f"\\x{byte:02x}" if byte else text for byte, text in known).encode()


def fold(text: str, page: CodePage) -> Folded:
    """Fold a text of any length; lone surrogates stand as they are."""
    if text.isascii():
        return Folded(text, text.encode(), None)
    codes: Codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    folded = _table()[codes]
    kept = folded != DROPPED
    places = None
    if not kept.all():
        places = np.flatnonzero(kept)
        folded = folded[kept]
    seen = folded.tobytes().decode("utf-32-le", "surrogatepass")
    return Folded(seen, page.table[folded].tobytes(), places)


@functools.cache
def _table() -> Codes:
    table: Codes = np.arange(CODE_POINTS_COUNT, dtype=np.uint32)
    for first, end in FOLDED_RANGES:
        for code in range(first, end):
            table[code] = _folded_code(code)
    for dash in DASHES:
        table[ord(dash)] = ord("-")
    for character in UNSEEN:
        table[ord(character)] = DROPPED
    return table


def _folded_code(code: int) -> int:
    character = chr(code)
    if unicodedata.category(character) == "Cf":
        return DROPPED
    digit = unicodedata.digit(character, None)
    if digit is not None:
        return KEYCAP_BASE + digit
    whole = unicodedata.normalize("NFKC", character)
    return ord(whole) if len(whole) == 1 else code
