"""Which records a snapshot or a training held: sorted lists of ids and digests, without any text.

The lists outlive the rows and the snapshot's cache; they are what lineage is answered from.
"""

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROW_GROUP_ROWS = 20_000
SUFFIX = ".parquet"
SCHEMA = pa.schema(
    [("record_id", pa.string()), ("content_digest", pa.string()), ("role", pa.string())]
)


@dataclass(frozen=True, slots=True)
class Member:
    """One record of a list. `role`: training, held_out (snapshots); new, replayed (trainings)."""

    record_id: str
    content_digest: str
    role: str


def write_members(folder: Path, name: str, members: Iterable[Member]) -> Path:
    """Write a list, sorted by id, in one step; the same name again replaces it."""
    ordered = sorted(members, key=lambda member: (member.record_id, member.content_digest))
    columns = {field.name: [getattr(member, field.name) for member in ordered] for field in SCHEMA}
    folder.mkdir(parents=True, exist_ok=True)
    draft = folder / f".{name}.{os.getpid()}"
    table = pa.table(columns, schema=SCHEMA)
    pq.write_table(table, draft, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    path = folder / f"{name}{SUFFIX}"
    draft.replace(path)
    return path


def read_members(folder: Path, name: str) -> list[Member] | None:
    """Return a list; None when there is none of this name."""
    path = folder / f"{name}{SUFFIX}"
    if not path.is_file():
        return None
    return [Member(**row) for row in pq.read_table(path).to_pylist()]


def lists_with(folder: Path, record_ids: Collection[str]) -> Mapping[str, list[Member]]:
    """Return the lists that hold any of the records, by name, with those members.

    Each list is sorted, so that only the row groups that can hold an id are read.
    """
    found = {}
    for path in _paths(folder):
        table = pq.read_table(path, filters=[("record_id", "in", sorted(record_ids))])
        if table.num_rows:
            found[path.stem] = [Member(**row) for row in table.to_pylist()]
    return found


def _paths(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from sorted(path for path in folder.glob(f"*{SUFFIX}") if path.name[0] != ".")
