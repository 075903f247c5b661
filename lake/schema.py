"""The Delta tables' columns, their schema version, and the steps that bring older lakes forward."""

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable, Field

from core.errors import IntegrityError, RefusedError

SCHEMA_VERSION = 1
DESCRIPTION = "serin schema_version="
RECORDS = "records"
QUARANTINE = "quarantine"
ERASURES = "erasures"
READMITTED = "readmitted"
"""Which quarantined rows came in after a correction; made with the first of them."""
PARTITION = "day"
"""The column that no data file holds and by which readers skip files."""
LOG_RETENTION = "interval 36500 days"
"""The log tells which version holds which day: it is kept for as long as the lake."""
RECORDS_SCHEMA = pa.schema(
    [
        ("record_id", pa.string()),
        ("day", pa.string()),
        ("created_at", pa.string()),
        ("slice_name", pa.string()),
        ("messages", pa.string()),
        ("prompt", pa.string()),
        ("response", pa.string()),
        ("language", pa.string()),
        ("content_digest", pa.string()),
        ("held_out", pa.bool_()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("file_digest", pa.string()),
    ]
)
TOKEN_IDS = pa.field("token_ids", pa.list_(pa.field("element", pa.int32())))
"""A column that `records` gets with the first day whose tokens are stored; null in other rows."""
QUARANTINE_SCHEMA = pa.schema(
    [
        ("day", pa.string()),
        ("source", pa.string()),
        ("row", pa.int64()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("reason", pa.string()),
        ("text", pa.string()),
        ("digest", pa.string()),
        ("file_digest", pa.string()),
        ("quarantined_at", pa.string()),
    ]
)
ERASURES_SCHEMA = pa.schema(
    [("day", pa.string()), ("id_hash", pa.string()), ("content_digest", pa.string())]
)
READMITTED_SCHEMA = pa.schema(
    [
        ("day", pa.string()),
        ("file_digest", pa.string()),
        ("row", pa.int64()),
        ("correction", pa.string()),
        ("correction_digest", pa.string()),
        ("readmitted_at", pa.string()),
    ]
)
SCHEMAS = {
    RECORDS: RECORDS_SCHEMA,
    QUARANTINE: QUARANTINE_SCHEMA,
    ERASURES: ERASURES_SCHEMA,
    READMITTED: READMITTED_SCHEMA,
}

Migration = Callable[[str, Mapping[str, str] | None], None]
MIGRATIONS: dict[int, Migration] = {}
"""Step n brings a lake (address, storage options) from schema version n to n + 1."""


def create_table(address: str, name: str, options: Mapping[str, str] | None) -> None:
    """Create one of the lake's tables where it is missing."""
    DeltaTable.create(
        address,
        schema=SCHEMAS[name],
        mode="ignore",
        partition_by=[PARTITION],
        name=name,
        description=f"{DESCRIPTION}{SCHEMA_VERSION}",
        configuration={"delta.logRetentionDuration": LOG_RETENTION},
        storage_options=dict(options) if options else None,
    )


def written_schema(name: str, tokens_stored: bool = False) -> pa.Schema:
    """Return the columns that are written into a table; `records` may have token ids beside."""
    schema = SCHEMAS[name]
    return schema.append(TOKEN_IDS) if tokens_stored and name == RECORDS else schema


def add_token_ids(table: DeltaTable) -> None:
    """Add the column of token ids to `records` where it is missing; older rows have nulls there."""
    if not has_token_ids(table):
        table.alter.add_columns(Field.from_arrow(TOKEN_IDS))


def has_token_ids(table: DeltaTable) -> bool:
    """Whether `records` has the column of token ids."""
    return any(field.name == TOKEN_IDS.name for field in table.schema().fields)


def schema_version(table: DeltaTable) -> int:
    """Return the schema version that a table was written with.

    Raises IntegrityError for a Delta table that is not one of ours.
    """
    description = table.metadata().description or ""
    number = description.removeprefix(DESCRIPTION)
    if not description.startswith(DESCRIPTION) or not number.isdigit():
        raise IntegrityError(f"{table.table_uri} is no table of this lake; give another lake URI")
    return int(number)


def require_current(table: DeltaTable) -> None:
    """Refuse a table of another schema version. Raises RefusedError."""
    version = schema_version(table)
    if version > SCHEMA_VERSION:
        raise RefusedError(
            f"{table.table_uri} has schema {version}, newer than this program's {SCHEMA_VERSION}; "
            "use the newer program"
        )
    if version < SCHEMA_VERSION:
        raise RefusedError(
            f"{table.table_uri} has schema {version}; run `serin up` to bring it to "
            f"{SCHEMA_VERSION}"
        )


def migrate_lake(
    uri: str,
    options: Mapping[str, str] | None = None,
    steps: Mapping[int, Migration] | None = None,
    target: int = SCHEMA_VERSION,
) -> int:
    """Bring an existing lake to `target` step by step and return the version it had before.

    A local lake's logs are copied first (to `backup-schema-N-TIME` in the lake): data files never
    change, so the copied log is the whole earlier lake. Raises RefusedError for a newer lake.
    """
    steps = MIGRATIONS if steps is None else steps
    address = f"{uri.rstrip('/')}/{RECORDS}"
    stored = dict(options) if options else None
    if not DeltaTable.is_deltatable(address, storage_options=stored):
        return target
    before = schema_version(DeltaTable(address, storage_options=stored))
    if before > target:
        raise RefusedError(f"{uri} has schema {before}, newer than {target}; use the newer program")
    if before < target and "://" not in uri:
        _copy_logs(Path(uri), before)
    for version in range(before, target):
        steps[version](uri, options)
        for name in SCHEMAS:
            place = f"{uri.rstrip('/')}/{name}"
            if not DeltaTable.is_deltatable(place, storage_options=stored):
                continue  # a table that came later than the lake
            table = DeltaTable(place, storage_options=stored)
            table.alter.set_table_description(f"{DESCRIPTION}{version + 1}")
    return before


def _copy_logs(lake: Path, version: int) -> None:
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
    for name in SCHEMAS:
        log = lake / name / "_delta_log"
        if log.is_dir():
            shutil.copytree(log, lake / f"backup-schema-{version}-{stamp}" / name / "_delta_log")
