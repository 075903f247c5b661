"""Kept answers in this process's memory, within a number of bytes: the least used goes first."""

import time
from collections import OrderedDict
from collections.abc import Callable

from serving.gateway.cache_store import KeptAnswer

ENTRY_BYTES = 1024
"""What an entry costs beside its body: key, headers and Python's objects, rounded up."""


class MemoryStore:
    """The default: nothing beyond the process is needed, and nothing outlives it."""

    errors = 0

    def __init__(
        self, seconds: float, bytes_max: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._seconds = seconds
        self._bytes_max = bytes_max
        self._clock = clock
        self._kept: OrderedDict[bytes, tuple[float, KeptAnswer]] = OrderedDict()
        self.bytes = 0

    @property
    def entries(self) -> int:
        """Answers held, those too old but not yet met again included."""
        return len(self._kept)

    async def get(self, key: bytes) -> KeptAnswer | None:
        """Return the answer under a key unless it is too old."""
        found = self._kept.get(key)
        if found is None:
            return None
        if self._clock() >= found[0]:
            self._drop(key)
            return None
        self._kept.move_to_end(key)
        return found[1]

    async def put(self, key: bytes, answer: KeptAnswer) -> None:
        """Keep an answer; what was used longest ago makes room for it."""
        size = _size(answer)
        if size > self._bytes_max:
            return
        self._drop(key)
        while self.bytes + size > self._bytes_max:
            self._drop(next(iter(self._kept)))
        self._kept[key] = (self._clock() + self._seconds, answer)
        self.bytes += size

    async def close(self) -> None:
        """Forget everything."""
        self._kept.clear()
        self.bytes = 0

    def _drop(self, key: bytes) -> None:
        found = self._kept.pop(key, None)
        if found is not None:
            self.bytes -= _size(found[1])


def _size(answer: KeptAnswer) -> int:
    return len(answer.body) + ENTRY_BYTES
