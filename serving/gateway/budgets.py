"""How much each API key may still ask in this minute: requests and tokens, refilled continuously.

One gateway's own view: several gateways each give the whole budget.
"""

import math
import time
from collections.abc import Callable

from serving.gateway.keys import Caller
from serving.gateway.reply import Refusal

MINUTE_SECONDS = 60.0


class Bucket:
    """A token bucket that may go below zero: what an answer costs is known after it was given."""

    __slots__ = ("_at", "_level", "per_minute")

    def __init__(self, per_minute: float, now: float) -> None:
        self.per_minute = per_minute
        self._level = per_minute
        self._at = now

    def level(self, now: float) -> float:
        """What may be taken now, at most a minute's worth."""
        grown = (now - self._at) * self.per_minute / MINUTE_SECONDS
        self._level = min(self.per_minute, self._level + grown)
        self._at = now
        return self._level

    def take(self, amount: float, now: float) -> None:
        """Take an amount, or give some back when it is negative."""
        self._level = min(self.per_minute, self.level(now) - amount)

    def wait_seconds(self, amount: float, now: float) -> int:
        """How long until the amount is there, in whole seconds, at least 1."""
        lacking = min(amount, self.per_minute) - self.level(now)
        return max(1, math.ceil(lacking * MINUTE_SECONDS / self.per_minute))


class Budgets:
    """The buckets of all keys that have limits; as many as there are keys."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets: dict[tuple[str, str], Bucket] = {}

    def enter(self, caller: Caller) -> None:
        """Take one request. Raises Refusal (429) when a budget of the caller's key is used up."""
        limits = caller.limits
        if limits is None:
            return
        now = self._clock()
        tokens = self._bucket(caller, "tokens", limits.tokens_per_minute, now)
        if tokens is not None and tokens.level(now) <= 0:
            raise _used_up("tokens", tokens, now)
        requests = self._bucket(caller, "requests", limits.requests_per_minute, now)
        if requests is not None:
            if requests.level(now) < min(1.0, requests.per_minute):
                raise _used_up("requests", requests, now)
            requests.take(1, now)

    def charge(self, caller: Caller, tokens: int) -> None:
        """Take what an answer and its prompt cost, in tokens."""
        if caller.limits is None:
            return
        now = self._clock()
        bucket = self._bucket(caller, "tokens", caller.limits.tokens_per_minute, now)
        if bucket is not None:
            bucket.take(tokens, now)

    def _bucket(
        self, caller: Caller, kind: str, per_minute: float | None, now: float
    ) -> Bucket | None:
        name = (caller.key, kind)
        if per_minute is None:
            self._buckets.pop(name, None)
            return None
        found = self._buckets.get(name)
        if found is None or found.per_minute != per_minute:
            found = self._buckets[name] = Bucket(per_minute, now)
        return found


def _used_up(kind: str, bucket: Bucket, now: float) -> Refusal:
    seconds = bucket.wait_seconds(1, now)
    text = (
        f"the key's {bucket.per_minute:g} {kind} per minute are used up; try again in {seconds} s"
    )
    return Refusal(429, text, f"{kind}_used_up", retry_after_seconds=seconds)
