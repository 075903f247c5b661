"""Which batches and segments a duplicate index has, in SQLite: every change is one transaction.

Knows names, numbers and states; what a segment holds, segments.py knows.
"""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from core.errors import IntegrityError
from lake.segments import Shape

EXACT, NEAR = "exact", "near"
FORMAT = 1
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
TABLES = """
CREATE TABLE batches (
    number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL UNIQUE, committed INTEGER NOT NULL
);
CREATE TABLE segments (
    number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, batch INTEGER NOT NULL,
    rows INTEGER NOT NULL, shapes TEXT NOT NULL, staged INTEGER NOT NULL, synced INTEGER NOT NULL
);
CREATE TABLE boots (boot TEXT NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class SegmentEntry:
    """One segment. `batch` is its first batch's number, and its only one while it is staged."""

    kind: str
    batch: int
    rows: int
    shapes: dict[str, Shape]
    staged: bool
    synced: bool = False
    number: int = 0


class Manifest:
    """The lists of batches and segments of one index.

    Raises IntegrityError when the file is damaged, of another format, or when a power failure may
    have taken data that were not yet forced to the disk.
    """

    def __init__(self, path: Path) -> None:
        self._base = sqlite3.connect(path, isolation_level=None)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            self._base.close()
            raise IntegrityError(f"{path} is damaged: {error}") from error
        except IntegrityError:
            self._base.close()
            raise

    def _open(self) -> None:
        self._base.execute("PRAGMA journal_mode = WAL")
        self._base.execute("PRAGMA synchronous = NORMAL")
        found = self._base.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, FORMAT):
            raise IntegrityError(f"the index has format {found}, this program writes {FORMAT}")
        if found == 0:
            with self._change():
                for statement in TABLES.split(";"):
                    self._base.execute(statement)
                self._base.execute(f"PRAGMA user_version = {FORMAT}")
        boot = BOOT_ID.read_text().strip() if BOOT_ID.exists() else ""
        before = self._base.execute("SELECT boot FROM boots").fetchone()
        if before and before[0] != boot and not all(entry.synced for entry in self.segments()):
            raise IntegrityError("the machine stopped before the index was on the disk")
        with self._change():
            self._base.execute("DELETE FROM boots")
            self._base.execute("INSERT INTO boots VALUES (?)", (boot,))

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    def batches(self) -> list[tuple[int, str, bool]]:
        """Return number, name and whether it is committed, of every batch."""
        rows = self._base.execute("SELECT number, name, committed FROM batches ORDER BY number")
        return [(number, name, bool(committed)) for number, name, committed in rows]

    def batch(self, name: str) -> tuple[int, bool] | None:
        """Return a batch's number and whether it is committed; None for an unknown one."""
        row = self._base.execute(
            "SELECT number, committed FROM batches WHERE name = ?", (name,)
        ).fetchone()
        return None if row is None else (row[0], bool(row[1]))

    def begin(self, name: str) -> int:
        """Enter a new batch and return its number."""
        cursor = self._base.execute("INSERT INTO batches (name, committed) VALUES (?, 0)", (name,))
        return int(cursor.lastrowid or 0)

    def commit(self, number: int) -> None:
        """Mark a batch and its segments as committed."""
        with self._change():
            self._base.execute("UPDATE batches SET committed = 1 WHERE number = ?", (number,))
            self._base.execute(
                "UPDATE segments SET staged = 0 WHERE staged = 1 AND batch = ?", (number,)
            )

    def forget_batches(self, numbers: Collection[int]) -> None:
        """Take batches out, with their staged segments."""
        with self._change():
            for number in numbers:
                self._base.execute("DELETE FROM batches WHERE number = ?", (number,))
                self._base.execute("DELETE FROM segments WHERE staged = 1 AND batch = ?", (number,))

    def segments(self) -> list[SegmentEntry]:
        """Return every segment, oldest first."""
        rows = self._base.execute(
            "SELECT kind, batch, rows, shapes, staged, synced, number FROM segments "
            "ORDER BY batch, number"
        )
        return [
            SegmentEntry(
                kind,
                batch,
                count,
                msgspec.json.decode(shapes, type=dict[str, Shape]),
                bool(staged),
                bool(synced),
                number,
            )
            for kind, batch, count, shapes, staged, synced, number in rows
        ]

    def next_segment(self) -> int:
        """Return the number that the next segment gets, and so its folder."""
        return self._last("segments") + 1

    def next_batch(self) -> int:
        """Return the number that the next batch gets; numbers are never used again."""
        return self._last("batches") + 1

    def swap(self, old: Sequence[SegmentEntry], new: SegmentEntry | None) -> SegmentEntry | None:
        """Put one segment in the place of others, or only take those out; return the new one."""
        with self._change():
            for entry in old:
                self._base.execute("DELETE FROM segments WHERE number = ?", (entry.number,))
            if new is None:
                return None
            shapes = msgspec.json.encode(new.shapes).decode()
            cursor = self._base.execute(
                "INSERT INTO segments (kind, batch, rows, shapes, staged, synced) "
                "VALUES (?, ?, ?, ?, ?, ?)",
                (new.kind, new.batch, new.rows, shapes, new.staged, new.synced),
            )
        return replace(new, number=int(cursor.lastrowid or 0))

    def mark_synced(self) -> None:
        """Record that all segments' files are on the disk."""
        self._base.execute("UPDATE segments SET synced = 1")

    def _last(self, table: str) -> int:
        cursor = self._base.execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (table,))
        return int((cursor.fetchone() or (0,))[0])

    @contextmanager
    def _change(self) -> Iterator[None]:
        self._base.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._base.execute("ROLLBACK")
            raise
        self._base.execute("COMMIT")
