"""The anytime-valid judge fed by counters: the same verdicts, whatever happens to the counters."""

import dataclasses
import math
import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmOutcomes, CounterSample, Stratum
from validation.canary import CanaryConfig, CanaryJudge, judge
from validation.counts import CountsJudge
from validation.judge import MetricName, Observation, SequentialConfig, SequentialJudge

METRICS: tuple[MetricName, ...] = ("errors", "latency", "blocks_up", "blocks_down")
SCRAPE_SECONDS = 5.0


@dataclass
class Arm:
    """What a gateway has counted of one arm."""

    requests: int = 0
    errors: int = 0
    blocks: int = 0
    latencies: Counter[int] = field(default_factory=Counter)
    scores: Counter[int] = field(default_factory=Counter)

    def outcomes(self) -> ArmOutcomes:
        return ArmOutcomes(
            self.requests, self.errors, self.blocks, dict(self.latencies), dict(self.scores)
        )


@dataclass
class Traffic:
    """Seeded requests of both arms; the canary differs by these."""

    seed: int = 1
    rate: float = 10.0
    slower: float = 1.0
    failing: float = 0.0
    blocked: tuple[float, float] = (0.0, 0.0)
    scores: tuple[float, float] | None = None
    scored: tuple[float, float] = (1.0, 1.0)


def scrapes(
    traffic: Traffic,
    seconds: float,
    shares: Sequence[tuple[float, float]] = ((0.0, 0.5),),
    restart_every: int = 0,
) -> Iterator[CounterSample]:
    """Scrape a simulated gateway every few seconds; it restarts every so many scrapes."""
    generator = random.Random(traffic.seed)
    strata: dict[float, tuple[Arm, Arm]] = {}
    made = 0
    for number in range(int(seconds / SCRAPE_SECONDS) + 1):
        now = number * SCRAPE_SECONDS
        share = [value for start, value in shares if now >= start][-1]
        if restart_every and number % restart_every == 0:
            strata, made = {}, made + 1
        yield CounterSample(
            1e9 + now, share, None, None, f"p{made}",
            tuple(Stratum(key, *(arm.outcomes() for arm in arms)) for key, arms in strata.items()),
        )  # fmt: skip
        arms = strata.setdefault(share, (Arm(), Arm()))
        for _ in range(round(traffic.rate * SCRAPE_SECONDS)):
            _request(generator, traffic, share, arms)


def _request(
    generator: random.Random, traffic: Traffic, share: float, arms: tuple[Arm, Arm]
) -> None:
    canary = generator.random() < share
    arm = arms[canary]
    latency = generator.lognormvariate(-1.0, 0.5) * (traffic.slower if canary else 1.0)
    arm.requests += 1
    arm.errors += canary and generator.random() < traffic.failing
    arm.blocks += generator.random() < traffic.blocked[canary]
    arm.latencies[bisect_left(LATENCY_BUCKETS_SECONDS, latency)] += 1
    if traffic.scores is not None and generator.random() < traffic.scored[canary]:
        arm.scores[100 * (generator.random() < traffic.scores[canary])] += 1


def verdict(
    samples: Iterator[CounterSample],
    config: SequentialConfig = SequentialConfig(),
    metrics: tuple[MetricName, ...] = METRICS,
) -> tuple[str, float]:
    """Feed scrapes until the judge decides; its decision and when."""
    found = CountsJudge(config, metrics)
    for sample in samples:
        found.add(sample)
        made = found.decide()
        if made.decision != "continue":
            return made.decision + ":" + made.reason.partition(":")[0], sample.time_seconds - 1e9
    return "continue", math.inf


def test_a_healthy_canary_is_promoted_after_the_shortest_time() -> None:
    decision, seconds = verdict(scrapes(Traffic(), 1500))
    assert decision.startswith("promote")
    assert 900 <= seconds < 1000


@pytest.mark.parametrize(
    ("traffic", "found", "seconds_max"),
    [
        (Traffic(slower=2.0), "rollback:latency", 180),
        (Traffic(failing=1.0), "rollback:errors", 10),
        (Traffic(failing=0.05), "rollback:errors", 120),
        (Traffic(blocked=(0.0, 0.1)), "rollback:blocks_up", 120),
        (Traffic(blocked=(0.1, 0.0)), "rollback:blocks_down", 120),
    ],
)
def test_a_bad_canary_is_rolled_back_for_what_is_bad(
    traffic: Traffic, found: str, seconds_max: float
) -> None:
    decision, seconds = verdict(scrapes(traffic, 1500))
    assert decision == found
    assert seconds <= seconds_max


def test_worse_answers_are_rolled_back_and_unscored_ones_never_promote() -> None:
    metrics: tuple[MetricName, ...] = ("errors", "latency", "quality")
    bad = Traffic(scores=(0.9, 0.75))
    assert verdict(scrapes(bad, 1500), metrics=metrics)[0] == "rollback:quality"
    good = Traffic(scores=(0.9, 0.9))
    assert verdict(scrapes(good, 3000), metrics=metrics)[0].startswith("promote")
    assert verdict(scrapes(Traffic(), 3000), metrics=metrics)[0] == "continue"


def test_quality_is_not_judged_when_the_arms_are_not_scored_equally_often() -> None:
    """Only the canary's bad answers are scored: that says nothing about its answers."""
    picked = Traffic(scores=(0.9, 0.1), scored=(1.0, 0.2))
    judging = CountsJudge(SequentialConfig(quality_tolerance=0.8), ("errors", "quality"))
    for sample in scrapes(picked, 2000):
        judging.add(sample)
    assert judging.decide().decision == "continue"
    assert "not scored equally often" in judging.decide().reason


def test_counters_that_begin_anew_neither_alarm_nor_lose_the_evidence() -> None:
    decision, seconds = verdict(scrapes(Traffic(), 2000, restart_every=7))
    assert decision.startswith("promote")
    assert seconds < 1400
    assert verdict(scrapes(Traffic(slower=2.0), 900, restart_every=7))[0] == "rollback:latency"


def test_a_restart_is_seen_without_a_process_name_when_counts_fall() -> None:
    samples = [
        dataclasses.replace(sample, process="")
        for sample in scrapes(Traffic(), 2000, restart_every=9)
    ]
    assert verdict(iter(samples))[0].startswith("promote")


def test_shares_that_change_are_followed_and_kept_apart() -> None:
    steps = ((0.0, 0.05), (300.0, 0.15), (600.0, 0.5))
    assert verdict(scrapes(Traffic(), 3000, steps))[0].startswith("promote")
    assert verdict(scrapes(Traffic(slower=1.5, seed=3), 3000, steps))[0] == "rollback:latency"


def test_a_share_that_is_not_the_declared_one_is_inconclusive() -> None:
    wrong = [
        dataclasses.replace(
            sample, strata=tuple(dataclasses.replace(item, share=0.3) for item in sample.strata)
        )
        for sample in scrapes(Traffic(), 600)
    ]
    assert verdict(iter(wrong))[0].startswith("inconclusive")


def broken(sample: CounterSample, what: str) -> CounterSample:
    """Spoil a sample in one way."""
    if what == "no time":
        return dataclasses.replace(sample, time_seconds=math.nan)
    if what == "no counts":
        return dataclasses.replace(sample, strata=())
    arm = ArmOutcomes(requests=10, errors=50, latencies={3: 10})
    if what == "one arm":
        strata = tuple(Stratum(item.share, item.stable, ArmOutcomes()) for item in sample.strata)
        return dataclasses.replace(sample, strata=strata)
    share = math.nan if what == "no share" else 0.5
    return dataclasses.replace(sample, strata=(Stratum(share, arm, arm),))


@pytest.mark.parametrize("what", ["no time", "no counts", "one arm", "no share", "nonsense"])
def test_what_cannot_be_read_never_promotes(what: str) -> None:
    samples = (broken(sample, what) for sample in scrapes(Traffic(), 3000))
    assert verdict(samples)[0].partition(":")[0] in ("continue", "inconclusive")


@pytest.mark.parametrize("step", [-7200.0, 7200.0])
def test_a_clock_that_steps_neither_promotes_early_nor_ends_a_canary(step: float) -> None:
    samples = [
        dataclasses.replace(sample, time_seconds=sample.time_seconds + step * (number > 20))
        for number, sample in enumerate(scrapes(Traffic(), 500))
    ]
    assert verdict(iter(samples), SequentialConfig(seconds_max=3600))[0] == "continue"


def test_equal_arms_are_hardly_ever_rolled_back() -> None:
    config = SequentialConfig(seconds_min=10_000, seconds_max=20_000)
    steps = ((0.0, 0.05), (200.0, 0.5))
    ends = [
        verdict(scrapes(Traffic(seed=seed, blocked=(0.02, 0.02)), 400, steps), config)[0]
        for seed in range(60)
    ]
    assert sum(end != "continue" for end in ends) <= 2


def test_counts_and_requests_give_the_same_evidence_on_errors() -> None:
    """The order inside a scrape does not matter: both feeds multiply the same pay-offs."""
    one = SequentialJudge(SequentialConfig(), ("errors",))
    two = CountsJudge(SequentialConfig(), ("errors",))
    generator = random.Random(5)
    arms = Arm(), Arm()
    for _ in range(2000):
        canary, failed = generator.random() < 0.3, generator.random() < 0.02
        one.observe(Observation(0.0, canary, 0.1, failed), 0.3)
        arms[canary].requests += 1
        arms[canary].errors += failed
        arms[canary].latencies[5] += 1
    stable, canary_arm = (arm.outcomes() for arm in arms)
    two.add(CounterSample(0.0, 0.3, None, None, "p", (Stratum(0.3, stable, canary_arm),)))
    expected = one.decide().figures
    for name, value in two.decide().figures.items():
        if isinstance(value, float):
            assert value == pytest.approx(expected[name], abs=1e-9), name


def test_a_fold_says_the_same_as_the_whole_series_at_every_sample() -> None:
    config = CanaryConfig(requests_min=10, seconds_min=100)
    samples = list(scrapes(Traffic(failing=0.02), 200))
    folded = CanaryJudge(config)
    for end, sample in enumerate(samples, 1):
        folded.add(sample)
        folded.decide()
        assert folded.decide() == judge(config, samples[:end])
