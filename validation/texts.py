"""What gates compare of a text: its normal form, words, character shingles and script.

Chinese, Japanese and Korean are written without spaces, so each of their characters is a word.
"""

import re
import unicodedata
from collections.abc import Sequence

from core.contracts import Message, Record

CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff"
WORD = re.compile(rf"[{CJK}]|[^\W{CJK}]+")
SCRIPTS = (
    ("ja", re.compile(r"[\u3040-\u30ff]")),
    ("ko", re.compile(r"[\uac00-\ud7af]")),
    ("zh", re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")),
    ("latin", re.compile(r"[A-Za-z\u00c0-\u024f]")),
    ("cyrillic", re.compile(r"[\u0400-\u04ff]")),
    ("arabic", re.compile(r"[\u0600-\u06ff]")),
)
CJK_SHARE_MIN = 0.2
EDGE_MARKS = " \t\r\n.,;:!?。，；：！？、\"'“”‘’`"


def normal_form(text: str) -> str:
    """One spelling per meaning: NFKC, case folded, single spaces, no marks at the edges."""
    composed = unicodedata.normalize("NFKC", text)
    visible = "".join(mark for mark in composed if unicodedata.category(mark) != "Cf")
    return " ".join(visible.casefold().split()).strip(EDGE_MARKS)


def words(text: str) -> list[str]:
    """Words of the normal form; each CJK character is one."""
    return WORD.findall(normal_form(text))


def letters(text: str) -> str:
    """Only letters and digits of the normal form (or all of it, when it has none of them)."""
    return "".join(words(text)) or normal_form(text)


def shingles(text: str, width: int) -> set[str]:
    """All runs of `width` characters of `letters`; the whole text when it is shorter."""
    compact = letters(text)
    count = len(compact) - width + 1
    return {compact[start : start + width] for start in range(count)} or {compact}


def script(text: str) -> str:
    """zh, ja, ko, latin, cyrillic, arabic or other: the script that most of the text is in.

    Chinese with a Latin brand name in it stays zh: a fifth of the letters is enough.
    """
    counts = {name: len(pattern.findall(text)) for name, pattern in SCRIPTS}
    whole = sum(counts.values())
    if not whole:
        return "other"
    asian = counts["zh"] + counts["ja"] + counts["ko"]
    if asian >= CJK_SHARE_MIN * whole:
        return "ja" if counts["ja"] else ("ko" if counts["ko"] > counts["zh"] else "zh")
    return max(("latin", "cyrillic", "arabic"), key=lambda name: counts[name])


def asked(messages: Sequence[Message]) -> str:
    """Everything that a prompt says except standing instructions."""
    return "\n".join(turn.content for turn in messages if turn.role != "system")


def answered(record: Record) -> str:
    """The normal form of the wanted answer."""
    return normal_form(record.response)
