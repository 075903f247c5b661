"""Where the lake's Delta tables are and how they are opened, written to and locked."""

import fcntl
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable
from deltalake.exceptions import TableNotFoundError

from core.errors import IntegrityError
from lake.commits import PartFiles, WrittenFile, commit_files
from lake.log import DISCARDED_KEY
from lake.schema import (
    PARTITION,
    QUARANTINE,
    RECORDS,
    add_token_ids,
    create_table,
    has_token_ids,
    require_current,
    written_schema,
)

HISTORY_ENTRIES_MAX = 1_000_000


class Tables:
    """The tables below one path or object-store URL.

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

    def create(self, names: Collection[str] = (RECORDS, QUARANTINE)) -> None:
        """Create the tables that are missing."""
        for name in names:
            if self.table(name) is None:
                create_table(self.address(name), name, self.storage_options)

    def history(self, name: str = RECORDS) -> list[dict[str, Any]]:
        """Return every commit of a table with its metadata, newest first."""
        table = self.table(name)
        found = [] if table is None else table.history(HISTORY_ENTRIES_MAX)
        if len(found) == HISTORY_ENTRIES_MAX:
            raise IntegrityError(
                f"{self.address(name)} has more than {HISTORY_ENTRIES_MAX} commits; "
                "take larger batches in (commit_bytes)"
            )
        return found

    def store_tokens(self) -> None:
        """Give the records table its column of token ids, where that is missing."""
        add_token_ids(DeltaTable(self.address(RECORDS), storage_options=self.storage_options))

    def part_files(self, name: str, day: str, batch: str) -> PartFiles:
        """Return new data files of a table, to be written and then committed."""
        table = DeltaTable(self.address(name), storage_options=self.storage_options)
        schema = written_schema(name, has_token_ids(table))
        return PartFiles(table.table_uri, schema, day, batch, self.storage_options)

    def commit(self, name: str, files: PartFiles, metadata: Mapping[str, str], at: int) -> None:
        """Make a batch's files part of a table."""
        files.commit(metadata, at)

    def commit_written(
        self,
        name: str,
        day: str,
        batch: str,
        files: Sequence[WrittenFile],
        metadata: Mapping[str, str],
        at: int,
    ) -> None:
        """Make files that were written elsewhere part of a table."""
        commit_files(self.address(name), day, batch, files, metadata, at, self.storage_options)

    def discard(self, name: str, day: str, file_digest: str) -> None:
        """Remove what is in a table of a file that came in by half, and say so in its log."""
        table = DeltaTable(self.address(name), storage_options=self.storage_options)
        quoted = day.replace("'", "''")
        table.delete(f"{PARTITION} = '{quoted}' AND file_digest = '{file_digest}'")
        # A commit of its own: where there were no rows, the deletion made none.
        table.create_write_transaction(
            [],
            mode="append",
            schema=table.schema(),
            partition_by=[PARTITION],
            commit_properties=CommitProperties(custom_metadata={DISCARDED_KEY: file_digest}),
        )

    def columns(
        self, columns: list[str], condition: Any = None, name: str = RECORDS
    ) -> Iterator[pa.RecordBatch]:
        """Yield some columns of a table's rows, in bounded batches."""
        table = self.table(name)
        if table is not None:
            yield from table.to_pyarrow_dataset().scanner(columns, filter=condition).to_batches()

    @contextmanager
    def one_writer(self) -> Iterator[None]:
        """Hold a lock for a local lake, so that two processes cannot take files in at once."""
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
