"""Arithmetic on monotone counters: increases across resets, and Prometheus' histogram quantile.

Shared by whoever scrapes counters and whoever judges them; knows neither.
"""

import math
import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters
from core.errors import InputError


@dataclass(frozen=True, slots=True)
class ArmIncrease:
    """How much one arm's counters grew over a span of time; fields as in ArmCounters."""

    draws: int = 0
    requests: int = 0
    errors: int = 0
    latency_buckets: tuple[int, ...] = (0,) * len(LATENCY_BUCKETS_SECONDS)

    @property
    def error_share(self) -> float:
        """Errors per request in 0..1; NaN without a request."""
        return self.errors / self.requests if self.requests else math.nan

    def latency_quantile(self, quantile: float) -> float:
        """The latency in seconds that the share `quantile` stays below; NaN without a request."""
        return histogram_quantile(quantile, self.latency_buckets, self.requests)


NOTHING = ArmIncrease()


def increase(then: ArmCounters, now: ArmCounters) -> ArmIncrease:
    """Return the growth from `then` to `now`, two scrapes of one arm in time order.

    When any counter fell, the process behind them restarted and all of `now` is new, as in
    Prometheus' increase(). Another revision is another series: its first scrape is a starting
    point, not growth. Raises InputError when the bucket counts differ.
    """
    if then.revision != now.revision:
        return NOTHING
    if len(then.latency_buckets) != len(now.latency_buckets):
        raise InputError(
            f"revision {now.revision}: {len(then.latency_buckets)} latency buckets, then "
            f"{len(now.latency_buckets)}; scrape one kind of gateway only"
        )
    before, after = _values(then), _values(now)
    restarted = any(new < old for old, new in zip(before, after, strict=True))
    grown = after if restarted else tuple(b - a for a, b in zip(before, after, strict=True))
    draws, requests, errors, *buckets = grown
    return ArmIncrease(draws, requests, errors, tuple(buckets))


def total(increases: Iterable[ArmIncrease]) -> ArmIncrease:
    """Add increases of equal bucket counts; nothing at all gives zeros."""
    found = list(increases)
    if not found:
        return NOTHING
    buckets = found[0].latency_buckets
    for item in found[1:]:
        buckets = tuple(map(operator.add, buckets, item.latency_buckets))
    return ArmIncrease(
        draws=sum(item.draws for item in found),
        requests=sum(item.requests for item in found),
        errors=sum(item.errors for item in found),
        latency_buckets=buckets,
    )


def difference(after: ArmIncrease, before: ArmIncrease) -> ArmIncrease:
    """Return what was added to a running total between `before` and `after`."""
    return ArmIncrease(
        after.draws - before.draws,
        after.requests - before.requests,
        after.errors - before.errors,
        tuple(map(operator.sub, after.latency_buckets, before.latency_buckets)),
    )


def histogram_quantile(
    quantile: float,
    cumulative: Sequence[float],
    requests: float,
    edges_seconds: Sequence[float] = LATENCY_BUCKETS_SECONDS,
) -> float:
    """Estimate a quantile from cumulative bucket counts, as Prometheus' histogram_quantile().

    `cumulative[i]` counts observations <= `edges_seconds[i]`, `requests` is the +Inf bucket.
    Linear inside a bucket, the first one starting at 0; above the last finite edge that edge is
    the answer; NaN without observations; -inf and +inf for a quantile below 0 and above 1.
    Source: promql/quantile.go of Prometheus.
    """
    if len(cumulative) != len(edges_seconds):
        raise InputError(f"{len(cumulative)} bucket counts for {len(edges_seconds)} bucket edges")
    if not edges_seconds or math.isnan(quantile) or not requests > 0:
        return math.nan
    if not 0 <= quantile <= 1:
        return math.copysign(math.inf, quantile)
    rank = quantile * requests
    below, start = 0.0, 0.0
    for edge, counted in zip(edges_seconds, cumulative, strict=True):
        count = max(counted, below)  # scrapes are not atomic: a later bucket may lag behind
        if count >= rank and count > below:
            return start + (edge - start) * (rank - below) / (count - below)
        below, start = count, edge
    return edges_seconds[-1]


def _values(counters: ArmCounters) -> tuple[int, ...]:
    return (counters.draws, counters.requests, counters.errors, *counters.latency_buckets)
