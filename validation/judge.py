"""The anytime-valid canary judge: one betting test per metric, fed in the order of assignment.

Knows requests (arm, latency, error, quality, block) and declared shares; knows no counters and no
release. Guarantee at any peeking schedule: P(ever rolling back a canary within tolerance) <=
alpha_rollback, P(ever promoting one out of tolerance) <= alpha_promote.
"""

import bisect
import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import CanaryDecision, Figure
from core.errors import InputError
from validation.sequential import DifferenceTest, PairedTest, ShareTest, log_mean_exp

METRICS = ("errors", "latency", "blocks_up", "blocks_down", "quality")
MetricName = Literal["errors", "latency", "blocks_up", "blocks_down", "quality"]


class BettingConfig(BaseModel):
    """Error rates and tolerances of the bets, and how stable's p95 is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    alpha_rollback: float = Field(
        default=0.01, gt=0, lt=1, description="chance of ever rolling back a canary in tolerance"
    )
    alpha_promote: float = Field(
        default=0.05, gt=0, lt=1, description="chance of ever promoting one out of tolerance"
    )
    alpha_share: float = Field(
        default=0.001, gt=0, lt=1, description="chance of a false alarm about the routing share"
    )
    error_tolerance: float = Field(
        default=0.005, ge=0, lt=1, description="allowed rise of the error share"
    )
    block_tolerance: float = Field(
        default=0.005, ge=0, lt=1, description="allowed change of the blocked share, both ways"
    )
    quality_tolerance: float = Field(
        default=0.03, ge=0, lt=1, description="allowed fall of the mean score"
    )
    restart_seconds: float = Field(
        default=900, gt=0, description="new bets against the canary this often"
    )
    window_requests: int = Field(
        default=15_000, ge=100, description="stable requests that its p95 is read from"
    )
    refresh_requests: int = Field(
        default=600, ge=1, description="stable requests between two readings"
    )
    first_requests: int = Field(
        default=200, ge=20, description="stable requests before the first reading"
    )


class SequentialConfig(BettingConfig):
    """All that the judge decides by."""

    p95_ratio: float = Field(
        default=1.3, ge=1, description="allowed p95 latency, as a ratio to stable's"
    )
    seconds_min: float = Field(
        default=900, ge=0, description="no promotion before this many seconds"
    )
    seconds_max: float = Field(
        default=86_400, gt=0, description="inconclusive after this many seconds"
    )


@dataclass(frozen=True, slots=True)
class Observation:
    """One request, in the order of assignment. None is "not known"; `time_seconds` may step.

    A request unanswered after its deadline is an error with an infinite latency.
    """

    time_seconds: float
    canary: bool
    latency_seconds: float | None
    error: bool | None
    quality: float | None = None
    blocked: bool | None = None


@dataclass(slots=True)
class StableLatency:
    """The running p95 of stable's latency, from earlier requests only, read every so often."""

    config: SequentialConfig
    threshold_seconds: float | None = None
    _window: deque[float] = field(default_factory=deque)
    _sorted: list[float] = field(default_factory=list)
    _unread: int = 0

    def add(self, latency_seconds: float) -> None:
        """Take one stable request in; the threshold moves only at a reading."""
        self._window.append(latency_seconds)
        bisect.insort(self._sorted, latency_seconds)
        if len(self._window) > self.config.window_requests:
            oldest = self._window.popleft()
            del self._sorted[bisect.bisect_left(self._sorted, oldest)]
        self._unread += 1
        wanted = self.config.refresh_requests
        if self.threshold_seconds is None:
            wanted = self.config.first_requests
        if self._unread >= wanted:
            self._unread = 0
            self.threshold_seconds = self._sorted[math.ceil(0.95 * len(self._sorted)) - 1]


@dataclass(slots=True)
class Metric:
    """One metric's test with its sample sizes, and a second test where pairs are judged as well.

    Both are e-processes: whenever one looks, the expected wealth is at most 1 if the canary is
    within tolerance (to roll back) or out of it (to promote). So is their mean (W + P) / 2, because
    expectations add up, whatever ties the two together: the split and the pairs see the same
    canary, and often the same prompts. Their product would need independence, and pooling the
    increments a common design. A test without data still has its stake of 1: the other one decides
    with half of its wealth, (W + 1) / 2, hence has to win about twice as much.
    """

    test: DifferenceTest
    paired: PairedTest | None = None
    canary_requests: int = 0
    stable_requests: int = 0
    unknown: int = 0

    @property
    def log_against(self) -> float:
        """Log evidence to roll back."""
        if self.paired is None:
            return self.test.log_against
        return log_mean_exp([self.test.log_against, self.paired.log_against])

    @property
    def log_against_by_pairs(self) -> float:
        """The same without what the split says: its wealth counts as lost."""
        if self.paired is None:
            return -math.inf
        return self.paired.log_against - math.log(2)

    @property
    def log_for(self) -> float:
        """Log evidence to promote."""
        if self.paired is None:
            return self.test.log_for
        return log_mean_exp([self.test.log_for, self.paired.log_for])

    def requests_left(self, log_goal: float) -> int | None:
        """Requests of the split until `log_for` reaches a goal at its pace so far, if it does."""
        if self.log_for >= log_goal:
            return 0
        if self.paired is not None:  # (W + P) / 2 reaches it when W reaches twice the goal, less P
            share = math.exp(self.paired.log_for - math.log(2) - log_goal)
            log_goal += math.log(2) + math.log1p(-share)
        return self.test.requests_left(log_goal)

    def count(self, canary: bool, known: bool, times: int = 1) -> None:
        """Count requests of an arm, and whether their value was known."""
        self.canary_requests += times * canary
        self.stable_requests += times * (not canary)
        self.unknown += times * (not known)


class SequentialJudge:
    """Feeds observations to the tests of the configured metrics and says what follows."""

    def __init__(
        self, config: SequentialConfig, metrics: tuple[MetricName, ...], pairs: bool = False
    ) -> None:
        """`pairs` lets scored shadow pairs share in the judgement of quality."""
        self.config = config
        tolerances: Mapping[str, float] = {
            "errors": config.error_tolerance,
            "latency": 0.0,
            "blocks_up": config.block_tolerance,
            "blocks_down": config.block_tolerance,
            "quality": config.quality_tolerance,
        }
        self.metrics: dict[str, Metric] = {
            name: Metric(DifferenceTest(tolerances[name])) for name in metrics
        }
        if pairs and "quality" in self.metrics:
            self.metrics["quality"].paired = PairedTest(config.quality_tolerance)
        self.share = ShareTest()
        self.scored_share = ShareTest()
        self.latency = StableLatency(config)
        self.canary_requests = 0
        self.requests = 0
        self._scores = 0
        self._badness_sum = 0.0
        self._start_seconds: float | None = None
        self._now_seconds = 0.0
        self._restarts = 0

    @property
    def elapsed_seconds(self) -> float:
        """Seconds between the first observation and the latest; a clock stepping back adds 0."""
        return 0.0 if self._start_seconds is None else self._now_seconds - self._start_seconds

    def observe(self, seen: Observation, share: float) -> None:
        """Feed one request and its declared canary share; shares of 0 and 1 judge nothing."""
        if math.isfinite(seen.time_seconds):
            self.tick(seen.time_seconds)
        if 0.0 < share < 1.0:
            self.feed_draws(share, int(seen.canary), int(not seen.canary))
            for name, metric in self.metrics.items():
                self._feed(name, metric, seen, share)
        self._learn(seen)

    def tick(self, time_seconds: float) -> None:
        """Let time pass; going back adds none. Opens new bets when they are due."""
        if self._start_seconds is None:
            self._start_seconds = self._now_seconds = time_seconds
        self._now_seconds = max(self._now_seconds, time_seconds)
        due = int(self.elapsed_seconds // self.config.restart_seconds)
        if due > self._restarts:
            self._restarts = due
            for metric in self.metrics.values():
                metric.test.restart()

    def feed_draws(self, share: float, canary: int, stable: int) -> None:
        """Count what was drawn at a declared share."""
        self.requests += canary + stable
        self.canary_requests += canary
        self.share.observe_counts(share, canary, stable)

    def feed_counts(
        self, name: str, share: float, canary: tuple[int, int], stable: tuple[int, int]
    ) -> None:
        """Feed a 0/1 metric what each arm counted at one share: (requests, bad ones)."""
        metric = self.metrics[name]
        if name == "blocks_down":
            share, first, second = 1 - share, stable, canary
        else:
            first, second = canary, stable
        good = first[0] + second[0] - first[1] - second[1]
        metric.test.observe_counts(share, first[1], second[1], good)
        metric.canary_requests += canary[0]
        metric.stable_requests += stable[0]

    def feed_score(
        self, share: float, canary: bool, score: float, centre: float, times: int = 1
    ) -> None:
        """Feed scored answers, each 0..1; `centre` was the mean badness before any of them."""
        metric = self.metrics["quality"]
        metric.test.observe(share, canary, 1.0 - score, centre, times)
        metric.count(canary, True, times)
        self.scored_share.observe_counts(share, times * canary, times * (not canary))
        self._badness_sum += times * (1.0 - score)
        self._scores += times

    def feed_pair(self, canary_score: float, stable_score: float, times: int = 1) -> None:
        """Feed prompts that both versions answered, each score 0..1; needs `pairs`."""
        paired = self.metrics["quality"].paired
        if paired is None:
            raise InputError("this judge was made without pairs")
        paired.observe(1.0 - canary_score, 1.0 - stable_score, times)

    @property
    def badness_mean(self) -> float:
        """The mean badness of all scored answers so far; 0.5 before the first."""
        return self._badness_sum / self._scores if self._scores else 0.5

    def decide(self) -> CanaryDecision:
        """Say what the evidence allows now; may be called as often as wanted."""
        threshold = math.log(len(self.metrics) / self.config.alpha_rollback)
        mismatch = -math.log(self.config.alpha_share)
        unusable = {"quality"} if self.scored_share.log_against >= mismatch else set()
        for name, metric in self.metrics.items():
            against = metric.log_against_by_pairs if name in unusable else metric.log_against
            if against >= threshold:
                return self._decision("rollback", f"{name}: {_REASONS[name]}")
        if self.share.log_against >= mismatch:
            return self._decision("inconclusive", "the routing share is not the declared one")
        goal = -math.log(self.config.alpha_promote)
        missing = [
            name for name, item in self.metrics.items() if name in unusable or item.log_for < goal
        ]
        early = self.elapsed_seconds < self.config.seconds_min
        if self.metrics and not missing and not early:
            return self._decision("promote", "every metric is shown to be within its tolerance")
        if self.elapsed_seconds >= self.config.seconds_max:
            names = ", ".join(missing) or "none"
            return self._decision("inconclusive", f"out of time; evidence still missing: {names}")
        return self._decision("continue", _waiting_for(missing, early, unusable))

    def _decision(
        self, decision: Literal["continue", "promote", "rollback", "inconclusive"], reason: str
    ) -> CanaryDecision:
        return CanaryDecision(decision, reason, self.canary_requests, self._figures())

    def _figures(self) -> dict[str, Figure]:
        against = math.log(len(self.metrics) / self.config.alpha_rollback)
        promoting = -math.log(self.config.alpha_promote)
        found: dict[str, Figure] = {"share.log_evidence_mismatch": self.share.log_against}
        for name, metric in self.metrics.items():
            found |= {
                f"{name}.log_evidence_rollback": metric.log_against,
                f"{name}.log_threshold_rollback": against,
                f"{name}.log_evidence_promote": metric.log_for,
                f"{name}.log_threshold_promote": promoting,
                f"{name}.canary_requests": metric.canary_requests,
                f"{name}.stable_requests": metric.stable_requests,
                f"{name}.unknown": metric.unknown,
                f"{name}.tolerance": metric.test.tolerance,
                f"{name}.difference": metric.test.difference,
                f"{name}.requests_left": metric.requests_left(promoting),
            }
            if metric.paired is not None:
                found |= {
                    f"{name}.pairs": metric.paired.pairs,
                    f"{name}.pairs_difference": metric.paired.difference,
                    f"{name}.pairs_log_evidence_rollback": metric.paired.log_against,
                    f"{name}.pairs_log_evidence_promote": metric.paired.log_for,
                }
        return found

    def _feed(self, name: str, metric: Metric, seen: Observation, share: float) -> None:
        if name == "quality":
            if seen.quality is not None and 0.0 <= seen.quality <= 1.0:
                self.feed_score(share, seen.canary, seen.quality, self.badness_mean)
            return
        if name == "latency" and self.latency.threshold_seconds is None:
            return
        badness = self._badness(name, seen)
        if name == "blocks_down":
            metric.test.observe(1 - share, not seen.canary, badness)
        else:
            metric.test.observe(share, seen.canary, badness)
        metric.count(seen.canary, badness is not None)

    def _badness(self, name: str, seen: Observation) -> float | None:
        if name == "errors":
            return None if seen.error is None else float(seen.error)
        if name == "latency":
            if seen.latency_seconds is None or math.isnan(seen.latency_seconds):
                return None
            ratio = self.config.p95_ratio if seen.canary else 1.0
            return float(seen.latency_seconds > ratio * (self.latency.threshold_seconds or 0.0))
        return None if seen.blocked is None else float(seen.blocked)

    def _learn(self, seen: Observation) -> None:
        """Use a request for later thresholds only after every test has bet on it."""
        latency = seen.latency_seconds
        if not seen.canary and latency is not None and not math.isnan(latency):
            self.latency.add(latency)


_REASONS = {
    "errors": "the canary fails more requests than allowed",
    "latency": "the canary's p95 is above the allowed ratio",
    "blocks_up": "the canary's answers are blocked more often than stable's",
    "blocks_down": "the canary's answers are blocked less often: its filter may be broken",
    "quality": "the canary's answers score lower than allowed",
}


def _waiting_for(missing: Sequence[str], early: bool, unusable: Collection[str]) -> str:
    parts = [f"evidence on {name}" for name in missing] + (["the shortest time"] if early else [])
    text = "waiting for " + (", ".join(parts) or "a first metric")
    if unusable:
        text += "; the arms' answers are not scored equally often: quality cannot be judged"
    return text
