"""Texts as words and scripts: their normal form, and the counts by which many are compared.

Chinese, Japanese and Korean are written without spaces, so each of their characters is a word.
"""

import re
import unicodedata
import zlib
from collections import Counter

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


WORD_BUCKETS = 64
LENGTH_BUCKETS_MAX = 16
WORDS_MAX = 200


def features(text: str) -> Counter[tuple[str, str]]:
    """Count what a text is like as (feature, bucket): its script, its length in powers of two,
    and its words in a few hash buckets.

    Summed over many texts they show a drift; no text or rare word can be read back out of them.
    """
    size = min(len(text).bit_length(), LENGTH_BUCKETS_MAX)
    found = Counter({("script", script(text)): 1, ("length", str(size)): 1})
    for word in words(text)[:WORDS_MAX]:
        found["word", str(zlib.crc32(word.encode()) % WORD_BUCKETS)] += 1
    return found
