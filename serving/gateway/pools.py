"""How one service fares in one region: what its servers did lately, and what share it may have.

Decides by counts and times that it is given; knows no socket and no configuration file.
"""

from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.gateway.limits import Admission
from serving.gateway.outcomes import OUTCOMES, Outcome
from serving.gateway.region_config import RegionsConfig

if TYPE_CHECKING:
    from serving.gateway.balancer import Endpoint

SLOTS_A_SECOND = 4


class Region:
    """A region: its share beside the others', its places, and what its servers ask for."""

    __slots__ = ("authorization", "name", "places", "weight")

    def __init__(
        self, name: str, weight: float, places: Admission, authorization: str = ""
    ) -> None:
        self.name = name
        self.weight = weight
        self.places = places
        self.authorization = authorization


class Recent:
    """How the last seconds' sendings went: good ones and bad ones."""

    __slots__ = ("_seconds", "_slots")

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slots: deque[list[int]] = deque()

    def add(self, good: bool, now: float) -> None:
        """Count one."""
        slot = int(now * SLOTS_A_SECOND)
        if not self._slots or self._slots[-1][0] != slot:
            self._slots.append([slot, 0, 0])
        self._slots[-1][1 if good else 2] += 1
        self._forget(now)

    def counts(self, now: float) -> tuple[int, int]:
        """Return (good, bad)."""
        self._forget(now)
        return sum(slot[1] for slot in self._slots), sum(slot[2] for slot in self._slots)

    def clear(self) -> None:
        """Begin anew."""
        self._slots.clear()

    def _forget(self, now: float) -> None:
        oldest = (now - self._seconds) * SLOTS_A_SECOND
        while self._slots and self._slots[0][0] < oldest:
            self._slots.popleft()


class Pool:
    """One service's servers in one region. Times are of one clock, in seconds."""

    def __init__(self, region: Region, config: RegionsConfig) -> None:
        self.region = region
        self.endpoints: Sequence[Endpoint] = ()
        self.rests = False
        self.moves = {"away": 0, "back": 0}
        self.outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self.retries: dict[str, int] = {}
        self._config = config
        self._recent = Recent(config.judged_seconds)
        self._low_since: float | None = None
        self._rests_until = 0.0
        self._relapses = 0
        self._returned_at = float("-inf")

    def health(self, now: float) -> float:
        """Return 0 to 1: the share of its servers that can be used, times that of good sendings.

        A request that still waits for its first byte, longer than is slow, is a bad one already.
        """
        if not self.endpoints:
            return 0.0
        usable = sum(endpoint.available for endpoint in self.endpoints) / len(self.endpoints)
        good, bad = self._recent.counts(now)
        slow = now - self._config.slow_seconds
        bad += sum(at < slow for endpoint in self.endpoints for at in endpoint.waiting.values())
        if good + bad < self._config.judged_requests_min:
            return usable
        return usable * good / (good + bad)

    def look(self, now: float) -> None:
        """Leave the region alone when its health was too low for long enough; let it return."""
        config = self._config
        if self.rests:
            if now >= self._rests_until and any(item.available for item in self.endpoints):
                self.rests, self._returned_at = False, now
                self._recent.clear()
                self.moves["back"] += 1
            return
        if self.health(now) >= config.health_min:
            self._low_since = None
            if now - self._returned_at > config.return_seconds + config.judged_seconds:
                self._relapses = 0
            return
        if self._low_since is None:
            self._low_since = now
        if now - self._low_since >= config.patience_seconds:
            rest = config.rest_seconds_first * 2 ** min(self._relapses, 16)
            self.rests, self._rests_until = True, now + min(rest, config.rest_seconds_max)
            self._relapses += 1
            self._low_since = None
            self.moves["away"] += 1

    def ramp(self, now: float) -> float:
        """Return which part of its share it may have now: 0 while it rests, then more and more."""
        if self.rests:
            return 0.0
        return min(1.0, 0.1 + 0.9 * (now - self._returned_at) / self._config.return_seconds)

    @property
    def open(self) -> bool:
        """Whether requests of other regions may come here now."""
        return not self.rests and self.region.places.free > 0

    def note(self, good: bool | None, seconds: float, now: float) -> None:
        """Count one sending that took `seconds` to its first byte; None: nobody waited for it."""
        slow = seconds >= self._config.slow_seconds
        if good is not None or slow:
            self._recent.add(bool(good) and not slow, now)

    def draw(self) -> None:
        """A request was assigned; it counts when it has its outcome."""

    def finish(self, outcome: Outcome, seconds: float) -> None:
        """Count the outcome of a request that was assigned to this region."""
        self.outcomes[outcome] += 1

    def retry(self, reason: str) -> None:
        """Count one request of this region that needed another server."""
        self.retries[reason] = self.retries.get(reason, 0) + 1
