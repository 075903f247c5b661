"""The lake: what came in as versions, days and rows of append-only Delta tables.

How a row becomes good, preparation.py knows; how a file comes in, ingestion.py.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.dataset as ds

from core.contracts import IntakeEvidence, Message, Record
from lake.ingestion import take_in
from lake.log import VersionEntry, file_states
from lake.preparation import CheckRows, DescribeRows
from lake.progress import Watch
from lake.schema import (
    ERASURES,
    QUARANTINE,
    RECORDS,
    RECORDS_SCHEMA,
    TOKEN_IDS,
    has_token_ids,
)
from lake.sources import DayFile, IngestConfig
from lake.spreading import Spread
from lake.tables import Tables
from lake.tombstones import read_tombstones

__all__ = ["IngestReport", "Lake", "LakeStatistics", "RetentionPlan", "VersionEntry", "record_of"]

READ_BATCH_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of one day file. rows_in = kept + duplicates + quarantined, always.

    Of the duplicates `near_duplicates` are only alike. `version` is the Delta version of `records`
    with which all its rows were in; with `already_ingested` the figures are those of the first
    time, and there is no `evidence`. `tokens` of kept rows are 0 where none were counted.
    """

    day: str
    rows_in: int
    kept: int
    duplicates: int
    quarantined: int
    already_ingested: bool
    version: int
    near_duplicates: int = 0
    tokens: int = 0
    evidence: IntakeEvidence | None = field(default=None, compare=False, repr=False)


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


class Lake(Tables):
    """The lake below one path or object-store URL: what came in, and what is in it.

    `index_folder` is where the duplicate index lies; default: in the lake's own folder.
    """

    def __init__(
        self,
        uri: str,
        storage_options: Mapping[str, str] | None = None,
        index_folder: Path | None = None,
    ) -> None:
        super().__init__(uri, storage_options)
        self.index_folder = index_folder

    def head_version(self) -> int | None:
        """Return the newest version of `records`, or None before the first day."""
        table = self.table()
        return None if table is None else table.version()

    def versions(self) -> list[VersionEntry]:
        """Return every whole day file, oldest first; one that is half in is none."""
        states = file_states(self.history()).values()
        whole = [state.entry() for state in states if state.whole]
        return sorted(whole, key=lambda entry: entry.version)

    def ingest_day(
        self,
        day_file: DayFile,
        config: IngestConfig,
        check: CheckRows,
        flagged: Collection[int] = (),
        watch: Watch | None = None,
        describe: DescribeRows | None = None,
        spread: Spread | None = None,
    ) -> IngestReport:
        """Bring one day file in: it is a version when all of it is in, and nothing before.

        The same bytes again add nothing. A row whose content an earlier day has is a duplicate,
        unless that day's version is `flagged`: else a corrected file could never replace a
        poisoned one. `watch` is told of the progress; with `describe` the report has evidence of
        what the contract saw; `spread` does the work on parts of the file, elsewhere. Raises
        InputError for a wrong mapping or a file that changes while it is read, ConflictError when
        another process wrote first.
        """
        entry, evidence = take_in(
            self, day_file, config, check, flagged, watch, describe, self.index_folder, spread
        )
        return IngestReport(
            day=entry.day,
            rows_in=entry.rows_in,
            kept=entry.kept,
            duplicates=entry.duplicates,
            quarantined=entry.quarantined,
            already_ingested=evidence is None,
            version=entry.version,
            near_duplicates=entry.near_duplicates,
            tokens=entry.tokens,
            evidence=evidence,
        )

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
        scanner = table.to_pyarrow_dataset().scanner(
            RECORDS_SCHEMA.names, filter=condition, batch_size=READ_BATCH_ROWS
        )
        for batch in scanner.to_batches():
            if batch.num_rows:
                yield batch.to_pylist()

    def stored_tokens(self, versions: Collection[int]) -> Iterator[pa.RecordBatch]:
        """Yield record_id and token_ids of the versions' rows whose ids are stored, in batches.

        A version's `tokenizer` is the digest of the tokenizer that its ids belong to.
        """
        table = self.table()
        condition = _of_versions(self.versions(), versions)
        if table is None or condition is None or not has_token_ids(table):
            return
        stored = condition & ds.field(TOKEN_IDS.name).is_valid()
        yield from self.columns(["record_id", TOKEN_IDS.name], stored)

    def slice_names(self, versions: Collection[int]) -> set[str]:
        """Return the slices that rows of the given versions belong to."""
        condition = _of_versions(self.versions(), versions)
        if condition is None:
            return set()
        batches = self.columns(["slice_name"], condition)
        return {name for batch in batches for name in batch.column("slice_name").to_pylist()}

    def slice_counts(self, versions: Collection[int]) -> dict[str, int]:
        """Count the training rows of the given versions by slice."""
        condition = _of_versions(self.versions(), versions)
        if condition is None:
            return {}
        counts: Counter[str] = Counter()
        for batch in self.columns(["slice_name"], condition & ~ds.field("held_out")):
            counts.update(batch.column("slice_name").to_pylist())
        return dict(sorted(counts.items()))

    def statistics(self) -> LakeStatistics:
        """Count rows, versions and quarantined rows."""
        entries = self.versions()
        slices: Counter[str] = Counter()
        held_out_rows = 0
        for batch in self.columns(["slice_name", "held_out"]):
            slices.update(batch.column("slice_name").to_pylist())
            held_out_rows += sum(batch.column("held_out").to_pylist())
        reasons: Counter[str] = Counter()
        for batch in self.columns(["reason"], name=QUARANTINE):
            # What follows the colon is the decoder's detail of one row.
            reasons.update(text.split(":")[0] for text in batch.column("reason").to_pylist())
        return LakeStatistics(
            rows=slices.total(),
            held_out_rows=held_out_rows,
            head_version=self.head_version(),
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

    def erased_among(self, record_ids: Iterable[str]) -> set[str]:
        """Return those of the ids whose records were erased on request."""
        return read_tombstones(self).among(record_ids)

    def retention(self, hours: int = 168, dry_run: bool = True) -> RetentionPlan:
        """Plan (and without `dry_run` remove) files that no version needs and older than `hours`.

        Those are left-overs of interrupted writes and of deleted rows; days stay readable.
        """
        files: dict[str, tuple[str, ...]] = {}
        for name in (RECORDS, QUARANTINE, ERASURES):
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
