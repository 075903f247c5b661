"""A bounded first-come queue before the engine: so many answers at once, so many waiting."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from serving.api_errors import queue_full


class Admission:
    """Lives on one event loop. A request takes as many slots as it asks for answers."""

    def __init__(self, concurrency: int, queue_requests_max: int) -> None:
        self._free = concurrency
        self._concurrency = concurrency
        self._queue_requests_max = queue_requests_max
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Slots taken."""
        return self._concurrency - self._free

    @asynccontextmanager
    async def slots(self, wanted: int) -> AsyncIterator[None]:
        """Hold `wanted` slots (at most all of them) for the block, waiting in line for them.

        Raises ApiError 429 when the queue is full.
        """
        wanted = min(wanted, self._concurrency)
        await self._take(wanted)
        try:
            yield
        finally:
            self._free += wanted
            self._wake()

    async def _take(self, wanted: int) -> None:
        if not self._waiting and wanted <= self._free:
            self._free -= wanted
            return
        if len(self._waiting) >= self._queue_requests_max:
            raise queue_full(len(self._waiting))
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (place, wanted)
        self._waiting.append(entry)
        try:
            await place
        except asyncio.CancelledError:
            if entry in self._waiting:
                self._waiting.remove(entry)
            elif place.done() and not place.cancelled():  # given the slots while being cancelled
                self._free += wanted
            self._wake()
            raise

    def _wake(self) -> None:
        while self._waiting and self._waiting[0][1] <= self._free:
            place, wanted = self._waiting.popleft()
            if not place.done():
                self._free -= wanted
                place.set_result(None)
