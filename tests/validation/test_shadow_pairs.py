"""Shadow pairs in the judge: paired evidence on quality, beside the split's and never pooled."""

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest

from core.contracts import ArmCounters, ArmOutcomes, CounterSample, ScoredPairs, Stratum
from core.errors import InputError
from validation.canary import CanaryConfig, CanaryJudge
from validation.counts import CountsJudge
from validation.judge import MetricName, Observation, SequentialConfig, SequentialJudge
from validation.sequential import PairedTest

QUALITY: tuple[MetricName, ...] = ("quality",)
ALL: tuple[MetricName, ...] = ("errors", "latency", "blocks_up", "blocks_down", "quality")


def scored(counts: Counter[tuple[int, int]]) -> tuple[ScoredPairs, ...]:
    return tuple(ScoredPairs(*scores, count) for scores, count in sorted(counts.items()))


def scrapes(
    seed: int,
    good: tuple[float, float],
    number: int = 60,
    pairs: int = 10,
    split: int = 0,
    restart_every: int = 0,
) -> Iterator[CounterSample]:
    """Scrapes with so many new pairs and split requests each; `good` is (stable, canary)."""
    chance = random.Random(seed)
    counts: Counter[tuple[int, int]] = Counter()
    arms: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
    made = 0
    idle = ArmCounters("r", 0, 0, 0, (0,) * 126)
    for index in range(number):
        if restart_every and index % restart_every == 0:
            counts, arms, made = Counter(), (Counter(), Counter()), made + 1
        outcomes = [ArmOutcomes(arm.total(), 0, 0, {20: arm.total()}, dict(arm)) for arm in arms]
        strata = (Stratum(0.5, *outcomes),) if split else ()
        share = 0.5 if split else 0.0
        yield CounterSample(1e9 + 5 * index, share, idle, idle, f"p{made}", strata, scored(counts))
        for _ in range(pairs):
            stable, canary = (100 * (chance.random() < p) for p in good)
            counts[canary, stable] += 1
        for _ in range(split):
            arm = chance.random() < 0.5
            arms[arm][100 * (chance.random() < good[arm])] += 1


def decision(
    samples: Iterator[CounterSample],
    config: SequentialConfig,
    metrics: tuple[MetricName, ...] = QUALITY,
) -> str:
    """The first decision other than to continue."""
    judge = CountsJudge(config, metrics)
    for sample in samples:
        judge.add(sample)
        made = judge.decide().decision
        if made != "continue":
            return made
    return "continue"


def test_a_worse_canary_is_taken_back_from_pairs_alone_at_share_0() -> None:
    judge = CanaryJudge(CanaryConfig(judge_quality=True))
    for sample in scrapes(1, good=(0.9, 0.6), number=40):
        judge.add(sample)
    made = judge.decide()
    assert (made.decision, made.canary_requests) == ("rollback", 0)
    assert made.reason == "quality: the canary's answers score lower than allowed"
    assert made.figures["quality.pairs"] == 390
    assert made.figures["quality.pairs_difference"] == pytest.approx(0.3, abs=0.08)
    for name in ("errors", "latency", "blocks_up", "blocks_down"):
        evidence = made.figures[f"{name}.log_evidence_rollback"]
        assert evidence == pytest.approx(0.0, abs=1e-9), name
    assert made.figures["share.log_evidence_mismatch"] == pytest.approx(0.0, abs=1e-9)


def test_an_equal_or_better_canary_is_neither_taken_back_nor_promoted_from_pairs() -> None:
    for good in ((0.9, 0.9), (0.5, 1.0)):
        judge = CanaryJudge(CanaryConfig(judge_quality=True))
        for sample in scrapes(2, good, number=300):
            judge.add(sample)
        made = judge.decide()
        assert made.decision == "continue"
        assert made.figures["quality.log_evidence_rollback"] < 1  # type: ignore[operator]


def test_pairs_are_not_judged_where_quality_is_not() -> None:
    judge = CanaryJudge(CanaryConfig())
    for sample in scrapes(1, good=(1.0, 0.0)):
        judge.add(sample)
    made = judge.decide()
    assert made.decision == "continue"
    assert not [name for name in made.figures if "pairs" in name]


@pytest.mark.parametrize("split", [0, 10])
def test_equal_versions_stay_within_alpha(split: int) -> None:
    """No tolerance at all, which is the hardest case, and a look after every scrape."""
    config = SequentialConfig(quality_tolerance=0.0, alpha_rollback=0.05, seconds_max=1e6)
    runs = 200
    ends = [
        decision(scrapes(seed, (0.8, 0.8), number=50, split=split), config) for seed in range(runs)
    ]
    assert ends.count("rollback") <= 0.05 * runs


@pytest.mark.parametrize("split", [0, 10])
def test_a_canary_out_of_tolerance_is_promoted_within_alpha(split: int) -> None:
    config = SequentialConfig(
        quality_tolerance=0.05, alpha_promote=0.1, alpha_rollback=1e-9, seconds_min=0,
        seconds_max=1e6,
    )  # fmt: skip
    runs = 100
    ends = [
        decision(scrapes(seed, (0.8, 0.74), number=40, split=split), config) for seed in range(runs)
    ]
    assert ends.count("promote") <= 0.1 * runs


def test_the_evidence_is_the_mean_of_both_designs() -> None:
    judge = SequentialJudge(SequentialConfig(), QUALITY, pairs=True)
    alone = SequentialJudge(SequentialConfig(), QUALITY)
    pairs = PairedTest(SequentialConfig().quality_tolerance)
    for _ in range(30):
        judge.feed_pair(0.2, 0.7)
        pairs.observe(0.8, 0.3)
    quality = judge.metrics["quality"]
    assert quality.log_against == pytest.approx(math.log((1 + math.exp(pairs.log_against)) / 2))
    for number in range(60):
        for one in (judge, alone):
            one.observe(Observation(0.0, number % 2 == 0, 0.1, False, quality=0.5), 0.5)
    split = alone.metrics["quality"]
    for mine, its, other in (
        (quality.log_against, split.log_against, pairs.log_against),
        (quality.log_for, split.log_for, pairs.log_for),
    ):
        assert math.exp(mine) == pytest.approx((math.exp(its) + math.exp(other)) / 2)
    with pytest.raises(InputError):
        alone.feed_pair(1.0, 1.0)


def test_the_requests_left_are_those_that_the_split_still_needs() -> None:
    goal = math.log(20)
    judge = SequentialJudge(SequentialConfig(), QUALITY, pairs=True)
    judge.metrics["quality"].test.observe_counts(0.5, 0, 0, 100)
    more = judge.metrics["quality"].requests_left(goal)
    assert more is not None
    judge.metrics["quality"].test.observe_counts(0.5, 0, 0, more + 2)
    assert judge.metrics["quality"].log_for >= goal
    assert judge.metrics["quality"].requests_left(goal) == 0


def test_pairs_decide_where_the_arms_are_not_scored_equally_often() -> None:
    """Evaluators who score one arm only spoil the split, not the pairs."""
    judge = SequentialJudge(SequentialConfig(), QUALITY, pairs=True)
    for _ in range(300):
        judge.feed_score(0.5, False, 1.0, 0.5)
    assert "not scored equally often" in judge.decide().reason
    for _ in range(200):
        judge.feed_pair(0.0, 1.0)
    assert judge.decide().decision == "rollback"


def test_restarts_neither_lose_pairs_nor_count_them_twice() -> None:
    whole, torn = (CountsJudge(SequentialConfig(), QUALITY) for _ in range(2))
    for sample in scrapes(3, (0.9, 0.8), number=21):
        whole.add(sample)
    for sample in scrapes(3, (0.9, 0.8), number=21, restart_every=5):
        torn.add(sample)
    assert whole.decide().figures["quality.pairs"] == 200
    assert torn.decide().figures["quality.pairs"] == 160  # what no scrape has seen is lost
    unnamed = CountsJudge(SequentialConfig(), QUALITY)
    for sample in scrapes(3, (0.9, 0.8), number=21, restart_every=5):
        unnamed.add(dataclasses.replace(sample, process=""))
    assert unnamed.decide().figures["quality.pairs"] == 160


@pytest.mark.parametrize("wrong", [ScoredPairs(101, 0, 5), ScoredPairs(0, 0, -1)])
def test_pairs_that_cannot_be_feed_nothing(wrong: ScoredPairs) -> None:
    judge = CountsJudge(SequentialConfig(), ALL)
    judge.add(CounterSample(1e9, 0.0, None, None, "p", (), (wrong,)))
    assert judge.decide().figures["quality.pairs"] == 0


def test_a_decision_follows_from_the_samples_as_they_are_kept() -> None:
    config = CanaryConfig(judge_quality=True)
    first, again = CanaryJudge(config), CanaryJudge(config)
    for sample in scrapes(4, (0.9, 0.8), split=5):
        first.add(sample)
        again.add(msgspec.json.decode(msgspec.json.encode(sample), type=CounterSample))
        assert first.decide() == again.decide()
