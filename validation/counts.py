"""Feeds the anytime-valid judge from counters: what settled between two scrapes, by declared share.

Knows samples and restarts of the process that counts; knows no clock, socket or release. Counts
suffice because a scrape's thresholds were fixed before it: the order inside it does not matter.
"""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from core.contracts import (
    ArmOutcomes,
    CanaryDecision,
    CounterSample,
    ScoredPairs,
    Stratum,
)
from validation.judge import MetricName, SequentialConfig, SequentialJudge

BUCKETS_PER_MARGIN = 3
MARGIN = 1.3
"""The buckets grow by 1.3^(1/3): a ratio of 1.3 is exactly three of them."""
QUANTILE = 0.95
WATCHED_SECONDS_MAX = 60.0
"""Time between two samples counts at most this much, so that a clock set forward cannot stand in
for watching."""


@dataclass(slots=True)
class CountedLatency:
    """Stable's running p95 as a bucket edge, from the requests of earlier scrapes only."""

    config: SequentialConfig
    edge: int | None = None
    """Index of the threshold among LATENCY_BUCKETS_SECONDS; None until enough is known."""
    _window: deque[Mapping[int, int]] = field(default_factory=deque)
    _counts: Counter[int] = field(default_factory=Counter)
    _requests: int = 0
    _unread: int = 0

    @property
    def margin_buckets(self) -> int:
        """The allowed ratio in buckets, rounded to the nearest one."""
        return round(BUCKETS_PER_MARGIN * math.log(self.config.p95_ratio, MARGIN))

    def exceeding(self, latencies: Mapping[int, int], margin_buckets: int) -> int:
        """Count requests above the threshold, raised by a margin. Needs a threshold."""
        edge = (self.edge or 0) + margin_buckets
        return sum(count for bucket, count in latencies.items() if bucket > edge)

    def learn(self, latencies: Mapping[int, int]) -> None:
        """Take stable's requests of one scrape in, after every test has bet on them."""
        grown = sum(latencies.values())
        if not grown:
            return
        self._window.append(latencies)
        self._counts.update(latencies)
        self._requests += grown
        self._unread += grown
        while (oldest := sum(self._window[0].values())) <= (
            self._requests - self.config.window_requests
        ):
            self._counts.subtract(self._window.popleft())
            self._requests -= oldest
        config = self.config
        if self._unread >= (
            config.first_requests if self.edge is None else config.refresh_requests
        ):
            self._unread = 0
            self.edge = self._quantile()

    def _quantile(self) -> int:
        """The bucket edge above which the share of the window is nearest to 5 %."""
        above = self._requests
        edge, share_before = 0, math.inf
        for bucket in sorted(self._counts):
            above -= self._counts[bucket]
            share = above / self._requests
            if abs(share - (1 - QUANTILE)) < abs(share_before - (1 - QUANTILE)):
                edge, share_before = bucket, share
        return edge


class CountsJudge:
    """The judge of validation/judge.py, fed by samples; the same guarantee."""

    def __init__(self, config: SequentialConfig, metrics: tuple[MetricName, ...]) -> None:
        self._judge = SequentialJudge(config, metrics, pairs=True)
        self._latency = CountedLatency(config)
        self._before: dict[float, Stratum] = {}
        self._pairs_before: dict[tuple[int, int], int] = {}
        self._process = ""
        self._time_seconds: float | None = None
        self._watched_seconds = 0.0

    def add(self, sample: CounterSample) -> None:
        """Feed what has settled since the last sample; unreadable samples feed nothing."""
        whole = all(map(_readable, sample.strata)) and all(map(_readable_pairs, sample.pairs))
        if not math.isfinite(sample.time_seconds) or not whole:
            return
        self._tick(sample.time_seconds)
        if "quality" in self._judge.metrics:
            self._feed_pairs(sample)
        grown = self._growth(sample)
        centre = self._judge.badness_mean
        for stratum in grown:
            if 0.0 < stratum.share < 1.0:
                self._feed(stratum, centre)
        for stratum in grown:
            self._latency.learn(stratum.stable.latencies)

    def decide(self) -> CanaryDecision:
        """Say what the evidence allows now; may be called as often as wanted."""
        return self._judge.decide()

    def _tick(self, time_seconds: float) -> None:
        if self._time_seconds is not None:
            passed = time_seconds - self._time_seconds
            self._watched_seconds += min(max(passed, 0.0), WATCHED_SECONDS_MAX)
        self._time_seconds = time_seconds
        self._judge.tick(self._watched_seconds)

    def _feed_pairs(self, sample: CounterSample) -> None:
        """Feed the pairs that were added, whatever the share is. A count that fell began at 0."""
        now = {(item.canary_percent, item.stable_percent): item.count for item in sample.pairs}
        before = self._pairs_before if sample.process == self._process else {}
        if any(now.get(scores, 0) < count for scores, count in before.items()):
            before = {}
        self._pairs_before = now
        for (canary, stable), count in sorted(now.items()):
            grown = count - before.get((canary, stable), 0)
            self._judge.feed_pair(canary / 100, stable / 100, grown)

    def _growth(self, sample: CounterSample) -> list[Stratum]:
        """What was added to each stratum. A count that fell, or another process, began at 0."""
        before = self._before
        if sample.process != self._process or any(
            _fell(before[stratum.share], stratum)
            for stratum in sample.strata
            if stratum.share in before
        ):
            before = {}
        self._process = sample.process
        self._before = {stratum.share: stratum for stratum in sample.strata}
        return [
            Stratum(
                stratum.share,
                _minus(stratum.stable, before[stratum.share].stable),
                _minus(stratum.canary, before[stratum.share].canary),
            )
            if stratum.share in before
            else stratum
            for stratum in sample.strata
        ]

    def _feed(self, grown: Stratum, centre: float) -> None:
        share, canary, stable = grown.share, grown.canary, grown.stable
        judge, latency = self._judge, self._latency
        judge.feed_draws(share, canary.requests, stable.requests)
        for name in judge.metrics:
            if name == "errors":
                bad = canary.errors, stable.errors
            elif name == "latency":
                if latency.edge is None:
                    continue
                bad = (
                    latency.exceeding(canary.latencies, latency.margin_buckets),
                    latency.exceeding(stable.latencies, 0),
                )
            elif name == "quality":
                continue
            else:
                bad = canary.blocks, stable.blocks
            counted = (canary.requests, bad[0]), (stable.requests, bad[1])
            judge.feed_counts(name, share, *counted)
        if "quality" in judge.metrics:
            for is_canary, arm in ((True, canary), (False, stable)):
                for percent, times in sorted(arm.scores.items()):
                    judge.feed_score(share, is_canary, percent / 100, centre, times)


def _fell(before: Stratum, now: Stratum) -> bool:
    return any(
        count < 0
        for arm in (_minus(now.stable, before.stable), _minus(now.canary, before.canary))
        for count in (
            arm.requests, arm.errors, arm.blocks, *arm.latencies.values(), *arm.scores.values(),
        )
    )  # fmt: skip


def _minus(now: ArmOutcomes, before: ArmOutcomes) -> ArmOutcomes:
    return ArmOutcomes(
        requests=now.requests - before.requests,
        errors=now.errors - before.errors,
        blocks=now.blocks - before.blocks,
        latencies=_differences(now.latencies, before.latencies),
        scores=_differences(now.scores, before.scores),
    )


def _differences(now: Mapping[int, int], before: Mapping[int, int]) -> dict[int, int]:
    found = {key: now.get(key, 0) - before.get(key, 0) for key in {*now, *before}}
    return {key: found[key] for key in sorted(found) if found[key]}


def _readable(stratum: Stratum) -> bool:
    """Whether counts are whole: one latency per request, no more bad requests than requests."""
    return math.isfinite(stratum.share) and all(
        sum(arm.latencies.values()) == arm.requests >= max(arm.errors, arm.blocks)
        and min(arm.errors, arm.blocks, *arm.latencies.values(), *arm.scores.values(), 0) >= 0
        and all(0 <= percent <= 100 for percent in arm.scores)
        for arm in (stratum.stable, stratum.canary)
    )


def _readable_pairs(pairs: ScoredPairs) -> bool:
    return pairs.count >= 0 and all(
        0 <= percent <= 100 for percent in (pairs.canary_percent, pairs.stable_percent)
    )
