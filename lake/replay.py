"""Rows of earlier days that may be used again: for replay in training, and for evaluation."""

import heapq
from collections.abc import Collection, Iterator

from core.contracts import Record
from core.digests import digest_bytes
from lake.table import Lake, record_of


def earlier_rows(
    lake: Lake, before_version: int, flagged: Collection[int], rows_max: int | None = None
) -> list[Record]:
    """Return the training rows of the days before `before_version` that are not flagged.

    With `rows_max` a uniform draw of so many, by the hash of their ids: bounded memory, and the
    same rows again for the same lake.
    """
    return _drawn(_records(lake, before_version, flagged, held_out=False), rows_max)


def earlier_held_out(
    lake: Lake, before_version: int, flagged: Collection[int], rows_max: int | None = None
) -> list[Record]:
    """Return the held-out rows of the days before `before_version` that are not flagged."""
    return _drawn(_records(lake, before_version, flagged, held_out=True), rows_max)


def _records(
    lake: Lake, before_version: int, flagged: Collection[int], held_out: bool
) -> Iterator[tuple[str, str, int, Record]]:
    versions = [
        entry.version
        for entry in lake.versions()
        if entry.version < before_version and entry.version not in flagged
    ]
    seen: set[str] = set()
    for batch in lake.rows(versions, held_out):
        for row in batch:
            if row["content_digest"] not in seen:
                seen.add(row["content_digest"])
                yield row["day"], row["source"], row["row"], record_of(row)


def _drawn(rows: Iterator[tuple[str, str, int, Record]], rows_max: int | None) -> list[Record]:
    if rows_max is not None:
        rows = iter(heapq.nsmallest(rows_max, rows, key=_draw_key))
    return [row[-1] for row in sorted(rows, key=lambda row: row[:3])]


def _draw_key(row: tuple[str, str, int, Record]) -> tuple[str, tuple[str, str, int]]:
    return digest_bytes(f"replay:{row[3].record_id}".encode()), row[:3]
