"""Takes records out of the lake's tables for good: rows, quarantined texts, and the old files.

Knows Delta tables only; which other files hold a record's text, tasks/erasing.py knows.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from core.contracts import Message
from core.digests import digest_bytes
from lake.commits import WrittenFile, commit_files
from lake.schema import PARTITION, QUARANTINE, RECORDS
from lake.table import Lake
from lake.tombstones import add_tombstones

TEXT_CHARACTERS_MIN = 8
"""Shorter texts stand in too many places to tell whose they are; such as the answer `yes`."""
ERASED_TEXT = ""


@dataclass(frozen=True, slots=True)
class FoundRecord:
    """One row of the records table. `texts` are what its person or model said.

    `messages` are its turns before the answer, as builtins.
    """

    record_id: str
    content_digest: str
    day: str
    file_digest: str
    texts: tuple[str, ...]
    messages: Any


@dataclass(frozen=True, slots=True)
class QuarantineSearch:
    """Which quarantined rows (file digest, row number) hold the records' texts.

    True for one version of the table; None: there was no table.
    """

    version: int | None
    rows: frozenset[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class ErasedRows:
    """What was taken out: rows of records, quarantined texts, and data files removed for good."""

    records: int
    quarantined: int
    files: int


def find_records(lake: Lake, record_ids: Collection[str]) -> list[FoundRecord]:
    """Return the lake's rows of these records; a file that came in later may hold one again."""
    table = lake.table()
    if table is None:
        return []
    columns = ["record_id", "content_digest", "day", "file_digest", "messages", "response"]
    condition = ds.field("record_id").isin(sorted(record_ids))
    batches = table.to_pyarrow_dataset().scanner(columns, filter=condition).to_batches()
    return [_found(row) for batch in batches for row in batch.to_pylist()]


def quarantined_with(
    lake: Lake, found: Iterable[FoundRecord], before: QuarantineSearch | None = None
) -> QuarantineSearch:
    """Find the quarantined rows whose text names one of the records or repeats its texts.

    Every text is read; where the table is still the one of the search `before`, that one counts.
    """
    table = lake.table(QUARANTINE)
    version = None if table is None else table.version()
    if before is not None and before.version == version:
        return before
    marks = {mark for record in found for mark in _marks(record)}
    if table is None or not marks:
        return QuarantineSearch(version, frozenset())
    rows = (
        row
        for batch in table.to_pyarrow_dataset().to_batches(columns=["file_digest", "row", "text"])
        for row in batch.to_pylist()
    )
    hits = [row for row in rows if any(mark in row["text"] for mark in marks)]
    return QuarantineSearch(version, frozenset((row["file_digest"], row["row"]) for row in hits))


def bury(
    lake: Lake, record_ids: Collection[str], found: Sequence[FoundRecord], batch: str, at: int
) -> None:
    """Set the tombstones, so that from now on nothing of these records comes in.

    `batch` names this erasure, `at` is its time in seconds; again with the same name is harmless.
    """
    digests = {record.record_id: record.content_digest for record in found}
    pairs = [(record_id, digests.get(record_id, "")) for record_id in record_ids]
    with lake.one_writer():
        add_tombstones(lake, pairs, f"erased-{batch[:12]}", batch, at)


def erase_rows(
    lake: Lake,
    record_ids: Collection[str],
    found: Sequence[FoundRecord],
    batch: str,
    at: int,
    before: QuarantineSearch | None = None,
) -> ErasedRows:
    """Take records out of the tables, by writing the data files that hold them anew.

    May be repeated. `before` is what a plan found in quarantine. Old data files go at once; earlier
    states of the tables cannot be read then.
    """
    with lake.one_writer():
        refused = quarantined_with(lake, found, before).rows
        gone = frozenset(record_ids)

        def kept(rows: pa.RecordBatch) -> pa.RecordBatch:
            ids = rows.column("record_id").to_pylist()
            return rows.filter(pa.array([record_id not in gone for record_id in ids], pa.bool_()))

        def blanked(rows: pa.RecordBatch) -> pa.RecordBatch:
            names = zip(
                rows.column("file_digest").to_pylist(), rows.column("row").to_pylist(), strict=True
            )
            hits = pa.array([name in refused for name in names], pa.bool_())
            place = rows.schema.get_field_index("text")
            texts = pc.if_else(hits, ERASED_TEXT, rows.column("text"))
            return rows.set_column(place, rows.schema.field(place), texts)

        if refused:
            files = ds.field("file_digest").isin(sorted({digest for digest, _ in refused}))
            _rewrite(lake, QUARANTINE, files, blanked, batch, at)
        if found:
            _rewrite(lake, RECORDS, ds.field("record_id").isin(sorted(gone)), kept, batch, at)
        removed = lake.retention(hours=0, dry_run=False)
    return ErasedRows(len(found), len(refused), sum(map(len, removed.files.values())))


def _rewrite(
    lake: Lake,
    name: str,
    condition: Any,
    change: Callable[[pa.RecordBatch], pa.RecordBatch],
    batch: str,
    at: int,
) -> None:
    """Replace each data file that has rows of the condition by its changed rows, a commit each.

    delta-rs's own deletion would name records in the log, and writes files that pyarrow cannot
    filter (its strings are views).
    """
    table = lake.table(name)
    assert table is not None
    dataset = table.to_pyarrow_dataset()
    for fragment in dataset.get_fragments():
        if not fragment.count_rows(filter=condition):
            continue
        day = ds.get_partition_keys(fragment.partition_expression)[PARTITION]
        files = lake.part_files(
            name, day, f"{batch[:16]}-{digest_bytes(fragment.path.encode())[:16]}"
        )
        for rows in fragment.to_batches(schema=dataset.schema):
            files.write(change(rows))
        old = fragment.filesystem.get_file_info(fragment.path).size
        commit_files(
            address=lake.address(name),
            day=day,
            batch=files.batch,
            files=files.finish(),
            metadata={},
            judged_at=at,
            storage_options=lake.storage_options,
            replaced=[WrittenFile(fragment.path, fragment.count_rows(), old)],
        )


def _found(row: dict[str, Any]) -> FoundRecord:
    turns = msgspec.json.decode(row["messages"], type=tuple[Message, ...])
    texts = (*(turn.content for turn in turns if turn.role != "system"), row["response"])
    return FoundRecord(
        record_id=row["record_id"],
        content_digest=row["content_digest"],
        day=row["day"],
        file_digest=row["file_digest"],
        texts=tuple(text for text in texts if len(text) >= TEXT_CHARACTERS_MIN),
        messages=msgspec.to_builtins(turns),
    )


def _marks(record: FoundRecord) -> list[str]:
    """Return what tells a text as the record's: its id as JSON writes it, and what was said."""
    written = [msgspec.json.encode(text).decode()[1:-1] for text in record.texts]
    return [msgspec.json.encode(record.record_id).decode(), *record.texts, *written]
