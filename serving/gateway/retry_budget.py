"""How many requests may be sent again: a share of what is asked, so that trouble is not multiplied.

Counts per service over the last seconds; knows neither requests nor why they are sent again.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator

from serving.gateway.exposition import family, labels

WINDOW_SECONDS = 10
SERVICES_MAX = 1000


class _Window:
    """Requests and repetitions by the second, for as long as the window is."""

    __slots__ = ("_seconds", "refused", "repeated", "requests")

    def __init__(self) -> None:
        self._seconds: deque[list[int]] = deque()
        self.requests = self.repeated = self.refused = 0

    def add(self, requests: int, repeated: int, now: float) -> None:
        """Count, and forget what is older than the window."""
        seconds, second = self._seconds, int(now)
        while seconds and seconds[0][0] <= second - WINDOW_SECONDS:
            _, old_requests, old_repeated = seconds.popleft()
            self.requests -= old_requests
            self.repeated -= old_repeated
        if not seconds or seconds[-1][0] != second:
            seconds.append([second, 0, 0])
        seconds[-1][1] += requests
        seconds[-1][2] += repeated
        self.requests += requests
        self.repeated += repeated


class RetryBudget:
    """At most `share_max` of a service's requests are sent again, or `per_second_min` a second."""

    def __init__(
        self,
        share_max: float,
        per_second_min: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share_max = share_max
        self._least = per_second_min * WINDOW_SECONDS
        self._clock = clock
        self._windows: dict[str, _Window] = {}

    def asked(self, service: str) -> None:
        """Count one request."""
        self._window(service).add(1, 0, self._clock())

    def room(self, service: str) -> bool:
        """Whether one more request may be sent again now."""
        window = self._window(service)
        window.add(0, 0, self._clock())
        return window.repeated < max(self._share_max * window.requests, self._least)

    def take(self, service: str) -> bool:
        """Count one repetition if there is room for it, else one that was refused."""
        window = self._window(service)
        if not self.room(service):
            window.refused += 1
            return False
        window.add(0, 1, self._clock())
        return True

    def lines(self) -> Iterator[str]:
        """Yield what was refused, in Prometheus' text format."""
        yield from family(
            "serin_gateway_retry_budget_exhausted_total",
            "counter",
            "Requests that were not sent again because too many were.",
            ((labels(service=name), window.refused) for name, window in self._windows.items()),
        )

    def _window(self, service: str) -> _Window:
        found = self._windows.get(service)
        if found is None:
            if len(self._windows) >= SERVICES_MAX:
                self._windows.clear()
            found = self._windows[service] = _Window()
        return found
