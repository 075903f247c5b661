"""Judges and seeded streams that benchmarks/canary.py compares, on the same requests."""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmOutcomes, CounterSample, Stratum
from validation.counts import CountsJudge
from validation.judge import MetricName, SequentialConfig

Shares = tuple[tuple[float, float], ...]
CONSTANT: Shares = ((0.0, 0.05),)
RAMPED: Shares = ((0.0, 0.05), (600.0, 0.15), (1200.0, 0.5))
PEEK_SECONDS = 60.0
SCRAPE_SECONDS = 1.0
SCRAPE_REQUESTS = 10
"""A scrape each second, or as rarely as that many requests come."""
BASE_ERRORS = 0.001
CLASSIC_RANGE_SECONDS = 300.0
CLASSIC_EVALUATIONS = 16


@dataclass(frozen=True, slots=True)
class Effect:
    """What is wrong with the canary: slower by a factor, failing a share, scoring lower."""

    name: str
    slower: float = 1.0
    failing: float = 0.0
    quality_drop: float = 0.0


@dataclass(frozen=True, slots=True)
class Shape:
    """How traffic comes: a rate and latency modulation over time, and the declared shares."""

    name: str
    shares: Shares = CONSTANT
    bursty: bool = False
    diurnal: bool = False
    autocorrelated: bool = False


SHAPES = (
    Shape("constant"),
    Shape("bursty", bursty=True),
    Shape("diurnal", diurnal=True),
    Shape("autocorrelated", autocorrelated=True),
    Shape("ramped", shares=RAMPED),
)


@dataclass(frozen=True, slots=True)
class Stream:
    """One run's requests as arrays of one length: seconds, arm, latency, error, score, share."""

    seconds: np.ndarray
    canary: np.ndarray
    latency: np.ndarray
    error: np.ndarray
    score: np.ndarray
    share: np.ndarray


def make_stream(seed: int, rate: float, seconds: float, shape: Shape, effect: Effect) -> Stream:
    """Draw one run: `rate` requests/s on average, log-normal latency, drift shared by both arms."""
    random = np.random.default_rng(seed)
    count = int(rate * seconds)
    gaps = random.exponential(1 / rate, count)
    if shape.bursty:
        gaps *= np.where(random.random(count) < 0.5, 0.2, 1.8)
    times = np.cumsum(gaps)
    drift = np.ones(count)
    if shape.diurnal:
        drift = 1 + 0.5 * np.sin(2 * math.pi * times / max(seconds, 1.0))
    if shape.autocorrelated:
        noise = random.normal(0, 0.05, count)
        level = np.zeros(count)
        for index in range(1, count):
            level[index] = 0.98 * level[index - 1] + noise[index]
        drift = np.exp(level)
    steps = np.searchsorted([start for start, _ in shape.shares], times, side="right") - 1
    share = np.array([value for _, value in shape.shares])[steps]
    canary = random.random(count) < share
    latency = random.lognormal(-1.0, 0.5, count) * drift * np.where(canary, effect.slower, 1.0)
    failing = np.where(canary, max(effect.failing, BASE_ERRORS), BASE_ERRORS)
    error = random.random(count) < failing
    mean = np.where(canary, 0.9 - effect.quality_drop, 0.9)
    score = (random.random(count) < mean).astype(float)
    return Stream(times, canary, latency, error, score, share)


@dataclass(frozen=True, slots=True)
class Outcome:
    """When a judge rolled back (None: it did not), and the canary requests exposed until then."""

    seconds: float | None
    canary_requests: int


class Judge(Protocol):
    """Replays one stream."""

    name: str

    def replay(self, stream: Stream, scored: bool) -> Outcome:
        """Return when the judge would have rolled back."""
        ...


@dataclass(slots=True)
class Betting:
    """This project's judge as it runs live: fed by scraped counters, looked at each scrape."""

    name: str = "sequential"
    config: SequentialConfig = field(default_factory=SequentialConfig)

    def replay(self, stream: Stream, scored: bool) -> Outcome:
        """Scrape until a rollback; promotions do not stop the replay, since alarms are counted."""
        metrics: tuple[MetricName, ...] = ("errors", "latency")
        judge = CountsJudge(self.config, (*metrics, "quality") if scored else metrics)
        for seconds, requests, sample in scrapes(stream, scored):
            judge.add(sample)
            if judge.decide().decision == "rollback":
                return Outcome(seconds, int(stream.canary[:requests].sum()))
        return Outcome(None, int(stream.canary.sum()))


def scrapes(stream: Stream, scored: bool) -> Iterator[tuple[float, int, CounterSample]]:
    """Yield (seconds, requests so far, sample) of a gateway that counts the stream."""
    edges = np.array(LATENCY_BUCKETS_SECONDS)
    bucket = np.searchsorted(edges, stream.latency)
    counted: dict[float, tuple[ArmOutcomes, ArmOutcomes]] = {}
    every = max(SCRAPE_SECONDS, SCRAPE_REQUESTS * float(stream.seconds[-1]) / len(stream.seconds))
    times = np.arange(every, float(stream.seconds[-1]) + every, every)
    start = 0
    for now, end in zip(times, np.searchsorted(stream.seconds, times, side="right"), strict=True):
        for share in np.unique(stream.share[start:end]).tolist():
            both = counted.get(share, (ArmOutcomes(), ArmOutcomes()))
            part = np.arange(start, end)[stream.share[start:end] == share]
            of_canary = stream.canary[part]
            counted[share] = (
                _counted(both[False], stream, bucket, part[~of_canary], scored),
                _counted(both[True], stream, bucket, part[of_canary], scored),
            )
        start = end
        strata = tuple(Stratum(share, *both) for share, both in counted.items())
        yield float(now), int(end), CounterSample(float(now), 0.0, None, None, "", strata)


def _counted(
    before: ArmOutcomes, stream: Stream, bucket: np.ndarray, rows: np.ndarray, scored: bool
) -> ArmOutcomes:
    """Add some requests of one arm to its counts."""
    latencies, scores = Counter(before.latencies), Counter(before.scores)
    latencies.update(bucket[rows].tolist())
    if scored:
        scores.update((100 * stream.score[rows]).astype(int).tolist())
    return ArmOutcomes(
        requests=before.requests + len(rows),
        errors=before.errors + int(stream.error[rows].sum()),
        latencies=dict(latencies),
        scores=dict(scores),
    )


def _peeks(stream: Stream) -> Iterator[float]:
    yield from np.arange(PEEK_SECONDS, float(stream.seconds[-1]) + 1, PEEK_SECONDS).tolist()


def _first(stream: Stream, bad: Callable[[float], bool], times: int) -> Outcome:
    """Roll back at the `times`-th consecutive peek that is bad."""
    running = 0
    for now in _peeks(stream):
        running = running + 1 if bad(now) else 0
        if running >= times:
            seen = int(stream.canary[stream.seconds <= now].sum())
            return Outcome(now, seen)
    return Outcome(None, int(stream.canary.sum()))


@dataclass(slots=True)
class Classic:
    """p95 ratio > 1.3 over 5 minutes, 16 consecutive evaluations; error share + 0.5 points."""

    name: str = "classic"

    def replay(self, stream: Stream, scored: bool) -> Outcome:
        """Evaluate each minute, as the alert rule does."""
        del scored

        def bad(now: float) -> bool:
            window = (stream.seconds > now - CLASSIC_RANGE_SECONDS) & (stream.seconds <= now)
            canary, stable = window & stream.canary, window & ~stream.canary
            if not canary.any() or not stable.any():
                return False
            slow = np.quantile(stream.latency[canary], 0.95) > 1.3 * np.quantile(
                stream.latency[stable], 0.95
            )
            failing = stream.error[canary].mean() > stream.error[stable].mean() + 0.005
            return bool(slow or failing)

        return _first(stream, bad, CLASSIC_EVALUATIONS)


@dataclass(slots=True)
class MannWhitney:
    """Rank test on latency and on errors each minute at 98 %, stopped at the first alarm."""

    name: str = "mann-whitney, peeking"
    alpha: float = 0.02

    def replay(self, stream: Stream, scored: bool) -> Outcome:
        """Test all requests so far at each peek."""
        from scipy.stats import mannwhitneyu

        columns = [stream.latency, stream.error.astype(float)]
        if scored:
            columns.append(-stream.score)

        def bad(now: float) -> bool:
            until = int(np.searchsorted(stream.seconds, now, side="right"))
            canary = stream.canary[:until]
            if canary.sum() < 20:
                return False
            return any(
                mannwhitneyu(
                    column[:until][canary], column[:until][~canary], alternative="greater"
                ).pvalue
                < self.alpha
                for column in columns
            )

        return _first(stream, bad, 1)


@dataclass(slots=True)
class FixedHorizon:
    """One look at the end: two-proportion tests at 1 %, with the judge's own tolerances."""

    name: str = "fixed horizon"
    alpha: float = 0.01

    def replay(self, stream: Stream, scored: bool) -> Outcome:
        """Test once, after the last request."""
        from scipy.stats import norm

        canary, stable = stream.canary, ~stream.canary
        edge = np.quantile(stream.latency[stable], 0.95)
        slow = np.where(canary, stream.latency > 1.3 * edge, stream.latency > edge)
        tests = [(slow, 0.0), (stream.error, 0.005)]
        if scored:
            tests.append((1 - stream.score, 0.03))
        for values, tolerance in tests:
            one, two = values[canary], values[stable]
            spread = math.sqrt(one.var() / len(one) + two.var() / len(two)) or math.inf
            statistic = (one.mean() - two.mean() - tolerance) / spread
            if statistic > norm.isf(self.alpha / len(tests)):
                return Outcome(float(stream.seconds[-1]), int(canary.sum()))
        return Outcome(None, int(canary.sum()))
