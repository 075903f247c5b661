"""Which records were erased: hashes of their ids and contents, so that they do not come back.

A Delta table beside the others; it holds no id in clear and no text.
"""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

import pyarrow as pa

from lake.schema import ERASURES, ERASURES_SCHEMA
from lake.tables import Tables

ERASED = "the record was erased on request"


@dataclass(frozen=True, slots=True)
class Tombstones:
    """The erased records as a set; small beside the lake, so it is held in memory."""

    ids: frozenset[str] = frozenset()
    contents: frozenset[str] = frozenset()

    def cover(self, record_id: str, content_digest: str = "") -> bool:
        """Whether a record was erased: by its id, or by its content under another id."""
        if not self.ids:
            return False
        return id_hash(record_id) in self.ids or content_digest in self.contents

    def among(self, record_ids: Iterable[str]) -> set[str]:
        """Return those of the ids that were erased."""
        return {record_id for record_id in record_ids if self.cover(record_id)}


def read_tombstones(tables: Tables) -> Tombstones:
    """Return every erasure so far."""
    ids: set[str] = set()
    contents: set[str] = set()
    for batch in tables.columns(["id_hash", "content_digest"], name=ERASURES):
        ids.update(batch.column("id_hash").to_pylist())
        contents.update(batch.column("content_digest").to_pylist())
    return Tombstones(frozenset(ids), frozenset(contents - {""}))


def add_tombstones(
    tables: Tables, erased: Collection[tuple[str, str]], day: str, batch: str, at: int
) -> None:
    """Add (record id, content digest) pairs; the same `batch` again adds nothing."""
    add_hashed(tables, {(id_hash(item), digest) for item, digest in erased}, day, batch, at)


def add_hashed(
    tables: Tables, erased: Collection[tuple[str, str]], day: str, batch: str, at: int
) -> None:
    """Add (hash of the record id, content digest) pairs, where the ids themselves are not known."""
    tables.create([ERASURES])
    table = tables.table(ERASURES)
    if table is not None and table.transaction_version(batch) is not None:
        return
    files = tables.part_files(ERASURES, day, batch)
    ordered = sorted(erased)
    columns = {
        "day": [day] * len(ordered),
        "id_hash": [hashed for hashed, _ in ordered],
        "content_digest": [digest for _, digest in ordered],
    }
    files.write(pa.RecordBatch.from_pydict(columns, schema=ERASURES_SCHEMA))
    tables.commit(ERASURES, files, {}, at)


def id_hash(record_id: str) -> str:
    """Return the hash by which an erased record's id is known."""
    return hashlib.sha256(f"record:{record_id}".encode()).hexdigest()
