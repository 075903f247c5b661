"""Transactions on SQLite or PostgreSQL: durable, serial writes and the database's own clock.

Knows no table. PostgreSQL is driven by asyncpg, which Prefect brings along, on a private loop.
"""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, create_engine, event, exc, make_url, text
from sqlalchemy.engine import URL
from sqlalchemy.util import greenlet_spawn

from core.errors import ConfigurationError, ConflictError, IntegrityError, UnavailableError

T = TypeVar("T")
BUSY_SECONDS = 5.0
CONNECT_SECONDS = 10.0
STATEMENT_SECONDS = 60.0
WRITER_LOCK = 7_214_406_023
"""PostgreSQL advisory lock of all writers, so that events are appended one at a time."""

SQLITE_PRAGMAS = (
    f"PRAGMA busy_timeout={int(BUSY_SECONDS * 1000)}",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=FULL",
    "PRAGMA foreign_keys=ON",
)
CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}


class Database:
    """One ledger database. Every write is one serial transaction, on disk when it returns."""

    def __init__(self, url: str, busy_seconds: float = BUSY_SECONDS) -> None:
        try:
            self.url = make_url(url)
        except exc.ArgumentError as error:
            raise ConfigurationError(f"ledger URL {url!r} is not a database URL") from error
        self.dialect = self.url.get_backend_name()
        if self.dialect not in CLOCKS:
            raise ConfigurationError(f"ledger URL: {self.dialect} is neither sqlite nor postgresql")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        if self.dialect == "sqlite":
            self._engine = _sqlite_engine(self.url, busy_seconds)
        else:
            self._engine = self._postgresql_engine()

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on one consistent view. Raises UnavailableError when the database is away."""

        def call() -> T:
            with self._engine.begin() as connection:
                return work(connection)

        return self._run(call)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run `work` alone among writers; all of it is kept, or nothing.

        Raises ConflictError when it breaks a uniqueness rule, UnavailableError when the database
        is locked, full or away.
        """
        engine = self._engine.execution_options(serin_write=True)

        def call() -> T:
            with engine.begin() as connection:
                if self.dialect == "postgresql":
                    connection.execute(text(f"SELECT pg_advisory_xact_lock({WRITER_LOCK})"))
                return work(connection)

        return self._run(call)

    def copy_sqlite(self, path: str) -> None:
        """Write a consistent copy of a SQLite database, its write-ahead log included."""

        try:
            with closing(sqlite3.connect(str(self.url.database))) as connection:
                connection.execute("VACUUM INTO ?", (path,))
        except sqlite3.Error as error:
            raise UnavailableError(f"ledger {self._name} cannot be copied: {error}") from error

    def now_seconds(self, connection: Connection) -> float:
        """The database clock, in seconds since the epoch: the only clock that leases know."""
        return float(connection.execute(text(f"SELECT {CLOCKS[self.dialect]}")).scalar_one())

    def close(self) -> None:
        """Close all connections."""
        self._run(self._engine.dispose)
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def _run(self, call: Callable[[], T]) -> T:
        try:
            if self._loop is None:
                return call()
            return asyncio.run_coroutine_threadsafe(greenlet_spawn(call), self._loop).result()
        except exc.IntegrityError as error:
            raise ConflictError(f"the ledger refused a second one: {error.orig}") from error
        except (exc.OperationalError, exc.InterfaceError, OSError, exc.TimeoutError) as error:
            raise UnavailableError(f"ledger {self._name} does not answer: {error}") from error
        except exc.DBAPIError as error:
            if "malformed" in str(error) or "not a database" in str(error):
                raise IntegrityError(f"ledger {self._name} is damaged: {error}") from error
            raise UnavailableError(f"ledger {self._name} failed: {error}") from error

    @property
    def _name(self) -> str:
        return self.url.render_as_string(hide_password=True)

    def _postgresql_engine(self) -> Engine:
        if self.url.drivername != "postgresql" and self.url.get_driver_name() != "asyncpg":
            return create_engine(self.url, pool_pre_ping=True)
        from sqlalchemy.ext.asyncio import create_async_engine

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="ledger", daemon=True)
        self._thread.start()
        arguments: dict[str, Any] = {
            "timeout": CONNECT_SECONDS,
            "command_timeout": STATEMENT_SECONDS,
            "server_settings": {"lock_timeout": str(int(BUSY_SECONDS * 1000))},
        }
        url = self.url.set(drivername="postgresql+asyncpg")
        return create_async_engine(url, pool_pre_ping=True, connect_args=arguments).sync_engine


def _sqlite_engine(url: URL, busy_seconds: float) -> Engine:
    engine = create_engine(url, connect_args={"timeout": busy_seconds})

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not open transactions by itself
        for pragma in SQLITE_PRAGMAS:
            connection.execute(pragma)
        connection.execute(f"PRAGMA busy_timeout={int(busy_seconds * 1000)}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        # A deferred transaction that turns into a write fails at once when another one wrote.
        write = connection.get_execution_options().get("serin_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return engine
