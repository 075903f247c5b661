"""The ledger's tables, their version, and the way forward from older versions after a copy."""

from collections.abc import Callable, Mapping
from pathlib import Path

from sqlalchemy import (
    Column,
    Connection,
    Float,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    delete,
    insert,
    inspect,
    select,
    text,
)

from core.contracts import ACTIVE_STATES
from core.errors import ConfigurationError
from rollout.database import Database

VERSION = 1
Migration = Callable[[Connection], None]
MIGRATIONS: Mapping[int, Migration] = {}
"""MIGRATIONS[n] turns version n into n + 1."""

METADATA = MetaData()
META = Table(
    "meta",
    METADATA,
    Column("name", Text, primary_key=True),
    Column("value", Text, nullable=False),
)
RELEASES = Table(
    "releases",
    METADATA,
    Column("release_id", Text, primary_key=True),
    Column("namespace", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("model_version", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    Column("lease_until", Float(53), nullable=False),
    Column("writes", Integer, nullable=False),
    Column("final_seq", Integer, nullable=True),
    Column("body", Text, nullable=False),
)
_active = RELEASES.c.state.in_([str(state) for state in ACTIVE_STATES])
Index(
    "one_active_release",
    RELEASES.c.namespace,
    RELEASES.c.service,
    unique=True,
    sqlite_where=_active,
    postgresql_where=_active,
)
Index("releases_by_service", RELEASES.c.namespace, RELEASES.c.service, RELEASES.c.release_id)
EVENTS = Table(
    "events",
    METADATA,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    Column("time", Text, nullable=False),
    Column("release_id", Text, nullable=False),
    Column("namespace", Text, nullable=False),
    Column("service", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("epoch", Integer, nullable=False),
    Column("holder", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("serving", Text, nullable=False),
    Column("previous_hash", Text, nullable=False),
    Column("hash", Text, nullable=False),
    UniqueConstraint("previous_hash"),
    UniqueConstraint("hash"),
)
Index("events_by_release", EVENTS.c.release_id, EVENTS.c.seq)
Index("events_by_service", EVENTS.c.namespace, EVENTS.c.service, EVENTS.c.seq)
_serving = EVENTS.c.serving != ""
Index(
    "events_by_serving",
    EVENTS.c.namespace,
    EVENTS.c.service,
    EVENTS.c.time,
    EVENTS.c.seq,
    sqlite_where=_serving,
    postgresql_where=_serving,
)
SAMPLES = Table(
    "samples",
    METADATA,
    Column("sample_id", Integer, primary_key=True),
    Column("release_id", Text, nullable=False),
    Column("body", Text, nullable=False),
)
Index("samples_by_release", SAMPLES.c.release_id, SAMPLES.c.sample_id)
REVISIONS = Table(
    "revisions",
    METADATA,
    Column("service_uid", Text, primary_key=True),
    Column("revision", Text, primary_key=True),
    Column("bundle_digest", Text, nullable=False),
    Column("model_version", Text, nullable=False),
)


def prepare(
    database: Database, version: int = VERSION, migrations: Mapping[int, Migration] = MIGRATIONS
) -> str | None:
    """Make the tables, or bring older ones to `version` after a copy; return where the copy is.

    SQLite is copied to a file beside it, PostgreSQL's tables to `<table>_before_v<version>`.
    Raises ConfigurationError when the ledger was written by a newer Serin.
    """
    found = database.read(_version)
    if found == version:
        return None
    if found is not None and found > version:
        raise ConfigurationError(
            f"the ledger has schema version {found}, this Serin knows {version}; use a newer Serin"
        )
    copied = _copy_sqlite(database, version) if found and database.dialect == "sqlite" else None

    def work(connection: Connection) -> str | None:
        at = _version(connection)  # another process may have been faster
        if at == version:
            return copied
        if at is None:
            METADATA.create_all(connection)
            at = VERSION
        elif database.dialect == "postgresql":
            _copy_tables(connection, version)
        for step in range(at, version):
            migrations[step](connection)
        connection.execute(delete(META).where(META.c.name == "schema_version"))
        connection.execute(insert(META).values(name="schema_version", value=str(version)))
        return copied

    return database.write(work)


def _version(connection: Connection) -> int | None:
    if not inspect(connection).has_table("meta"):
        return None
    found = connection.execute(select(META.c.value).where(META.c.name == "schema_version"))
    value = found.scalar_one_or_none()
    return None if value is None else int(value)


def _copy_sqlite(database: Database, version: int) -> str | None:
    name = database.url.database
    if not name or name == ":memory:":
        return None
    path = Path(f"{name}.before-v{version}")
    path.unlink(missing_ok=True)  # left by an attempt that did not finish
    database.copy_sqlite(str(path))
    return str(path)


def _copy_tables(connection: Connection, version: int) -> None:
    for table in METADATA.sorted_tables:
        copy = f"{table.name}_before_v{version}"
        connection.execute(text(f"CREATE TABLE {copy} AS TABLE {table.name}"))
