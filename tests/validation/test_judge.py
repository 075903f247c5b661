"""The canary judge on request streams: it finds what is bad, leaves alone what is allowed."""

import math
import random
from collections.abc import Iterator

import pytest

from validation.judge import MetricName, Observation, SequentialConfig, SequentialJudge

ALL: tuple[MetricName, ...] = ("errors", "latency")


def stream(
    seed: int,
    requests: int,
    *,
    share: float = 0.05,
    rate: float = 10.0,
    slower: float = 1.0,
    failing: float = 0.0,
    quality: tuple[float, float] | None = None,
) -> Iterator[Observation]:
    """Poisson arrivals, log-normal latency; the canary is `slower` times slower and fails more."""
    generator = random.Random(seed)
    now = 0.0
    for _ in range(requests):
        now += generator.expovariate(rate)
        canary = generator.random() < share
        latency = generator.lognormvariate(-1.0, 0.5) * (slower if canary else 1.0)
        failed = generator.random() < (failing if canary else 0.0)
        score = None
        if quality is not None:
            mean = quality[1] if canary else quality[0]
            score = float(generator.random() < mean)
        yield Observation(now, canary, latency, failed, score)


def run(
    judge: SequentialJudge, observations: Iterator[Observation], share: float = 0.05
) -> tuple[str, int]:
    for index, seen in enumerate(observations):
        judge.observe(seen, share)
        decision = judge.decide()
        if decision.decision != "continue":
            return decision.decision, index
    return "continue", -1


def test_a_healthy_canary_is_promoted_when_the_evidence_is_there() -> None:
    judge = SequentialJudge(SequentialConfig(), ALL)
    decision, index = run(judge, stream(1, 40_000))
    assert decision == "promote"
    assert index >= 23_000


def test_promotion_waits_for_the_shortest_time() -> None:
    judge = SequentialJudge(SequentialConfig(seconds_min=100_000, seconds_max=200_000), ALL)
    assert run(judge, stream(1, 30_000)) == ("continue", -1)


@pytest.mark.parametrize(
    ("slower", "failing", "metric", "latest_index"),
    [(2.0, 0.0, "latency", 6_000), (1.0, 0.05, "errors", 5_000), (1.0, 1.0, "errors", 400)],
)
def test_a_bad_canary_is_rolled_back_and_the_metric_is_named(
    slower: float, failing: float, metric: str, latest_index: int
) -> None:
    judge = SequentialJudge(SequentialConfig(), ALL)
    decision, index = run(judge, stream(2, 20_000, slower=slower, failing=failing))
    assert decision == "rollback"
    assert index < latest_index
    assert judge.decide().reason.startswith(metric)


def test_worse_answers_are_rolled_back() -> None:
    judge = SequentialJudge(SequentialConfig(), ("errors", "quality"))
    decision, _ = run(judge, stream(3, 40_000, share=0.5, quality=(0.9, 0.75)), share=0.5)
    assert decision == "rollback"
    assert judge.decide().reason.startswith("quality")


def test_equal_arms_are_hardly_ever_rolled_back() -> None:
    rolled_back = 0
    for seed in range(60):
        judge = SequentialJudge(SequentialConfig(), ALL)
        for index, seen in enumerate(stream(seed, 1_500, share=0.2)):
            judge.observe(seen, 0.2)
            if index % 25 == 0 and judge.decide().decision == "rollback":
                rolled_back += 1
                break
    assert rolled_back <= 2


def test_a_broken_filter_is_found_by_fewer_blocks() -> None:
    judge = SequentialJudge(SequentialConfig(), ("blocks_up", "blocks_down"))
    generator = random.Random(4)
    for index in range(20_000):
        canary = generator.random() < 0.5
        blocked = not canary and generator.random() < 0.1
        judge.observe(Observation(index / 10, canary, 0.1, False, None, blocked), 0.5)
    assert judge.decide().decision == "rollback"
    assert judge.decide().reason.startswith("blocks_down")


def test_a_metric_without_data_never_promotes() -> None:
    judge = SequentialJudge(SequentialConfig(), ("errors", "latency", "quality"))
    decision, _ = run(judge, stream(5, 30_000))
    assert decision == "continue"
    assert "quality" in judge.decide().reason


def test_out_of_time_is_inconclusive_and_says_what_is_missing() -> None:
    judge = SequentialJudge(SequentialConfig(seconds_min=1, seconds_max=60), ALL)
    assert run(judge, stream(6, 2_000))[0] == "inconclusive"
    assert "errors" in judge.decide().reason


def test_a_share_that_is_not_the_declared_one_is_inconclusive() -> None:
    judge = SequentialJudge(SequentialConfig(), ALL)
    decision, _ = run(judge, stream(7, 20_000, share=0.1), share=0.05)
    assert decision == "inconclusive"


def test_a_share_that_changes_over_time_is_followed() -> None:
    judge = SequentialJudge(SequentialConfig(seconds_min=0), ALL)
    for seen in stream(8, 8_000, share=0.05):
        judge.observe(seen, 0.05)
    for seen in stream(9, 5_000, share=0.5):
        judge.observe(
            Observation(1_000 + seen.time_seconds, seen.canary, seen.latency_seconds, seen.error),
            0.5,
        )
    assert judge.decide().decision == "promote"


@pytest.mark.parametrize(
    "seen",
    [
        Observation(math.nan, True, 0.1, False),
        Observation(0.0, True, math.nan, None),
        Observation(0.0, True, None, None, math.nan),
        Observation(-1e9, False, math.inf, True, 7.0),
    ],
)
def test_missing_and_broken_values_are_no_exception_and_no_promotion(seen: Observation) -> None:
    judge = SequentialJudge(SequentialConfig(seconds_min=0), ALL)
    for _ in range(5_000):
        judge.observe(seen, 0.5)
        judge.observe(seen, 0.0)
    assert judge.decide().decision != "promote"


def test_no_traffic_and_one_armed_traffic_never_promote() -> None:
    silent = SequentialJudge(SequentialConfig(seconds_min=0), ALL)
    assert silent.decide().decision == "continue"
    one_armed = SequentialJudge(SequentialConfig(seconds_min=0), ALL)
    for index in range(30_000):
        one_armed.observe(Observation(index / 100, False, 0.1, False), 0.05)
    assert one_armed.decide().decision == "inconclusive"
