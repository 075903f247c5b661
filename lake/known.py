"""A set of digests in memory."""

from collections.abc import Sequence
from typing import Any

import numpy as np

Prefixes = np.ndarray[Any, np.dtype[np.uint64]]
LEVEL_GROWTH = 4


class DigestSet:
    """A set of 64-bit digest prefixes at 8 bytes each, in a few sorted arrays of growing size.

    Two different rows share a prefix with probability n^2 / 2^65: about 3 % at a billion rows,
    and then one row too many counts as a duplicate.
    """

    def __init__(self, prefixes: Prefixes | None = None) -> None:
        self._levels: list[Prefixes] = []
        if prefixes is not None and len(prefixes):
            self._levels.append(np.unique(prefixes))

    def add(self, prefixes: Prefixes) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Add a batch; return which of its members were new (the first of equal ones is)."""
        new = np.zeros(len(prefixes), dtype=bool)
        new[np.unique(prefixes, return_index=True)[1]] = True
        for level in self._levels:
            places = np.searchsorted(level, prefixes)
            places[places == len(level)] = 0
            new &= level[places] != prefixes
        if new.any():
            self._levels.append(np.sort(prefixes[new]))
        while len(self._levels) > 1 and len(self._levels[-2]) < LEVEL_GROWTH * len(
            self._levels[-1]
        ):
            last = self._levels.pop()
            self._levels[-1] = np.sort(np.concatenate([self._levels[-1], last]))
        return new


def prefixes_of_texts(texts: Sequence[str]) -> Prefixes:
    """Return a 64-bit digest of each text."""
    from xxhash import xxh3_64_intdigest

    return np.fromiter((xxh3_64_intdigest(text.encode()) for text in texts), dtype=np.uint64)
