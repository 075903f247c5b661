"""The signed index of an audit: how far each process's chain had come, linked across processes.

A chain alone cannot show that its end was cut off; the index can.
"""

import fcntl
import hashlib
import hmac
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec

from core.digests import chain_digest
from core.errors import IntegrityError

INDEX = "index.jsonl"
TAIL_BYTES = 1 << 16
"""More than the longest entry."""
RETIRED = b'{"kind":"retired"'


class Head(msgspec.Struct, frozen=True):
    """Row `seq` of a process's chain had this hash; `segment` is the file that was written then."""

    time_seconds: float
    process: str
    segment: int
    seq: int
    hash: str
    previous: str
    """Digest of the entry before, of whichever process."""
    signature: str = ""


class Retirement(Head, frozen=True, tag_field="kind", tag="retired"):
    """The chain's segments up to `segment` were whole, ended with this row and were deleted."""


class AuditIndex:
    """<folder>/index.jsonl, appended to by every writing process under a lock."""

    def __init__(self, folder: Path, key: bytes, clock: Callable[[], float] = time.time) -> None:
        self._path = folder / INDEX
        self._key = key
        self._clock = clock

    def add(self, process: str, segment: int, seq: int, digest: str) -> None:
        """Append one entry durably. Raises OSError when it cannot be written."""
        self._append(Head, process, segment, seq, digest)

    def retire(self, process: str, segment: int, seq: int, digest: str) -> None:
        """Note durably that a chain's first segments are deleted on purpose. Raises OSError."""
        self._append(Retirement, process, segment, seq, digest)

    def _append(self, kind: type[Head], process: str, segment: int, seq: int, digest: str) -> None:
        with open(self._path, "a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            last = _last_line(file)
            previous = chain_digest("", last.decode()) if last else ""
            head = kind(self._clock(), process, segment, seq, digest, previous)
            head = msgspec.structs.replace(head, signature=self._sign(head))
            file.write(msgspec.json.encode(head) + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def heads(self) -> Iterator[Head]:
        """Yield all entries, oldest first. Raises IntegrityError for any edit or gap."""
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return
        previous = ""
        lines = data.split(b"\n")
        for number, text in enumerate(lines[:-1], start=1):  # after the last newline: torn
            try:
                kind = Retirement if text.startswith(RETIRED) else Head
                head = msgspec.json.decode(text, type=kind)
            except msgspec.MsgspecError as error:
                raise IntegrityError(f"entry {number} of the index cannot be read") from error
            if not hmac.compare_digest(head.signature, self._sign(head)):
                raise IntegrityError(f"entry {number} of the index is not signed by this home")
            if head.previous != previous:
                raise IntegrityError(f"the index has lost what stood before entry {number}")
            previous = chain_digest("", text.decode())
            yield head

    def _sign(self, head: Head) -> str:
        content = msgspec.json.encode(msgspec.structs.replace(head, signature=""))
        return hmac.new(self._key, content, hashlib.sha256).hexdigest()


def _last_line(file: BinaryIO) -> bytes:
    """Return the last whole line, and cut off a torn one after it: its writer was killed."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - TAIL_BYTES))
    tail = file.read()
    end = tail.rfind(b"\n") + 1
    if end < len(tail):
        file.truncate(size - len(tail) + end)
    return tail[:end].rstrip(b"\n").rpartition(b"\n")[2]
