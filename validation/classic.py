"""The classic canary rule: the ratio of the arms' 95th latency percentiles, and their error shares.

Counter samples of both arms in, one decision out, with the semantics of a Prometheus alert: range,
evaluation interval and `for:`. No clock, socket or file.
"""

import math
from collections import deque
from dataclasses import dataclass
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from core.contracts import (
    LATENCY_BUCKETS_SECONDS,
    ArmCounters,
    CanaryDecision,
    CounterSample,
    Figure,
)
from core.counters import NOTHING, ArmIncrease, difference, increase, total

QUANTILE = 0.95
Decision = Literal["continue", "promote", "rollback", "inconclusive"]


class ClassicConfig(BaseModel):
    """When a canary is taken back, promoted or given up. The latency rule is Prometheus' alert
    `p95(canary) / p95(stable) > ratio` over a range, with `for:`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    p95_ratio_max: float = Field(
        default=1.3, gt=1, description="largest allowed p95(canary) / p95(stable)"
    )
    window_seconds: float = Field(
        default=300, gt=0, description="range that each evaluation looks back over"
    )
    evaluate_seconds: float = Field(default=60, gt=0, description="time between evaluations")
    for_seconds: float = Field(
        default=900, ge=0, description="how long the latency rule must hold without a gap"
    )
    latency_requests_min: int = Field(
        default=20, ge=1, description="requests of each arm in the window, else no p95 is read"
    )
    error_margin: float = Field(
        default=0.02, ge=0, le=1, description="allowed error share above stable's"
    )
    error_requests_min: int = Field(
        default=50, ge=1, description="requests of each arm before error shares are compared"
    )
    errors_min: int = Field(
        default=5, ge=1, description="canary errors before the error rule may take it back"
    )
    fast_error_share: float = Field(
        default=0.5, gt=0, le=1, description="canary error share that ends it at once"
    )
    fast_requests_min: int = Field(
        default=20, ge=1, description="canary requests in the window before the fast guard"
    )
    requests_min: int = Field(
        default=1000, ge=1, description="canary requests before it may be promoted"
    )
    seconds_min: float = Field(
        default=900, ge=0, description="seconds of canary traffic before it may be promoted"
    )
    seconds_max: float = Field(
        default=86400, gt=0, description="seconds after which undecided means inconclusive"
    )

    @model_validator(mode="after")
    def _times_fit(self) -> Self:
        if self.seconds_max <= self.seconds_min:
            raise ValueError("seconds_max must be greater than seconds_min")
        if self.window_seconds < self.evaluate_seconds:
            raise ValueError("window_seconds must be at least evaluate_seconds")
        return self


@dataclass(frozen=True, slots=True)
class Reading:
    """Both arms' growth over one span; a property is None where it cannot be read."""

    config: ClassicConfig
    stable: ArmIncrease | None
    canary: ArmIncrease | None

    @property
    def ratio(self) -> float | None:
        """p95(canary) / p95(stable); None with too few requests in either arm."""
        least = self.config.latency_requests_min
        if self.stable is None or self.canary is None:
            return None
        if not (self.stable.requests >= least and self.canary.requests >= least):
            return None
        stable, canary = (arm.latency_quantile(QUANTILE) for arm in (self.stable, self.canary))
        ratio = canary / stable if stable > 0 else math.nan
        return ratio if math.isfinite(ratio) else None

    @property
    def slow(self) -> bool | None:
        """Whether the canary is slower than allowed."""
        return None if self.ratio is None else self.ratio > self.config.p95_ratio_max

    @property
    def failing(self) -> bool | None:
        """Whether the canary fails more often than allowed."""
        least = self.config.error_requests_min
        if self.stable is None or self.canary is None:
            return None
        if not (self.stable.requests >= least and self.canary.requests >= least):
            return None
        above = self.canary.error_share > self.stable.error_share + self.config.error_margin
        return above and self.canary.errors >= self.config.errors_min

    @property
    def broken(self) -> bool:
        """Whether the canary fails so often that no comparison is needed."""
        if self.canary is None or not self.canary.requests >= self.config.fast_requests_min:
            return False
        return self.canary.error_share > self.config.fast_error_share


class _ArmHistory:
    """One arm's growth since its first scrape, and inside a trailing window."""

    def __init__(self) -> None:
        self.since_start = NOTHING
        self.last: ArmCounters | None = None
        self._points: deque[tuple[float, ArmIncrease]] = deque()

    def add(self, time_seconds: float, counters: ArmCounters | None) -> None:
        if counters is None or not _readable(counters):
            return
        if self.last is not None:
            self.since_start = total((self.since_start, increase(self.last, counters)))
        self.last = counters
        self._points.append((time_seconds, self.since_start))

    def window(self, after_seconds: float) -> ArmIncrease | None:
        """Growth between the first and the last scrape after `after_seconds`; forgets older ones.

        None with fewer than two scrapes, as Prometheus' increase().
        """
        points = self._points
        while points and points[0][0] <= after_seconds:
            points.popleft()
        return difference(points[-1][1], points[0][1]) if len(points) >= 2 else None


class _Judge:
    """Walks over the samples once; each method answers with the reason to roll back, or ""."""

    def __init__(self, config: ClassicConfig, start_seconds: float, alone: bool) -> None:
        self.config = config
        self.alone = alone
        self.stable, self.canary = _ArmHistory(), _ArmHistory()
        self.evaluate_at = start_seconds + config.evaluate_seconds
        self.evaluated: Reading | None = None
        self.held_since_seconds: float | None = None
        self.held_seconds = 0.0

    def add(self, sample: CounterSample) -> str:
        """Evaluate the latency rule up to this sample, the error rules with it."""
        while self.evaluate_at < sample.time_seconds:
            if reason := self._evaluate_latency(self.evaluate_at):
                return reason
            self._skip_to(sample.time_seconds)
        self.stable.add(sample.time_seconds, sample.stable)
        self.canary.add(sample.time_seconds, sample.canary)
        return self._errors(self.window(sample.time_seconds)) or self._errors(self.whole)

    def finish(self, now_seconds: float) -> str:
        """Evaluate the latency rule at the last sample when it is due exactly then."""
        return self._evaluate_latency(now_seconds) if self.evaluate_at == now_seconds else ""

    def window(self, time_seconds: float) -> Reading:
        after = time_seconds - self.config.window_seconds
        return Reading(self.config, self.stable.window(after), self.canary.window(after))

    @property
    def whole(self) -> Reading:
        return Reading(self.config, self.stable.since_start, self.canary.since_start)

    def doubt(self, latest: Reading, seconds: float) -> str:
        """What still stands against promotion; empty when nothing does."""
        config, whole, evaluated = self.config, self.whole, self.evaluated
        requests = self.canary.since_start.requests
        if not requests >= config.requests_min:
            return f"{requests} of {config.requests_min} canary requests seen"
        if seconds < config.seconds_min:
            return f"{seconds:.0f} of {config.seconds_min:.0f} s seen"
        readings = [evaluated, latest]
        if self.alone:
            # Not as a guard: if a busy hour falls into a large share, the canary has a larger part
            # of it and looks slow as a whole, however equal the arms are.
            readings.append(whole)
        slow = [reading.slow for reading in readings if reading is not None]
        if evaluated is None or None in slow:
            return "latency cannot be compared: too few requests in an arm"
        if self.alone and None in (latest.failing, whole.failing):
            return "error shares cannot be compared: too few requests in an arm"
        return f"p95 latency is over {config.p95_ratio_max:g} times stable's" if any(slow) else ""

    def _evaluate_latency(self, time_seconds: float) -> str:
        self.evaluated = self.window(time_seconds)
        if not self.evaluated.slow:
            self.held_since_seconds, self.held_seconds = None, 0.0
            return ""
        if self.held_since_seconds is None:
            self.held_since_seconds = time_seconds
        self.held_seconds = time_seconds - self.held_since_seconds
        if self.held_seconds < self.config.for_seconds:
            return ""
        return (
            f"p95 latency is {self.evaluated.ratio:.2f} times stable's, over "
            f"{self.config.p95_ratio_max:g} for {self.held_seconds:.0f} s"
        )

    def _skip_to(self, until_seconds: float) -> None:
        """Set the next evaluation; in a gap longer than two windows only the last ones matter."""
        step = self.config.evaluate_seconds
        self.evaluate_at += step
        gap = until_seconds - self.evaluate_at - self.config.window_seconds
        if gap > self.config.window_seconds:
            self.evaluate_at += gap // step * step

    def _errors(self, reading: Reading) -> str:
        stable, canary, margin = reading.stable, reading.canary, self.config.error_margin
        if canary is not None and reading.broken:
            return f"{canary.error_share:.0%} of {canary.requests} canary requests failed"
        if not self.alone or canary is None or stable is None:
            return ""
        if reading.failing:
            return (
                f"{canary.error_share:.2%} of {canary.requests} canary requests failed, stable's "
                f"{stable.error_share:.2%} of {stable.requests}: more than {margin:.2%} above"
            )
        return ""


class ClassicRule:
    """The rule over a growing series of samples; asking does not change what follows.

    Missing scrapes, NaN, too few requests and a single arm read as "cannot tell": they reset the
    latency rule and never promote. If the clock went back, only what follows counts. Once a rule
    took the canary back, more samples do not change that. Never raises.
    """

    def __init__(self, config: ClassicConfig, alone: bool = True) -> None:
        """Not `alone`, beside another judge, only a canary that fails most requests is taken back
        for its errors: looks at small differences, again and again, would add false alarms."""
        self.config = config
        self._alone = alone
        self._walk: _Judge | None = None
        self._now_seconds = self._first_seconds = math.nan
        self._canary_since_seconds: float | None = None
        self._taken_back: CanaryDecision | None = None

    def add(self, sample: CounterSample) -> None:
        """Take one scrape; one with the time of the last, or with none, is left out."""
        now = sample.time_seconds
        if self._taken_back or not math.isfinite(now) or now == self._now_seconds:
            return
        if self._walk is None or now < self._now_seconds:
            self._walk = _Judge(self.config, now, self._alone)
            self._first_seconds, self._canary_since_seconds = now, None
        self._now_seconds = now
        if self._canary_since_seconds is None and sample.canary is not None and sample.share > 0:
            self._canary_since_seconds = now
        if reason := self._walk.add(sample):
            self._taken_back = _decision("rollback", reason, self._walk, self._walk.window(now))

    @property
    def seconds(self) -> float:
        """Seconds of canary traffic seen."""
        since = self._canary_since_seconds
        return self._now_seconds - (self._first_seconds if since is None else since)

    def decide(self) -> CanaryDecision:
        """Say what follows from the samples so far."""
        walk = self._walk
        if self._taken_back:
            return self._taken_back
        if walk is None:
            return CanaryDecision("continue", "no samples yet")
        latest = walk.window(self._now_seconds)
        if reason := walk.finish(self._now_seconds):
            return _decision("rollback", reason, walk, latest)
        doubt = walk.doubt(latest, self.seconds)
        if not doubt:
            requests = walk.canary.since_start.requests
            reason = f"healthy for {self.seconds:.0f} s and {requests} canary requests"
            return _decision("promote", reason, walk, latest)
        if self.seconds >= self.config.seconds_max:
            reason = f"undecided after {self.seconds:.0f} s: {doubt}"
            return _decision("inconclusive", reason, walk, latest)
        return _decision("continue", doubt, walk, latest)


def _decision(decision: Decision, reason: str, walk: _Judge, reading: Reading) -> CanaryDecision:
    figures: dict[str, Figure] = {
        "p95_ratio": _figure(reading.ratio),
        "p95_ratio_max": walk.config.p95_ratio_max,
        "latency_rule_held_seconds": round(walk.held_seconds, 3),
    }
    for name, whole, window in (
        ("stable", walk.stable.since_start, reading.stable),
        ("canary", walk.canary.since_start, reading.canary),
    ):
        latency = math.nan if window is None else window.latency_quantile(QUANTILE)
        figures[f"{name}_p95_seconds"] = _figure(latency)
        figures[f"{name}_error_share"] = _figure(whole.error_share)
        figures[f"{name}_requests"] = whole.requests
        figures[f"{name}_errors"] = whole.errors
    return CanaryDecision(decision, reason, walk.canary.since_start.requests, figures)


def _readable(counters: ArmCounters) -> bool:
    if len(counters.latency_buckets) != len(LATENCY_BUCKETS_SECONDS):
        return False
    values = (counters.draws, counters.requests, counters.errors, *counters.latency_buckets)
    return math.isfinite(sum(values)) and min(values) >= 0


def _figure(value: float | None) -> Figure:
    return round(value, 6) if value is not None and math.isfinite(value) else None
