"""The lake: two Delta tables, append-only. One day file is one commit of `records`.

Knows versions, days and rows; how a row becomes good, ingestion.py knows.
"""

import fcntl
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from deltalake import DeltaTable
from deltalake.exceptions import TableNotFoundError

from core.contracts import Message, Record
from core.errors import ConflictError, InputError
from lake.commits import commit_spool
from lake.ingestion import DIGEST_PREFIX, CheckRows, DigestSet, PreparedDay, Spool, prepare_day
from lake.schema import QUARANTINE, RECORDS, create_table, require_current
from lake.sources import DayFile, IngestConfig

METADATA_KEY = "serin"
READ_BATCH_ROWS = 10_000
HISTORY_ENTRIES_MAX = 100_000


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of one day file. rows_in = kept + duplicates + quarantined, always.

    `version` is the Delta version of `records` that holds its rows; with `already_ingested` the
    figures are those of the first time.
    """

    day: str
    rows_in: int
    kept: int
    duplicates: int
    quarantined: int
    already_ingested: bool
    version: int


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """One commit of a day file, as its metadata in the Delta log tells."""

    version: int
    day: str
    source: str
    file_digest: str
    rows_in: int
    kept: int
    duplicates: int
    quarantined: int


@dataclass(frozen=True, slots=True)
class LakeStatistics:
    """Figures for `serin status`. `days` are in the order of arrival."""

    rows: int
    held_out_rows: int
    head_version: int | None
    versions: int
    days: tuple[str, ...]
    rows_by_slice: Mapping[str, int]
    quarantined: int
    quarantined_by_reason: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """Files that no kept version of a table needs, by table; `dry_run`: nothing was removed."""

    files: Mapping[str, tuple[str, ...]]
    dry_run: bool


class Lake:
    """The records and quarantine tables below one path or object-store URL.

    `storage_options` are delta-rs' (credentials also come from the environment). Every method
    raises RefusedError for a lake of another schema version.
    """

    def __init__(self, uri: str, storage_options: Mapping[str, str] | None = None) -> None:
        self.uri = uri.rstrip("/")
        self.storage_options = dict(storage_options) if storage_options else None

    def address(self, name: str = RECORDS) -> str:
        """Return the path or URL of one table."""
        return f"{self.uri}/{name}"

    def table(self, name: str = RECORDS) -> DeltaTable | None:
        """Open one table at its newest version, or return None before the first day."""
        try:
            table = DeltaTable(self.address(name), storage_options=self.storage_options)
        except TableNotFoundError:
            return None
        require_current(table)
        return table

    def head_version(self) -> int | None:
        """Return the newest version of `records`, or None before the first day."""
        table = self.table()
        return None if table is None else table.version()

    def versions(self) -> list[VersionEntry]:
        """Return every ingested day file, oldest first."""
        table = self.table()
        if table is None:
            return []
        entries = [
            VersionEntry(version=entry["version"], **msgspec.json.decode(entry[METADATA_KEY]))
            for entry in table.history(HISTORY_ENTRIES_MAX)
            if METADATA_KEY in entry
        ]
        return sorted(entries, key=lambda entry: entry.version)

    def ingest_day(
        self,
        day_file: DayFile,
        config: IngestConfig,
        check: CheckRows,
        flagged: Collection[int] = (),
    ) -> IngestReport:
        """Bring one day file in: all of it in one commit, or nothing.

        The same bytes again add nothing. A row whose content an earlier day has is a duplicate,
        unless that day's version is `flagged`: else a corrected file could never replace a
        poisoned one. Raises InputError for a wrong mapping or a file that changes while it is
        read, ConflictError when another process wrote first.
        """
        with self._one_writer():
            stamp, file_digest = day_file.stamp(), day_file.digest()
            for name in (RECORDS, QUARANTINE):
                if self.table(name) is None:
                    create_table(self.address(name), name, self.storage_options)
            entries = self.versions()
            for entry in entries:
                if entry.file_digest == file_digest:
                    return _report(entry, already_ingested=True)
            barred = {entry.file_digest for entry in entries if entry.version in flagged}
            known = DigestSet(self._content_prefixes(barred))
            has_rows = any(entry.kept for entry in entries)
            prepared = prepare_day(day_file, file_digest, config, check, known, not has_rows)
            try:
                if day_file.stamp() != stamp:
                    raise InputError(f"{day_file.url} changed while it was read; run again")
                return self._commit(day_file, file_digest, prepared)
            finally:
                prepared.close()

    def rows(
        self, versions: Collection[int], held_out: bool | None = None
    ) -> Iterator[Sequence[Mapping[str, Any]]]:
        """Yield the rows that came in with the given versions, in bounded batches."""
        table = self.table()
        condition = _of_versions(self.versions(), versions)
        if table is None or condition is None:
            return
        if held_out is not None:
            condition &= ds.field("held_out") == held_out
        scanner = table.to_pyarrow_dataset().scanner(filter=condition, batch_size=READ_BATCH_ROWS)
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch.to_pylist()

    def slice_names(self, versions: Collection[int]) -> set[str]:
        """Return the slices that rows of the given versions belong to."""
        condition = _of_versions(self.versions(), versions)
        table = None if condition is None else self.table()
        batches = _columns(table, ["slice_name"], condition)
        return {name for batch in batches for name in batch.column("slice_name").to_pylist()}

    def statistics(self) -> LakeStatistics:
        """Count rows, versions and quarantined rows."""
        table, refused = self.table(), self.table(QUARANTINE)
        entries = self.versions()
        slices: Counter[str] = Counter()
        held_out_rows = 0
        for batch in _columns(table, ["slice_name", "held_out"]):
            slices.update(batch.column("slice_name").to_pylist())
            held_out_rows += sum(batch.column("held_out").to_pylist())
        reasons: Counter[str] = Counter()
        for batch in _columns(refused, ["reason"]):
            # What follows the colon is the decoder's detail of one row.
            reasons.update(text.split(":")[0] for text in batch.column("reason").to_pylist())
        return LakeStatistics(
            rows=slices.total(),
            held_out_rows=held_out_rows,
            head_version=None if table is None else table.version(),
            versions=len(entries),
            days=tuple(dict.fromkeys(entry.day for entry in entries)),
            rows_by_slice=dict(slices.most_common()),
            quarantined=reasons.total(),
            quarantined_by_reason=dict(reasons.most_common()),
        )

    def quarantined(
        self, day: str | None = None, reason: str | None = None, limit: int = 100
    ) -> list[dict[str, Any]]:
        """List quarantined rows, by file and row. `reason` is a part of the reason."""
        table = self.table(QUARANTINE)
        if table is None:
            return []
        condition = None if day is None else ds.field("day") == day
        rows = [
            row
            for batch in table.to_pyarrow_dataset().scanner(filter=condition).to_batches()
            for row in batch.to_pylist()
            if reason is None or reason in row["reason"]
        ]
        return sorted(rows, key=lambda row: (row["day"], row["source"], row["row"]))[:limit]

    def retention(self, hours: int = 168, dry_run: bool = True) -> RetentionPlan:
        """Plan (and without `dry_run` remove) files that no version needs and older than `hours`.

        Those are left-overs of interrupted writes and of deleted rows; days stay readable.
        """
        files: dict[str, tuple[str, ...]] = {}
        for name in (RECORDS, QUARANTINE):
            table = self.table(name)
            if table is not None:
                found = table.vacuum(
                    retention_hours=hours,
                    dry_run=dry_run,
                    enforce_retention_duration=False,
                    full=True,
                )
                files[name] = tuple(sorted(found))
        return RetentionPlan(files, dry_run)

    def _content_prefixes(self, barred: Collection[str]) -> np.ndarray[Any, np.dtype[np.uint64]]:
        condition = ~ds.field("file_digest").isin(sorted(barred)) if barred else None
        parts = [np.empty(0, dtype=np.uint64)]
        for batch in _columns(self.table(), ["content_digest"], condition):
            digests = batch.column("content_digest").to_pylist()
            numbers = (int(digest[:DIGEST_PREFIX], 16) for digest in digests)
            parts.append(np.fromiter(numbers, dtype=np.uint64))
        return np.concatenate(parts)

    def _commit(self, day_file: DayFile, file_digest: str, prepared: PreparedDay) -> IngestReport:
        told = {
            "day": day_file.day,
            "source": day_file.name,
            "file_digest": file_digest,
            "rows_in": prepared.rows_in,
            "kept": prepared.records.rows,
            "duplicates": prepared.duplicates,
            "quarantined": prepared.quarantine.rows,
        }
        # Quarantine first, under the file's own transaction: a kill between the two commits is
        # made good by the next run, which finds the first one done.
        refused = self.table(QUARANTINE)
        if refused is None or refused.transaction_version(file_digest) is None:
            self._append(QUARANTINE, prepared.quarantine, told)
        self._append(RECORDS, prepared.records, told)
        for entry in reversed(self.versions()):
            if entry.file_digest == file_digest:
                return _report(entry, already_ingested=False)
        raise ConflictError(f"the commit of {day_file.name} is not in the log; run again")

    def _append(self, name: str, spool: Spool, told: Mapping[str, Any]) -> None:
        metadata = {METADATA_KEY: msgspec.json.encode(told).decode()} if name == RECORDS else {}
        table = DeltaTable(self.address(name), storage_options=self.storage_options)
        commit_spool(table, spool, told["day"], told["file_digest"], metadata, self.storage_options)

    @contextmanager
    def _one_writer(self) -> Iterator[None]:
        """Hold a lock for a local lake, so that two processes cannot take the same file in."""
        if "://" in self.uri:
            yield
            return
        Path(self.uri).mkdir(parents=True, exist_ok=True)
        handle = os.open(f"{self.uri}/ingest.lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def record_of(row: Mapping[str, Any]) -> Record:
    """Return the value type of a stored row."""
    return Record(
        record_id=row["record_id"],
        day=row["day"],
        created_at=row["created_at"],
        slice_name=row["slice_name"],
        messages=msgspec.json.decode(row["messages"], type=tuple[Message, ...]),
        response=row["response"],
    )


def _of_versions(entries: Sequence[VersionEntry], versions: Collection[int]) -> Any:
    """Return the condition for the rows of some versions; None for no version."""
    chosen = [entry for entry in entries if entry.version in versions]
    if not chosen:
        return None
    days = ds.field("day").isin(sorted({entry.day for entry in chosen}))
    return days & ds.field("file_digest").isin([entry.file_digest for entry in chosen])


def _columns(
    table: DeltaTable | None, columns: list[str], condition: Any = None
) -> Iterator[pa.RecordBatch]:
    if table is not None:
        yield from table.to_pyarrow_dataset().scanner(columns, filter=condition).to_batches()


def _report(entry: VersionEntry, already_ingested: bool) -> IngestReport:
    return IngestReport(
        day=entry.day,
        rows_in=entry.rows_in,
        kept=entry.kept,
        duplicates=entry.duplicates,
        quarantined=entry.quarantined,
        already_ingested=already_ingested,
        version=entry.version,
    )
