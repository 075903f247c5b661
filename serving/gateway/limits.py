"""Bounds on what is in work at once: places for requests, bytes of their bodies."""

import asyncio
import contextlib
from collections import deque

from serving.gateway.reply import Message, Refusal


class Full(Exception):
    """No place now; `reason` names the bound that was reached. The client may try again."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Admission:
    """A fixed number of places, first come first served, with a bounded queue before them."""

    def __init__(self, places: int, waiting_max: int, waiting_seconds_max: float) -> None:
        self._places = places
        self._free = places
        self._waiting_max = waiting_max
        self._waiting_seconds_max = waiting_seconds_max
        self._queue: deque[asyncio.Future[None]] = deque()

    @property
    def busy_share(self) -> float:
        """How many of the places are taken, 0 to 1."""
        return 1 - self._free / self._places

    @property
    def free(self) -> int:
        """Places that nobody has."""
        return self._free

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    async def enter(self) -> None:
        """Take a place, waiting for one if need be. Raises Full when the queue or the wait ends."""
        if self._free > 0:
            self._free -= 1
            return
        if len(self._queue) >= self._waiting_max:
            raise Full("queue_full")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append(place)
        try:
            async with asyncio.timeout(self._waiting_seconds_max):
                await place
        except (TimeoutError, asyncio.CancelledError) as error:
            if place.done() and not place.cancelled():
                self.leave()  # the place came in the same moment: hand it on
            else:
                with contextlib.suppress(ValueError):  # leave() may have dropped it already
                    self._queue.remove(place)
            if isinstance(error, TimeoutError):
                raise Full("wait_too_long") from error
            raise

    def try_enter(self) -> bool:
        """Take a place if one is free now."""
        if self._free <= 0:
            return False
        self._free -= 1
        return True

    def leave(self) -> None:
        """Give a place back: to the first that waits."""
        while self._queue:
            place = self._queue.popleft()
            if not place.done():
                place.set_result(None)
                return
        self._free += 1


class Budget:
    """A bound on the sum of all bodies in memory."""

    __slots__ = ("limit", "used")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


class Body:
    """One request's body while it arrives: within its own bound and the budget of all."""

    __slots__ = ("_bytes_max", "_budget", "_parts", "_size", "cut", "whole")

    def __init__(self, budget: Budget, bytes_max: int) -> None:
        self._budget = budget
        self._bytes_max = bytes_max
        self._parts: list[bytes] = []
        self._size = 0
        self.whole = False
        self.cut = False
        """The client closed before the body was whole."""

    @property
    def content(self) -> bytes:
        """What has arrived."""
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def announce(self, size: int) -> None:
        """Check a size before it is sent. Raises Refusal."""
        if size > self._bytes_max:
            text = f"the request's body is larger than {self._bytes_max} bytes"
            raise Refusal(413, text, "body_too_large")

    def add(self, message: Message) -> None:
        """Add what ASGI's receive gave. Raises Refusal when a bound is passed."""
        if message["type"] == "http.disconnect":
            self.cut = True
            return
        part: bytes = message["body"]
        self.announce(self._size + len(part))
        if self._budget.used + len(part) > self._budget.limit:
            text = "the gateway holds too many large requests; try again"
            raise Refusal(429, text, "bodies_too_large", retry_after_seconds=1)
        self._budget.used += len(part)
        self._size += len(part)
        self._parts.append(part)
        self.whole = not message["more_body"]

    def give_back(self) -> None:
        """Free the budget; call once, when the body is not needed any more."""
        self._budget.used -= self._size
        self._size = 0
