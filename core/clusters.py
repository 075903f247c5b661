"""Which rows of a set are near duplicates of each other: pairs by band key, then union-find.

Pure: knows arrays only. The same for one batch, a partitioned day, and a snapshot.
"""

from collections.abc import Iterable, Sequence

import numpy as np

from core.sketches import Array, similarity

PAIRS_CHUNK = 1 << 15


def near_pairs(bands: Array, signatures: Array, similarity_min: float) -> Array:
    """Return the pairs [n, 2] of rows (first < second) that are at least so similar.

    Of the rows with one band key, each is compared with the first and with its neighbour.
    """
    rows = np.repeat(np.arange(len(bands)), bands.shape[1])
    return confirmed(band_pairs(bands.ravel(), rows), signatures, similarity_min)


def band_pairs(keys: Array, rows: Array) -> Array:
    """Return the candidate pairs [n, 2] of rows with an equal key; entry i is of `rows[i]`."""
    none = np.empty((0, 2), dtype=np.int64)
    if not len(keys):
        return none
    order = np.argsort(keys)
    equal = keys[order[1:]] == keys[order[:-1]]
    shared = order[np.concatenate([equal, [False]]) | np.concatenate([[False], equal])]
    if not len(shared):
        return none
    keys, rows = keys[shared], rows[shared]
    order = np.lexsort((rows, keys))
    keys, rows = keys[order], rows[order]
    begins = np.concatenate([[True], keys[1:] != keys[:-1]])
    heads = np.flatnonzero(begins)[np.cumsum(begins) - 1]
    places = np.flatnonzero(~begins)
    to_first = np.stack([rows[heads[places]], rows[places]], axis=1)
    to_neighbour = np.stack([rows[places - 1], rows[places]], axis=1)
    pairs = np.concatenate([to_first, to_neighbour])
    return np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)


def confirmed(pairs: Array, signatures: Array, similarity_min: float) -> Array:
    """Return the candidate pairs whose signatures are at least so similar."""
    kept = [
        part[similarity(signatures[part[:, 0]], signatures[part[:, 1]]) >= similarity_min]
        for part in (
            pairs[start : start + PAIRS_CHUNK] for start in range(0, len(pairs), PAIRS_CHUNK)
        )
    ]
    return np.concatenate(kept) if kept else pairs


def components(rows: int, pairs: Iterable[Sequence[int]]) -> Array:
    """Return for each row the smallest row that it is linked to, directly or by others."""
    parents = list(range(rows))

    def root(row: int) -> int:
        while parents[row] != row:
            parents[row] = parents[parents[row]]
            row = parents[row]
        return row

    for one, other in pairs:
        first, second = sorted((root(one), root(other)))
        parents[second] = first
    return np.array([root(row) for row in range(rows)], dtype=np.int64)
