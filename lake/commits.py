"""Rows become Parquet files of a Delta table, and those one commit.

Own files instead of `write_deltalake`: that one buffers a fast stream without limit.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction, RemoveAction

from core.errors import ConflictError
from lake.schema import PARTITION

ROW_GROUP_ROWS = 20_000
ROW_GROUP_BYTES = 32 << 20
FILE_ROWS_MAX = 1_000_000


class WrittenFile(NamedTuple):
    """One finished data file of a table."""

    name: str
    rows: int
    size: int


class PartFiles:
    """The data files of one batch in one table, written while rows come and seen after `commit`.

    Holds one row group in memory. File names follow from the batch, which is also the commit's
    transaction: a second attempt after a kill overwrites what the first one left.
    """

    def __init__(
        self,
        address: str,
        schema: pa.Schema,
        day: str,
        batch: str,
        storage_options: Mapping[str, str] | None = None,
    ) -> None:
        self.address, self.day, self.batch = address, day, batch
        self.rows = 0
        self._options = dict(storage_options) if storage_options else None
        self._schema = schema.remove(schema.get_field_index(PARTITION))
        self._held: list[pa.RecordBatch] = []
        self._writer: pq.ParquetWriter | None = None
        self._file_rows: list[tuple[str, int]] = []

    def write(self, rows: pa.RecordBatch) -> None:
        """Append rows (the schema's columns; others are left out)."""
        if not rows.num_rows:
            return
        self._held.append(rows.select(self._schema.names))
        self.rows += rows.num_rows
        held_rows = sum(part.num_rows for part in self._held)
        held_bytes = sum(part.nbytes for part in self._held)
        if held_rows >= ROW_GROUP_ROWS or held_bytes >= ROW_GROUP_BYTES:
            self._write_group()

    def commit(self, metadata: Mapping[str, str], judged_at: int) -> None:
        """Add the files to the table in one commit, unless the table has this batch already.

        Raises ConflictError when another process changed the table in a way that forbids it.
        """
        written = self.finish()
        commit_files(
            self.address, self.day, self.batch, written, metadata, judged_at, self._options
        )

    def finish(self) -> tuple[WrittenFile, ...]:
        """Finish all files and return them."""
        self._write_group()
        self.close()
        system = self._system()
        return tuple(
            WrittenFile(name, rows, system.get_file_info(name).size)
            for name, rows in self._file_rows
        )

    def close(self) -> None:
        """Finish the file that is being written."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _write_group(self) -> None:
        if not self._held:
            return
        group, self._held = pa.Table.from_batches(self._held), []
        if self._writer is None:
            name = f"part-{self.batch}-{len(self._file_rows):05d}.zstd.parquet"
            self._writer = pq.ParquetWriter(
                name,
                self._schema,
                filesystem=self._system(),
                compression="zstd",
                compression_level=1,
            )
            self._file_rows.append((name, 0))
        self._writer.write_table(group)
        name, rows = self._file_rows[-1]
        self._file_rows[-1] = (name, rows + group.num_rows)
        if rows + group.num_rows >= FILE_ROWS_MAX:
            self.close()

    def _system(self) -> pafs.FileSystem:
        return pafs.PyFileSystem(DeltaStorageHandler(self.address, self._options))


def commit_files(
    address: str,
    day: str,
    batch: str,
    files: Sequence[WrittenFile],
    metadata: Mapping[str, str],
    judged_at: int,
    storage_options: Mapping[str, str] | None = None,
    replaced: Sequence[WrittenFile] = (),
) -> None:
    """Add finished files to a table in one commit, unless the table has this batch already.

    `replaced` are files of the same day that leave the table by that commit. Raises ConflictError
    when another process changed the table in a way that forbids it.
    """
    options = dict(storage_options) if storage_options else None
    table = DeltaTable(address, storage_options=options)
    if table.transaction_version(batch) is not None:
        return
    now = time.time_ns() // 1_000_000
    removed = [RemoveAction(file.name, True, now, file.size, {PARTITION: day}) for file in replaced]
    added = [
        # Only the count: minima and maxima would copy texts into the log, out of erasure's reach.
        AddAction(
            file.name,
            file.size,
            {PARTITION: day},
            now,
            True,
            msgspec.json.encode({"numRecords": file.rows}).decode(),
        )
        for file in files
    ]
    properties = CommitProperties(
        custom_metadata=dict(metadata), app_transactions=[Transaction(batch, judged_at)]
    )
    try:
        table.create_write_transaction(
            [*removed, *added],
            mode="append",
            schema=table.schema(),
            partition_by=[PARTITION],
            commit_properties=properties,
        )
    except CommitFailedError as error:
        raise ConflictError(f"another process changed {address} first; run again") from error
