"""The segments of a duplicate index: staged, committed, merged, expired, and rebuilt when damaged.

Knows batches by number and entries by key; what makes rows alike, duplicates.py decides.
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.errors import IntegrityError
from core.sketches import Array
from lake.manifest import EXACT, NEAR, Manifest, SegmentEntry
from lake.segments import KEY_LOW, KEYS, Segment, merged, sync_segment, write_segment
from lake.sketches import Sketches

MANIFEST = "index.sqlite"
MERGE_SEGMENTS_MIN, MERGE_RATIO = 4, 2
WINDOW_SHARE = 4
"""A segment holds at most this part of a window, which so ends within a quarter."""
SYNC_ROWS_MIN = 1 << 20
"""Smaller segments wait for `close`: after a power failure before it the index is built again."""
ROWS_CHUNK = 1 << 16
LOW = np.uint64(KEY_LOW)
NONE = np.empty(0, dtype=np.uint64)
Piece = dict[str, Array]
LOG = logging.getLogger("serin.duplicates")


class History:
    """Segments below one folder, with the numbers of the batches that their entries came in by.

    Exact segments: digest keys with columns `checks` and `batches`. Near segments: band keys whose
    low bits are a row's ordinal, and by ordinal `owners` (digest keys), `batches`, `signatures`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._segments: dict[int, Segment] = {}
        try:
            self.manifest = Manifest(folder / MANIFEST)
            self.load()
        except IntegrityError as error:
            LOG.warning("the duplicate index starts anew: %s", error)
            self._segments.clear()
            for path in folder.glob(f"{MANIFEST}*"):
                path.unlink()
            self.manifest = Manifest(folder / MANIFEST)
            self.load()

    def load(self) -> None:
        """Map the segments that the manifest names, and delete what interrupted work left."""
        entries = {entry.number: entry for entry in self.manifest.segments()}
        for path in self.folder.iterdir():
            if path.is_dir() and not (path.name.isdigit() and int(path.name) in entries):
                shutil.rmtree(path)
        self._segments = {
            number: self._segments.get(number) or Segment(self._folder_of(number), entry.shapes)
            for number, entry in entries.items()
        }

    def of_kind(self, kind: str) -> list[Segment]:
        """Return the segments of a kind, oldest first, staged ones included."""
        entries = self.manifest.segments()
        return [self._segments[entry.number] for entry in entries if entry.kind == kind]

    def stage(self, number: int, sketches: Sketches, chosen: Array) -> None:
        """Write the chosen rows of a batch as staged segments."""
        rows = np.flatnonzero(chosen)
        rows = rows[np.argsort(sketches.keys[rows], kind="stable")]
        if len(rows):
            part = {
                KEYS: sketches.keys[rows],
                "checks": sketches.checks[rows],
                "batches": np.full(len(rows), number, dtype=np.uint32),
            }
            self._add(EXACT, number, len(rows), len(rows), [part], {})
        places = np.flatnonzero(chosen[sketches.places])
        count = len(places)
        if count:
            ordinals = np.arange(count, dtype=np.uint64)[:, None]
            keys = np.sort(((sketches.bands[places] & ~LOW) | ordinals).ravel())
            rest = {
                "owners": [sketches.keys[sketches.places[places]]],
                "batches": [np.full(count, number, dtype=np.uint32)],
                "signatures": [sketches.signatures[places]],
            }
            self._add(NEAR, number, count, len(keys), [{KEYS: keys}], rest)

    def settle(self, kind: str, window: int, known: Array) -> None:
        """Take out what is beyond the window, and merge young segments of about one size.

        So their number grows with the logarithm of the rows. Entries of batches that are not
        `known` (by number) go on the way.
        """
        entries = [entry for entry in self.manifest.segments() if entry.kind == kind]
        while len(entries) > 1 and sum(entry.rows for entry in entries[1:]) >= window:
            self._swap([entries.pop(0)], None)
        most = min(window // WINDOW_SHARE, KEY_LOW)
        young: list[SegmentEntry] = []
        total = 0
        for entry in reversed([entry for entry in entries if not entry.staged]):
            if young and (entry.rows >= MERGE_RATIO * total or entry.rows + total > most):
                break
            young.insert(0, entry)
            total += entry.rows
        if len(young) >= MERGE_SEGMENTS_MIN:
            self.rewrite(young, known, NONE)

    def forget(self, owners: Array, known: Array) -> int:
        """Rewrite the segments that hold any of these digest keys (sorted) without them."""
        removed = 0
        for entry in self.manifest.segments():
            column = self._segments[entry.number]["owners" if entry.kind == NEAR else KEYS]
            found = sum(int(np.isin(part, owners).sum()) for part in _chunks(column))
            if found:
                self.rewrite([entry], known, owners)
                removed += found if entry.kind == EXACT else 0
        return removed

    def rewrite(self, entries: Sequence[SegmentEntry], known: Array, doomed: Array) -> None:
        """Write some segments as one, without unknown batches and the doomed digest keys."""
        parts = [self._segments[entry.number] for entry in entries]
        first, keys = entries[0], sum(len(part.keys) for part in parts)
        if first.kind == EXACT:

            def change(index: int, piece: Piece) -> Piece:
                keep = known[piece["batches"]] & ~np.isin(piece[KEYS], doomed)
                return {name: values[keep] for name, values in piece.items()}

            pieces = merged([part.columns(KEYS, "checks", "batches") for part in parts], change)
            rest: dict[str, Iterator[Array]] = {}
        else:
            kept = [known[part["batches"]] & ~np.isin(part["owners"], doomed) for part in parts]
            ordinals = np.cumsum(np.concatenate(kept), dtype=np.uint64) - np.uint64(1)
            offsets = np.cumsum([0, *(len(keep) for keep in kept)])

            def change(index: int, piece: Piece) -> Piece:
                old = (piece[KEYS] & LOW).astype(np.int64)
                keep = kept[index][old]
                new = ordinals[offsets[index] + old[keep]]
                return {KEYS: (piece[KEYS][keep] & ~LOW) | new}

            pieces = merged([part.columns(KEYS) for part in parts], change)
            rest = {
                name: _filtered(parts, name, kept) for name in ("owners", "batches", "signatures")
            }
        rows = sum(entry.rows for entry in entries)
        self._add(first.kind, first.batch, rows, keys, _released(pieces, parts), rest, entries)

    def bytes(self) -> int:
        """Bytes on disk."""
        return sum(segment.bytes for segment in self._segments.values())

    def close(self) -> None:
        """Force everything to the disk."""
        for entry in self.manifest.segments():
            if not entry.synced:
                sync_segment(self._folder_of(entry.number))
        self.manifest.mark_synced()
        self.manifest.close()
        self._segments.clear()

    def _add(
        self,
        kind: str,
        batch: int,
        rows: int,
        keys: int,
        pieces: Any,
        rest: Any,
        old: Sequence[SegmentEntry] = (),
    ) -> None:
        folder = self._folder_of(self.manifest.next_segment())
        shapes = write_segment(folder, keys, pieces, rest)
        synced = rows >= SYNC_ROWS_MIN
        if synced:
            sync_segment(folder)
        rows = shapes["owners" if kind == NEAR else KEYS][2]
        staged = old[0].staged if old else True
        self._swap(old, SegmentEntry(kind, batch, rows, shapes, staged, synced))

    def _swap(self, old: Sequence[SegmentEntry], new: SegmentEntry | None) -> None:
        entry = self.manifest.swap(old, new)
        if entry is not None:
            self._segments[entry.number] = Segment(self._folder_of(entry.number), entry.shapes)
        for gone in old:
            del self._segments[gone.number]
            shutil.rmtree(self._folder_of(gone.number))

    def _folder_of(self, number: int) -> Path:
        return self.folder / str(number)


def _chunks(column: Array) -> Iterator[Array]:
    for start in range(0, len(column), ROWS_CHUNK):
        yield column[start : start + ROWS_CHUNK]


def _filtered(parts: Sequence[Segment], name: str, kept: Sequence[Array]) -> Iterator[Array]:
    """Yield a column's kept rows in chunks, and give back what was mapped to read each."""
    for part, keep in zip(parts, kept, strict=True):
        for values, mask in zip(_chunks(part[name]), _chunks(keep), strict=True):
            yield values[mask]
            part.release()


def _released(pieces: Iterator[Piece], parts: Sequence[Segment]) -> Iterator[Piece]:
    """Yield the pieces, and give back what was mapped to make each."""
    for piece in pieces:
        yield piece
        for part in parts:
            part.release()
