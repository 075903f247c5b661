"""Who waits for a place at an arm's servers: first come first served, few, and not for long."""

import asyncio
from collections import deque

from serving.gateway.limits import Full

UPSTREAM_FULL = "upstream_full"


class Places:
    """The queues before servers that have as many requests as they may, by the arm's name."""

    def __init__(self, waiting_max: int) -> None:
        self._waiting_max = waiting_max
        self._queues: dict[str, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        """Requests in all queues."""
        return sum(map(len, self._queues.values()))

    async def wait(self, name: str, until: float) -> None:
        """Wait until a place may be free, to `until` (loop time) at most. Raises Full."""
        queue = self._queues.setdefault(name, deque())
        if len(queue) >= self._waiting_max:
            raise Full(UPSTREAM_FULL)
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        queue.append(place)
        try:
            async with asyncio.timeout_at(until):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                self.free(name)  # the place came in the same moment: hand it on
            if isinstance(error, TimeoutError):
                raise Full(UPSTREAM_FULL) from error
            raise
        finally:
            if place in queue:
                queue.remove(place)
            if not queue and self._queues.get(name) is queue:
                del self._queues[name]

    def free(self, name: str) -> None:
        """Wake the first that waits for a place of an arm."""
        queue = self._queues.get(name)
        while queue:
            place = queue.popleft()
            if not place.done():
                place.set_result(None)
                return

    def free_all(self) -> None:
        """Wake everybody: routes or health changed."""
        for queue in self._queues.values():
            for place in queue:
                if not place.done():
                    place.set_result(None)
