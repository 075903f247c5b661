"""One day file into the lake in parts: prepared, matched and written anywhere, judged here as one.

Equal rows meet by digest, similar ones by band key; of a group the first row of the file stays. So
the outcome depends neither on the number of parts nor on the order in which they are done.
"""

import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from core.clusters import components
from core.contracts import IntakeEvidence
from core.errors import ConfigurationError, InputError
from core.sketches import Array
from lake.duplicates import MARGIN, VERDICTS, DuplicateIndex
from lake.index import joined, look_name
from lake.log import METADATA_KEY, BatchEntry, FileState, batch_name
from lake.parts import (
    IS_EXACT,
    IS_NEAR,
    IS_NEW,
    IS_TAKEN,
    Matches,
    Matching,
    Preparation,
    PreparedPart,
    Writing,
    chosen_sketches,
    match_bucket,
    open_columns,
    plan_parts,
    prepare_part,
    write_part,
)
from lake.parts_progress import PartsProgress
from lake.preparation import Intake, stored_tokenizer
from lake.progress import Watch
from lake.schema import QUARANTINE, RECORDS
from lake.sources import DayFile
from lake.tables import Tables

SCRATCH = ".parts"
LOOK_ROWS = 100_000
"""Rows that are looked up in the index at once."""
SAMPLED_ROWS_MAX = 5000
Spread = Callable[[Callable[[Any], Any], Sequence[Any]], Iterable[Any]]
"""spread(step, orders): do step(order) for each order, somewhere; results in the orders' order."""


class PartsRun:
    """One file's way in, spread over workers; one commit in each table."""

    def __init__(
        self,
        tables: Tables,
        intake: Intake,
        state: FileState,
        settings: str,
        index: DuplicateIndex,
        day_file: DayFile,
        stamp: tuple[str, ...],
        spread: Spread,
        watch: Watch | None,
    ) -> None:
        self._tables, self._intake, self._settings = tables, intake, settings
        self._index, self._day_file, self._stamp = index, day_file, stamp
        self._spread = spread
        self._batch = batch_name(intake.file_digest, state.attempt, 0)
        self._evidence = IntakeEvidence((), ())
        self._progress = PartsProgress(day_file.name, day_file.size_bytes, watch)

    def take(self, fields_required: bool) -> None:
        """Take the whole file in. What an interrupted run left in the scratch folder is redone."""
        folder = self._folder()
        # In the lake's own scratch folder nothing else is alive: the caller holds the lake's lock.
        own = not self._intake.config.scale.scratch
        shutil.rmtree(folder.parent if own else folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            prepared = self._prepare(folder, fields_required)
            verdicts = self._match(folder, prepared)
            looks = self._look(folder, prepared, verdicts)
            _refuse_taken_ids(folder, prepared, verdicts)
            self._progress.add(
                duplicates=int(np.isin(verdicts, (IS_EXACT, IS_NEAR)).sum()),
                quarantined=int((verdicts == IS_TAKEN).sum()),
            )
            self._write(folder, prepared, verdicts, looks)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def evidence(self) -> IntakeEvidence:
        """Return what this run leaves for the contract's report: a bounded draw of the rows."""
        return self._evidence

    def _folder(self) -> Path:
        scratch = self._intake.config.scale.scratch
        if not scratch and "://" in self._tables.uri:
            raise ConfigurationError("give scale.scratch: a folder that all workers see")
        return Path(scratch or f"{self._tables.uri}/{SCRATCH}").absolute() / self._batch

    def _prepare(self, folder: Path, fields_required: bool) -> list[PreparedPart]:
        parts = plan_parts(self._day_file, self._intake.config.scale.parts)
        orders = [
            Preparation(
                part, self._day_file, self._intake, folder, fields_required and not part.number
            )
            for part in parts
        ]
        prepared: list[PreparedPart] = []
        done = self._spread(prepare_part, orders)
        for part in self._progress.following("prepare", done, len(orders)):
            self._progress.add(part.rows_in, 0, part.refused, part.size_bytes)
            prepared.append(part)
        return prepared

    def _match(self, folder: Path, prepared: Sequence[PreparedPart]) -> Array:
        """Return the verdict on each record, within the file alone."""
        least = self._intake.config.duplicates.similarity_min - MARGIN
        records = tuple(part.records for part in prepared)
        buckets = len(prepared)
        orders = [Matching(bucket, buckets, records, folder, least) for bucket in range(buckets)]
        done = self._spread(match_bucket, orders)
        matches = [*self._progress.following("match", done, buckets)]
        return judge_matches(sum(records), matches)

    def _look(self, folder: Path, prepared: Sequence[PreparedPart], verdicts: Array) -> int:
        """Look what is left up in the index, in the file's order; return the number of looks."""
        columns = [open_columns(folder, part.number) for part in prepared]
        starts = np.cumsum([0, *(part.records for part in prepared)])
        left = np.flatnonzero(verdicts == IS_NEW)
        looks = 0
        for begin in range(0, len(left), LOOK_ROWS):
            rows = left[begin : begin + LOOK_ROWS]
            sketches = []
            for part, start, end in zip(columns, starts, starts[1:], strict=False):
                chosen = np.zeros(end - start, dtype=bool)
                chosen[rows[(rows >= start) & (rows < end)] - start] = True
                if chosen.any():
                    sketches.append(chosen_sketches(part, chosen))
            told = self._index.look(look_name(self._batch, looks), joined(sketches))
            verdicts[rows] = [VERDICTS.index(verdict) for verdict in told]
            looks += 1
            self._progress.tell("look", len(rows) / len(left))
        if not looks:
            self._progress.tell("look", 1.0)
        return looks

    def _write(
        self, folder: Path, prepared: Sequence[PreparedPart], verdicts: Array, looks: int
    ) -> None:
        """Write the parts, then commit: quarantine first, as everywhere (ingestion.py says why)."""
        tables, intake = self._tables, self._intake
        addresses = {name: tables.address(name) for name in (RECORDS, QUARANTINE)}
        records = np.cumsum([0, *(part.records for part in prepared)])
        rows = np.cumsum([0, *(part.rows_in for part in prepared)])
        orders = [
            Writing(
                part,
                intake,
                self._batch,
                folder,
                addresses,
                tables.storage_options,
                verdicts[records[place] : records[place + 1]],
                int(rows[place]),
            )
            for place, part in enumerate(prepared)
        ]
        done = self._spread(write_part, orders)
        written = [*self._progress.following("write", done, len(orders))]
        if self._day_file.stamp() != self._stamp:
            raise InputError(f"{self._day_file.url} changed while it was read; run again")
        entry = BatchEntry(
            day=intake.day,
            source=intake.source,
            file_digest=intake.file_digest,
            rows_in=int(rows[-1]),
            kept=sum(part.records for part in written),
            duplicates=int(np.isin(verdicts, (IS_EXACT, IS_NEAR)).sum()),
            quarantined=sum(part.refused for part in written),
            looks=looks,
            near=int((verdicts == IS_NEAR).sum()),
            tokens=sum(part.tokens for part in written),
            settings=self._settings,
            judged_at=intake.judged_at,
            intake=intake.kept_settings(),
            tokenizer=stored_tokenizer(intake.config),
        )
        metadata = {METADATA_KEY: msgspec.json.encode(entry).decode()}
        for name in (QUARANTINE, RECORDS):
            files = [file for part in written for file in part.files[name]]
            if files or name == RECORDS:
                tables.commit_written(
                    name, intake.day, self._batch, files, metadata, int(intake.judged_at)
                )
        for look in range(looks):
            self._index.commit(look_name(self._batch, look))
        self._evidence = _evidence(intake.file_digest, prepared, entry)


def judge_matches(records: int, matches: Sequence[Matches]) -> Array:
    """Return the verdict on each record of a file from what the buckets found. Pure.

    A repeated row speaks for its first one in near pairs; of linked rows the first stays.
    """
    verdicts = np.full(records, IS_NEW, dtype=np.uint8)
    heads = np.arange(records)
    for found in matches:
        verdicts[found.repeats] = IS_EXACT
        heads[found.repeats] = found.heads
    pairs = np.concatenate([np.empty((0, 2), np.int64), *(heads[one.pairs] for one in matches)])
    linked, places = np.unique(pairs, return_inverse=True)
    groups = components(len(linked), places.reshape(-1, 2).tolist())
    verdicts[linked[groups != np.arange(len(linked))]] = IS_NEAR
    return verdicts


def _refuse_taken_ids(folder: Path, prepared: Sequence[PreparedPart], verdicts: Array) -> None:
    """Refuse new rows whose record id an earlier new row of the file has."""
    ids = np.concatenate([open_columns(folder, part.number)["ids"] for part in prepared])
    new = np.flatnonzero(verdicts == IS_NEW)
    first = np.unique(ids[new], return_index=True)[1]
    taken = np.ones(len(new), dtype=bool)
    taken[first] = False
    verdicts[new[taken]] = IS_TAKEN


def _evidence(
    file_digest: str, prepared: Sequence[PreparedPart], entry: BatchEntry
) -> IntakeEvidence:
    sample = [row for part in prepared for row in part.sample]
    draw = random.Random(file_digest)
    chosen = draw.sample(sample, min(SAMPLED_ROWS_MAX, len(sample)))
    reasons: Counter[str] = Counter()
    for part in prepared:
        reasons.update(part.reasons)
    told: Mapping[str, Any] = {
        "rows": entry.rows_in, "refused": entry.quarantined, "reasons": dict(reasons)
    }  # fmt: skip
    return IntakeEvidence((told,), tuple(chosen))
