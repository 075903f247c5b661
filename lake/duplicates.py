"""The index of what the lake has: exact duplicates by digest, near ones by band key and signature.

Which rows are alike and which batches count; how entries lie on disk, history.py knows.
"""

import fcntl
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from core.clusters import components, near_pairs
from core.errors import ConflictError, IntegrityError
from core.sketches import BANDS, Array, similarity
from lake.config import DuplicatesConfig
from lake.history import History
from lake.manifest import EXACT, NEAR
from lake.segments import KEY_LOW, Segment
from lake.sketches import IndexRow, Sketches, digest_keys, sketch

__all__ = ["DuplicateIndex", "IndexRow", "IndexSize", "Verdict"]

Verdict = Literal["new", "exact", "near"]
VERDICTS: tuple[Verdict, ...] = ("new", "exact", "near")
IS_NEW, IS_EXACT, IS_NEAR = range(3)
MARGIN = 0.04
"""Two standard errors of the estimate, so that pairs at the threshold are found."""
EXACT_SAME_MAX, NEAR_SAME_MAX = 256, 16
"""Most entries compared for one key of one segment."""
PAIRS_CHUNK = 1 << 15
QUERIES_CHUNK = 1 << 17
"""Band keys looked up before the mapped pages are given back."""
LOW = np.uint64(KEY_LOW)


@dataclass(frozen=True, slots=True)
class IndexSize:
    """How many rows an index knows, how many of them for near matching, and its bytes on disk."""

    documents: int
    near_documents: int
    bytes: int


class DuplicateIndex:
    """Exact and near duplicates among all rows that came in, below one folder; one user at a time.

    Per million rows 16 MB on disk and at most 2 MB of filter; per million long rows 236 MB and at
    most 24 MB. It holds no text. Mapped pages are given back after each segment's lookups. An index
    that is missing or damaged starts empty, and `missing` tells what to `restore` from the lake.
    """

    def __init__(
        self,
        folder: Path,
        config: DuplicatesConfig,
        barred: Callable[[str], bool] = lambda batch: False,
    ) -> None:
        """Open the index; batches that are `barred` by name do not count as history.

        Raises ConflictError if another process uses it. What an earlier process staged counts for
        nothing before `recover`.
        """
        self.config = config
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._lock)
            raise ConflictError(f"another process uses {folder}; wait until it is done") from error
        self._history = History(folder)
        self._manifest = self._history.manifest
        self._barred = barred
        self._known: Array
        self._counted: Array
        self._count_batches()

    def look(self, batch: str, rows: Sequence[IndexRow] | Sketches) -> list[Verdict]:
        """Judge a batch: against history, this process's earlier batches, and within itself.

        The first of equal or similar rows is the one that stays. New rows are staged under the
        batch's name; looking at the same batch again replaces them. Raises ConflictError for a
        batch that is committed.
        """
        sketches = rows if isinstance(rows, Sketches) else sketch(rows, self.config)
        number = self._begin(batch)
        verdicts = np.zeros(len(sketches), dtype=np.int8)
        verdicts[_repeated(sketches)] = IS_EXACT
        self._find_exact(sketches, verdicts)
        self._find_near(sketches, verdicts)
        self._history.stage(number, sketches, verdicts == IS_NEW)
        return [VERDICTS[verdict] for verdict in verdicts.tolist()]

    def commit(self, batch: str) -> None:
        """Make a staged batch history; call it after the table's commit. Again is harmless."""
        found = self._manifest.batch(batch)
        if found is None:
            raise IntegrityError(f"batch {batch} was never looked at; run the intake again")
        self._manifest.commit(found[0])
        self._history.settle(EXACT, self.config.exact_window_documents, self._known)
        self._history.settle(NEAR, self.config.near_window_documents, self._known)

    def recover(self, committed: Callable[[str], bool]) -> None:
        """Keep exactly the batches that the lake has: `committed` tells by name."""
        lost = []
        for number, name, known in self._manifest.batches():
            if not committed(name):
                lost.append(number)
            elif not known:
                self._manifest.commit(number)
        self._manifest.forget_batches(lost)
        self._history.load()
        self._count_batches()

    def missing(self, batches: Collection[str]) -> list[str]:
        """Return those of the lake's batches that the index does not have."""
        known = {name for _, name, committed in self._manifest.batches() if committed}
        return [name for name in batches if name not in known]

    def restore(self, batch: str, rows: Sequence[IndexRow] | Sketches) -> None:
        """Enter rows that the lake has under one of its batches; all of them are history."""
        sketches = rows if isinstance(rows, Sketches) else sketch(rows, self.config)
        number = self._begin(batch)
        self._history.stage(number, sketches, np.ones(len(sketches), dtype=bool))
        self.commit(batch)

    def forget(self, digests: Collection[str]) -> int:
        """Remove every trace of the rows with these content digests; return how many there were."""
        return self._history.forget(np.sort(digest_keys(list(digests))[0]), self._known)

    def size(self) -> IndexSize:
        """Count the rows and the bytes on disk."""
        rows = {EXACT: 0, NEAR: 0}
        for entry in self._manifest.segments():
            rows[entry.kind] += entry.rows
        return IndexSize(rows[EXACT], rows[NEAR], self._history.bytes())

    def close(self) -> None:
        """Force everything to the disk, and let the next user in."""
        self._history.close()
        os.close(self._lock)

    def _begin(self, batch: str) -> int:
        found = self._manifest.batch(batch)
        if found is not None:
            number, committed = found
            if committed:
                raise ConflictError(f"batch {batch} is already in the index; do not take it twice")
            self._manifest.forget_batches([number])
            self._history.load()
            self._known[number] = self._counted[number] = False
        number = self._manifest.begin(batch)
        room = max(0, number + 1 - len(self._known))
        # Doubled, so that a long run does not copy the tables for each batch.
        grown = np.zeros(room and room + len(self._known), dtype=np.bool_)
        self._known = np.concatenate([self._known, grown])
        self._counted = np.concatenate([self._counted, grown])
        self._known[number] = True
        self._counted[number] = not self._barred(batch)
        return number

    def _count_batches(self) -> None:
        """Work out by number which batches are known, and which of them count as history."""
        most = self._manifest.next_batch()
        self._known, self._counted = np.zeros(most, dtype=bool), np.zeros(most, dtype=bool)
        for number, name, committed in self._manifest.batches():
            self._known[number] = True
            self._counted[number] = committed and not self._barred(name)

    def _find_exact(self, sketches: Sketches, verdicts: Array) -> None:
        order = np.argsort(sketches.keys)
        keys, checks = sketches.keys[order], sketches.checks[order]
        for segment in self._history.of_kind(EXACT):
            ours, theirs = segment.find(keys, keys, EXACT_SAME_MAX)
            same = segment["checks"][theirs] == checks[ours]
            known = same & self._counted[segment["batches"][theirs]]
            verdicts[order[ours[known]]] = IS_EXACT
            segment.release()

    def _find_near(self, sketches: Sketches, verdicts: Array) -> None:
        still = verdicts[sketches.places] == IS_NEW
        places, signatures = sketches.places[still], sketches.signatures[still]
        bands = sketches.bands[still] & ~LOW
        least = self.config.similarity_min - MARGIN
        old = np.zeros(len(places), dtype=bool)
        flat = bands.ravel()
        order = np.argsort(flat)
        for segment in self._history.of_kind(NEAR):
            # Keys rise, so each part of the queries maps another part of the segment.
            for part in range(0, len(order), QUERIES_CHUNK):
                ours = order[part : part + QUERIES_CHUNK]
                asked, found = segment.find(flat[ours], flat[ours] | LOW, NEAR_SAME_MAX)
                self._mark_old(old, segment, ours[asked] // BANDS, found, signatures, least)
                segment.release()
        groups = components(len(places), near_pairs(bands, signatures, least).tolist())
        # A group that reaches history is old as a whole.
        reached = np.zeros(len(places), dtype=bool)
        reached[groups[old]] = True
        later = groups != np.arange(len(places))
        verdicts[places[reached[groups] | later]] = IS_NEAR

    def _mark_old(
        self,
        old: Array,
        segment: Segment,
        ours: Array,
        found: Array,
        signatures: Array,
        least: float,
    ) -> None:
        """Mark the rows whose signature is like the one of a key that a band of theirs found."""
        theirs = (segment.keys[found] & LOW).astype(np.int64)
        wanted = ~old[ours] & self._counted[segment["batches"][theirs]]
        # A pair that shares several bands is compared once.
        pairs = np.unique(ours[wanted] << np.int64(28) | theirs[wanted])
        for start in range(0, len(pairs), PAIRS_CHUNK):
            part = pairs[start : start + PAIRS_CHUNK]
            mine, stored = part >> np.int64(28), part & np.int64(KEY_LOW)
            alike = similarity(signatures[mine], segment.read("signatures", stored))
            old[mine[alike >= least]] = True


def _repeated(sketches: Sketches) -> Array:
    """Return the places of rows whose digest an earlier row of the batch has."""
    order = np.lexsort((np.arange(len(sketches)), sketches.checks, sketches.keys))
    keys, checks = sketches.keys[order], sketches.checks[order]
    again = (keys[1:] == keys[:-1]) & (checks[1:] == checks[:-1])
    repeated: Array = order[1:][again]
    return repeated
