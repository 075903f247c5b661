"""Hashed character n-grams of a text as bucket numbers: what a linear classifier reads.

Shared by training and serving: both must cut and hash alike. Knows no weights.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 / golden ratio: Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4)."""
EDGE = " "


def ngram_buckets(text: str, lengths: tuple[int, int], buckets: int) -> NDArray[np.int64]:
    """Return the sorted distinct buckets of the text's n-grams; `buckets` is a power of two.

    `lengths` are the shortest and the longest n-gram. The text gets a blank at both ends, so that
    n-grams at the edge of a word differ from those inside it.
    """
    codes = np.frombuffer(f"{EDGE}{text}{EDGE}".encode("utf-32-le", "replace"), dtype=np.uint32)
    codes = codes.astype(np.uint64) + np.uint64(1)
    shift = np.uint64(64 - (buckets.bit_length() - 1))
    first, last = lengths
    rolled = np.zeros(len(codes), dtype=np.uint64)
    found: list[NDArray[Any]] = []
    for length in range(1, last + 1):
        usable = len(codes) - length + 1
        if usable <= 0:
            break
        rolled = rolled[:usable] * MULTIPLIER + codes[length - 1 :]
        if length >= first:
            mixed = (rolled ^ (rolled >> np.uint64(29)) ^ np.uint64(length)) * MULTIPLIER
            found.append((mixed >> shift).astype(np.int64))
    return np.unique(np.concatenate(found)) if found else np.zeros(0, dtype=np.int64)
