"""The audit of one process: append-only, hash-chained rows in segments; a full one turns Parquet.

A row is handed to the kernel before its answer ends, so a killed process loses none; it is on the
disk within `sync_seconds`, which is all that a crash of the machine can cost.
"""

import fcntl
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from core.errors import UnavailableError
from observability.audit_index import AuditIndex
from observability.audit_rows import GENESIS, AuditRow, make_line
from observability.audit_segments import pack, segment_path

log = logging.getLogger(__name__)


class AuditConfig(BaseModel):
    """How the audit is kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sync_seconds: float = Field(
        default=0.2, gt=0, description="longest time until a written row is on the disk"
    )
    index_seconds: float = Field(
        default=30.0, gt=0, description="longest time until the signed index knows of new rows"
    )
    segment_bytes_max: int = Field(
        default=64 << 20, ge=1024, description="size at which a segment ends and turns Parquet"
    )
    required: bool = Field(
        default=True, description="refuse requests while the audit cannot be written"
    )


class Audit:
    """One chain, written by one process into <folder>/<process>/; call `close` at the end.

    Rows may come from several threads. Raises UnavailableError when the folder cannot be written.
    """

    def __init__(
        self,
        folder: Path,
        role: str,
        key: bytes,
        config: AuditConfig,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.process = f"{role}-{int(clock())}-{os.getpid()}-{secrets.token_hex(3)}"
        self._folder = folder / self.process
        self._config = config
        self._clock = clock
        self._index = AuditIndex(folder, key, clock)
        self._lock = threading.Lock()
        self._segment, self._seq, self._hash = 0, 0, GENESIS
        self._size = self._synced = 0
        self._broken = False
        self._full: list[tuple[int, Path]] = []
        """Full segments, still open, that are to be synced and packed."""
        try:
            self._folder.mkdir(parents=True)
            self._file = self._open()
            self._index.add(self.process, self._segment, 0, GENESIS)
        except OSError as error:
            raise UnavailableError(f"the audit {folder} cannot be written: {error}") from error
        self._indexed = 0
        self._stopping = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="audit", daemon=True)
        self._keeper.start()

    @property
    def rows(self) -> int:
        """Rows written by this process."""
        return self._seq

    def append(self, row: AuditRow) -> None:
        """Write one row. Raises UnavailableError when it is not kept: its answer must not leave."""
        with self._lock:
            line, digest = make_line(self._seq + 1, self._hash, row)
            try:
                if self._broken or self._size + len(line) > self._config.segment_bytes_max:
                    self._next_segment()
                self._write(line)
            except OSError as error:
                raise UnavailableError(f"the audit cannot be written: {error.strerror}") from error
            self._seq, self._hash, self._size = self._seq + 1, digest, self._size + len(line)

    def close(self) -> None:
        """Write down what is left and end; what cannot be written is logged."""
        self._stopping.set()
        self._keeper.join()
        with self._lock:
            os.close(self._file)

    def _write(self, line: bytes) -> None:
        """Write a line whole or not at all; a part that cannot be undone breaks the segment off."""
        try:
            written = os.write(self._file, line)
            if written == len(line):
                return
            raise OSError(28, os.strerror(28))  # the disk is full: the rest has no place either
        except OSError:
            try:
                os.ftruncate(self._file, self._size)
            except OSError:
                self._broken = True
            raise

    def _next_segment(self) -> None:
        full, number = self._file, self._segment
        if self._broken:
            os.ftruncate(full, self._size)
        self._file = self._open()
        self._size, self._broken = 0, False
        self._full.append((full, segment_path(self._folder, number)))

    def _open(self) -> int:
        self._segment += 1
        path = segment_path(self._folder, self._segment)
        try:
            file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_EXCL, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # tells that its writer lives
            return file
        except OSError:
            self._segment -= 1
            raise

    def _keep(self) -> None:
        """Sync, index and pack until `close`."""
        index_at = self._clock()
        last = False
        while not last:
            last = self._stopping.wait(self._config.sync_seconds)
            try:
                self._sync()
                if last or self._clock() - index_at >= self._config.index_seconds:
                    index_at = self._clock()
                    self._index_head()
                self._pack()
            except OSError as error:
                log.error("the audit falls behind: %s", error)

    def _pack(self) -> None:
        """Turn full segments into Parquet; one that cannot be packed now is tried again."""
        while self._full:
            file, path = self._full[0]
            pack(path)
            os.close(file)
            del self._full[0]

    def _sync(self) -> None:
        with self._lock:
            seq, file = self._seq, os.dup(self._file)
            full = [older for older, _ in self._full]
        try:
            for older in full:
                os.fsync(older)
            if seq > self._synced:
                os.fsync(file)
                self._synced = seq
        finally:
            os.close(file)

    def _index_head(self) -> None:
        with self._lock:
            segment, seq, digest = self._segment, self._seq, self._hash
        if seq > self._indexed:
            self._index.add(self.process, segment, seq, digest)
            self._indexed = seq
