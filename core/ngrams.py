"""Hashed character n-grams of a text as bucket numbers: what a linear classifier reads.

Shared by training and serving: both must cut and hash alike. Knows no weights.
"""

from collections.abc import Iterator, Sequence

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
    return np.unique(next(all_buckets([text], lengths, buckets)))


def all_buckets(
    texts: Sequence[str], lengths: tuple[int, int], buckets: int
) -> Iterator[NDArray[np.int64]]:
    """Yield each text's buckets, one for every n-gram, in no order; hashed in one go."""
    joined = "".join([f"{EDGE}{text}{EDGE}" for text in texts])
    codes = np.frombuffer(joined.encode("utf-32-le", "replace"), dtype=np.uint32)
    codes = codes.astype(np.uint64) + np.uint64(1)
    shift = np.uint64(64 - (buckets.bit_length() - 1))
    first, last = lengths
    rolled = np.zeros(len(codes), dtype=np.uint64)
    found: list[tuple[int, NDArray[np.int64]]] = []
    for length in range(1, min(last, len(codes)) + 1):
        rolled = rolled[: len(codes) - length + 1] * MULTIPLIER + codes[length - 1 :]
        if length >= first:
            mixed = (rolled ^ (rolled >> np.uint64(29)) ^ np.uint64(length)) * MULTIPLIER
            found.append((length, (mixed >> shift).view(np.int64)))
    start = 0
    for text in texts:
        end = start + len(text) + 2 * len(EDGE)
        # What begins in a text and ends in the next one is no n-gram of either.
        own = [
            hashed[start : end - length + 1] for length, hashed in found if start + length <= end
        ]
        yield np.concatenate(own) if own else np.zeros(0, dtype=np.int64)
        start = end


class Distinct:
    """Picks the distinct ones among buckets without sorting; for use from one thread."""

    def __init__(self, buckets: int) -> None:
        self._last = np.zeros(buckets, dtype=np.int64)

    def __call__(self, found: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return each bucket once, in no order."""
        places = np.arange(len(found))
        self._last[found] = places
        distinct: NDArray[np.int64] = found[self._last[found] == places]
        return distinct
