"""One day file into the lake, exactly once: prepared blocks, deduplicated, in batches of commits.

Knows batches and their order; how a block is prepared, preparation.py knows.
"""

import logging
import random
import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from core.contracts import IntakeEvidence
from core.digests import digest_json
from core.errors import ConflictError, InputError
from lake.config import IngestConfig
from lake.duplicates import DuplicateIndex
from lake.index import joined, look_name, opened_index
from lake.known import DigestSet, prefixes_of_texts
from lake.log import METADATA_KEY, BatchEntry, FileState, VersionEntry, batch_name, file_states
from lake.preparation import (
    CheckRows,
    DescribeRows,
    Intake,
    PreparedBlock,
    after_rows,
    stored_tokenizer,
    taken_rows,
    tokens_of,
)
from lake.progress import Progress, Watch
from lake.schema import QUARANTINE, RECORDS
from lake.sources import DayFile, day_blocks
from lake.spreading import PartsRun, Spread
from lake.tables import Tables
from lake.tombstones import read_tombstones
from lake.workers import prepared_blocks

LOOK_BYTES = 32 << 20
"""Raw bytes whose rows are looked up in the duplicate index at once; held in memory until then."""
PARALLEL_BYTES_MIN = 32 << 20
"""Smaller files are taken in by one process: starting others takes longer."""
SAMPLED_ROWS_MAX, SAMPLED_ROWS_HELD = 5000, 10_000
LOG = logging.getLogger("serin.ingestion")


def take_in(
    tables: Tables,
    day_file: DayFile,
    config: IngestConfig,
    check: CheckRows,
    flagged: Collection[int] = (),
    watch: Watch | None = None,
    describe: DescribeRows | None = None,
    index_folder: Path | None = None,
    spread: Spread | None = None,
) -> tuple[VersionEntry, IntakeEvidence | None]:
    """Bring one day file in, batch by batch; return it and the evidence, None if it was there.

    A file that a kill left half in goes on after its last batch. With `spread` the file comes in
    by parts, as `config.scale` says. Raises InputError for a wrong mapping or a file that changes
    while it is read, ConflictError when another process wrote first.
    """
    with tables.one_writer():
        stamp, file_digest = day_file.stamp(), day_file.digest()
        tables.create()
        if config.stores_tokens:
            tables.store_tokens()
        states = file_states(tables.history())
        state = states.get(file_digest, FileState())
        if state.whole:
            return state.entry(), None
        refused = file_states(tables.history(QUARANTINE))
        settings = settings_digest(config)
        state = _resumable(tables, day_file, state, refused.get(file_digest), settings)
        _discard_halves(tables, states, refused, file_digest)
        whole = [found.entry() for found in states.values() if found.whole]
        barred = {entry.file_digest for entry in whole if entry.version in flagged}
        intake = Intake(
            day=day_file.day,
            source=day_file.name,
            file_digest=file_digest,
            config=config,
            check=check,
            judged_at=state.judged_at or float(int(time.time())),
            describe=describe,
            tombstones=read_tombstones(tables),
        )
        alive = {digest: found for digest, found in states.items() if found.whole}
        with opened_index(
            tables, config.duplicates, {**alive, file_digest: state}, barred, index_folder
        ) as index:
            first = not any(entry.kept for entry in whole)
            if spread is not None:
                parts = PartsRun(
                    tables, intake, state, settings, index, day_file, stamp, spread, watch
                )
                parts.take(first)
                evidence = parts.evidence()
            else:
                run = _Run(tables, intake, state, settings, index, day_file, stamp)
                run.take(first, watch)
                evidence = run.evidence()
        state = file_states(tables.history()).get(file_digest, FileState())
        if not state.whole:
            raise ConflictError(f"the commit of {day_file.name} is not in the log; run again")
        return state.entry(), evidence


def settings_digest(config: IngestConfig) -> str:
    """Return a digest of all settings on which a file's rows and batches depend."""
    names = {
        "mapping", "held_out_share", "scrub", "sensitive", "batch_rows", "batch_bytes_max",
        "row_bytes_max", "commit_bytes", "duplicates",
    }  # fmt: skip
    settings = config.model_dump(mode="json", include=names)
    # Parts are files of their own: a half that came in by so many cannot go on by others.
    settings["parts"] = config.scale.parts if config.scale.spread else 0
    if tokenizer := stored_tokenizer(config):
        settings["tokenizer"] = tokenizer
    return digest_json(settings)


def _resumable(
    tables: Tables,
    day_file: DayFile,
    state: FileState,
    refused: FileState | None,
    settings: str,
) -> FileState:
    """Return where the file goes on; a half that came in under other settings is discarded."""
    refused = refused or FileState()
    state.attempt = max(state.attempt, refused.attempt)
    begun = [*state.batches, *refused.batches]
    if any(batch.settings != settings for batch in begun):
        LOG.warning("%s was half in under other settings; it starts anew", day_file.name)
        _discard(tables, begun[0])
        return FileState(state.attempt + 1)
    if begun:
        state.judged_at = begun[0].judged_at
    return state


def _discard_halves(
    tables: Tables,
    states: Mapping[str, FileState],
    refused: Mapping[str, FileState],
    file_digest: str,
) -> None:
    """Remove what other files left half in: it is no version, so nothing may be its duplicate."""
    for digest in states.keys() | refused.keys():
        state = states.get(digest, FileState())
        begun = [*state.batches, *refused.get(digest, FileState()).batches]
        if begun and not state.whole and digest != file_digest:
            LOG.warning("%s was left half in; its rows are removed", begun[0].source)
            _discard(tables, begun[0])


def _discard(tables: Tables, begun: BatchEntry) -> None:
    for name in (QUARANTINE, RECORDS):
        tables.discard(name, begun.day, begun.file_digest)


class _Batch:
    """Blocks on their way into one commit of each table."""

    def __init__(self, tables: Tables, intake: Intake, name: str) -> None:
        self.name = name
        self.blocks = self.looks = self.rows_in = self.size_bytes = 0
        self.duplicates = self.near = self.tokens = 0
        self.waiting: list[PreparedBlock] = []
        self.reasons: Counter[str] = Counter()
        self.records = tables.part_files(RECORDS, intake.day, name)
        self.refused = tables.part_files(QUARANTINE, intake.day, name)

    def add(self, block: PreparedBlock) -> None:
        """Count a block and write what it refused; its records wait to be looked up."""
        self.waiting.append(block)
        self.refused.write(block.refused)
        self.reasons.update(block.reasons)
        self.blocks += 1
        self.rows_in += block.rows_in
        self.size_bytes += block.size_bytes

    def close(self) -> None:
        """Finish the files that are being written; without a commit nobody sees them."""
        self.records.close()
        self.refused.close()


class _Run:
    """One file's way in, from its first batch that is not in yet."""

    def __init__(
        self,
        tables: Tables,
        intake: Intake,
        state: FileState,
        settings: str,
        index: DuplicateIndex,
        day_file: DayFile,
        stamp: tuple[str, ...],
    ) -> None:
        self._tables, self._intake, self._state = tables, intake, state
        self._settings, self._index = settings, index
        self._day_file, self._stamp = day_file, stamp
        self._rows = sum(batch.rows_in for batch in state.batches)
        self._batches: list[dict[str, Any]] = []
        self._sample: list[Mapping[str, Any]] = []
        self.progress = Progress(day_file.name, size_bytes=day_file.size_bytes)
        self._ids = DigestSet()
        if state.batches:
            mine = ds.field("file_digest") == intake.file_digest
            for part in tables.columns(["record_id"], mine):
                self._ids.add(prefixes_of_texts(part.column("record_id").to_pylist()))

    def take(self, fields_required: bool, watch: Watch | None) -> None:
        """Take in what is left of the file."""
        config, done = self._intake.config, self._state.batches
        blocks = islice(day_blocks(self._day_file, config), sum(b.blocks for b in done), None)
        processes = config.processes if self._day_file.size_bytes >= PARALLEL_BYTES_MIN else 1
        number = len(done)
        batch = self._begin(number)
        try:
            for block in prepared_blocks(
                blocks, self._intake, processes, fields_required and not done
            ):
                if batch.size_bytes >= config.commit_bytes:
                    self._commit(batch, number, last=False)
                    number += 1
                    batch = self._begin(number)
                self._add(batch, block)
                if watch is not None:
                    watch(self.progress)
            self._commit(batch, number, last=True)
        finally:
            batch.close()

    def evidence(self) -> IntakeEvidence:
        """Return what this run leaves for the contract's report: a bounded draw of the rows."""
        draw = random.Random(self._intake.file_digest)
        chosen = draw.sample(self._sample, min(SAMPLED_ROWS_MAX, len(self._sample)))
        return IntakeEvidence(tuple(self._batches), tuple(chosen))

    def _begin(self, number: int) -> _Batch:
        name = batch_name(self._intake.file_digest, self._state.attempt, number)
        return _Batch(self._tables, self._intake, name)

    def _add(self, batch: _Batch, block: PreparedBlock) -> None:
        block = replace(
            block,
            records=after_rows(block.records, self._rows),
            refused=after_rows(block.refused, self._rows),
        )
        self._rows += block.rows_in
        batch.add(block)
        self._sample += block.sample
        if len(self._sample) > SAMPLED_ROWS_HELD:
            self._sample = list(self.evidence().sample)
        told = self.progress
        self.progress = replace(
            told,
            rows_in=told.rows_in + block.rows_in,
            quarantined=told.quarantined + block.refused.num_rows,
            decoded_bytes=told.decoded_bytes + block.size_bytes,
            position=block.position,
        )
        if sum(part.size_bytes for part in batch.waiting) >= LOOK_BYTES:
            self._settle(batch)

    def _settle(self, batch: _Batch) -> None:
        """Deduplicate the rows that wait and write what stays."""
        if not batch.waiting:
            return
        rows = pa.concat_batches([block.records for block in batch.waiting])
        sketches = joined([block.sketches for block in batch.waiting])
        batch.waiting = []
        verdicts = self._index.look(look_name(batch.name, batch.looks), sketches)
        new = np.array([verdict == "new" for verdict in verdicts], dtype=bool)
        ids = rows.column("record_id").filter(pa.array(new)).to_pylist()
        fresh = new.copy()
        fresh[new] = self._ids.add(prefixes_of_texts(ids))
        kept = rows.filter(pa.array(fresh))
        batch.records.write(kept)
        batch.tokens += tokens_of(kept)
        taken = taken_rows(rows.filter(pa.array(new & ~fresh)), self._intake)
        batch.refused.write(taken)
        batch.looks += 1
        duplicates = len(new) - int(new.sum())
        batch.duplicates += duplicates
        batch.near += verdicts.count("near")
        self.progress = replace(
            self.progress,
            duplicates=self.progress.duplicates + duplicates,
            quarantined=self.progress.quarantined + taken.num_rows,
        )

    def _commit(self, batch: _Batch, number: int, last: bool) -> None:
        """Quarantine first: a kill between the two commits is made good by the next run.

        That one judges the same rows alike, and finds the first of the two commits done.
        """
        self._settle(batch)
        if self._day_file.stamp() != self._stamp:
            raise InputError(f"{self._day_file.url} changed while it was read; run again")
        intake = self._intake
        entry = BatchEntry(
            day=intake.day,
            source=intake.source,
            file_digest=intake.file_digest,
            rows_in=batch.rows_in,
            kept=batch.records.rows,
            duplicates=batch.duplicates,
            quarantined=batch.refused.rows,
            index=number,
            last=last,
            blocks=batch.blocks,
            looks=batch.looks,
            near=batch.near,
            tokens=batch.tokens,
            settings=self._settings,
            judged_at=intake.judged_at,
            intake=intake.kept_settings(),
            tokenizer=stored_tokenizer(intake.config),
        )
        metadata = {METADATA_KEY: msgspec.json.encode(entry).decode()}
        if batch.refused.rows:
            self._tables.commit(QUARANTINE, batch.refused, metadata, int(intake.judged_at))
        self._tables.commit(RECORDS, batch.records, metadata, int(intake.judged_at))
        for look in range(batch.looks):
            self._index.commit(look_name(batch.name, look))
        self._batches.append(
            {"rows": batch.rows_in, "refused": batch.refused.rows, "reasons": dict(batch.reasons)}
        )
