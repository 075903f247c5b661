"""Writes spooled rows as Parquet files and adds them to a Delta table in one commit.

Own files instead of `write_deltalake`: that one buffers a fast stream without limit.
"""

import time
from collections.abc import Iterator, Mapping

import msgspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from deltalake import CommitProperties, DeltaTable, Transaction
from deltalake.exceptions import CommitFailedError
from deltalake.fs import DeltaStorageHandler
from deltalake.transaction import AddAction

from core.errors import ConflictError
from lake.ingestion import Spool
from lake.schema import PARTITION

ROW_GROUP_ROWS = 20_000
FILE_ROWS_MAX = 1_000_000
NAME_LENGTH = 32


def commit_spool(
    table: DeltaTable,
    spool: Spool,
    day: str,
    file_digest: str,
    metadata: Mapping[str, str],
    storage_options: Mapping[str, str] | None = None,
) -> None:
    """Append the spooled rows of one day file to `table` as one commit.

    File names follow from `file_digest`, which is also the commit's transaction: a second attempt
    after a kill overwrites what the first one left. Holds one row group in memory. Raises
    ConflictError when another process changed the table in a way that forbids the commit.
    """
    options = dict(storage_options) if storage_options else None
    system = pafs.PyFileSystem(DeltaStorageHandler(table.table_uri, options))
    schema = spool.schema.remove(spool.schema.get_field_index(PARTITION))
    actions: list[AddAction] = []
    for groups in _files(spool.reader()):
        name = f"part-{file_digest[:NAME_LENGTH]}-{len(actions):05d}.zstd.parquet"
        rows = 0
        with pq.ParquetWriter(
            name, schema, filesystem=system, compression="zstd", compression_level=1
        ) as writer:
            for group in groups:
                writer.write_table(group.drop_columns(PARTITION))
                rows += group.num_rows
        size = system.get_file_info(name).size
        # Only the count: minima and maxima would copy texts into the log, out of erasure's reach.
        stats = msgspec.json.encode({"numRecords": rows}).decode()
        actions.append(AddAction(name, size, {PARTITION: day}, _now(), True, stats))
    properties = CommitProperties(
        custom_metadata=dict(metadata), app_transactions=[Transaction(file_digest, 1)]
    )
    try:
        table.create_write_transaction(
            actions,
            mode="append",
            schema=table.schema(),
            partition_by=[PARTITION],
            commit_properties=properties,
        )
    except CommitFailedError as error:
        raise ConflictError(
            f"another process changed {table.table_uri} first; run again"
        ) from error


def _files(reader: pa.RecordBatchReader) -> Iterator[Iterator[pa.Table]]:
    """Yield one iterator of row groups for each file to write, none for no rows."""
    groups = _row_groups(reader)
    first = next(groups, None)

    def one_file(group: pa.Table | None) -> Iterator[pa.Table]:
        nonlocal first
        rows = 0
        while group is not None:
            yield group
            rows += group.num_rows
            group = first = next(groups, None)
            if rows >= FILE_ROWS_MAX:
                return

    while first is not None:
        yield one_file(first)


def _row_groups(reader: pa.RecordBatchReader) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for batch in reader:
        held.append(batch)
        if sum(part.num_rows for part in held) >= ROW_GROUP_ROWS:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _now() -> int:
    return time.time_ns() // 1_000_000
