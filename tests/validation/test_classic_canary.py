"""The classic canary rule: what takes a canary back, what promotes it, and what tells nothing."""

import dataclasses
import math
import subprocess
import sys
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest
from pydantic import ValidationError

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters, CounterSample
from validation.canary import CanaryConfig, judge
from validation.classic import ClassicRule

CONFIG = CanaryConfig(betting=None, requests_min=200, seconds_min=900, seconds_max=7200)
STEP_SECONDS = 15.0


@dataclass
class Traffic:
    """Requests per scrape, their latency and how many of them fail, as functions of time."""

    requests: Callable[[float], int] = lambda seconds: 30
    latency_seconds: Callable[[float], float] = lambda seconds: 0.1
    errors: Callable[[float], int] = lambda seconds: 0


def steady(requests: int = 30, latency_seconds: float = 0.1, errors: int = 0) -> Traffic:
    return Traffic(lambda _: requests, lambda _: latency_seconds, lambda _: errors)


def scrapes(traffic: Traffic, revision: str, times: Sequence[float]) -> list[ArmCounters]:
    buckets = [0] * len(LATENCY_BUCKETS_SECONDS)
    requests = errors = 0
    found = []
    for seconds in times:
        count = traffic.requests(seconds)
        requests += count
        errors += traffic.errors(seconds)
        edge = bisect_left(LATENCY_BUCKETS_SECONDS, traffic.latency_seconds(seconds))
        for index in range(edge, len(buckets)):
            buckets[index] += count
        found.append(ArmCounters(revision, requests, requests, errors, tuple(buckets)))
    return found


def samples(
    canary: Traffic, seconds: float, stable: Traffic | None = None, step: float = STEP_SECONDS
) -> list[CounterSample]:
    times = [1e9 + index * step for index in range(int(seconds / step) + 1)]
    relative = [moment - 1e9 for moment in times]
    arms = zip(
        times,
        scrapes(stable or steady(), "assistant-00001", relative),
        scrapes(canary, "assistant-00002", relative),
        strict=True,
    )
    return [CounterSample(moment, 0.5, one, two) for moment, one, two in arms]


def fires_at(found: Sequence[CounterSample], config: CanaryConfig = CONFIG) -> float | None:
    """Seconds after the first sample at which the judge first says rollback."""
    for end in range(1, len(found) + 1):
        if judge(config, found[:end]).decision == "rollback":
            return found[end - 1].time_seconds - found[0].time_seconds
    return None


def test_a_healthy_canary_is_promoted_after_its_minimum() -> None:
    found = samples(steady(), 1200)
    assert judge(CONFIG, found[:60]).decision == "continue"
    decision = judge(CONFIG, found)
    assert decision.decision == "promote"
    assert decision.canary_requests == 30 * 80
    assert decision.figures["p95_ratio"] == pytest.approx(1.0)


def test_a_slow_canary_is_taken_back_at_the_sixteenth_true_evaluation() -> None:
    found = samples(steady(latency_seconds=0.2), 1500)
    fired = fires_at(found)
    assert fired is not None
    # true evaluations at 60, 120, ..., 960 s: the sixteenth is 900 s after the first
    assert 960 <= fired <= 960 + STEP_SECONDS
    decision = judge(CONFIG, found)
    assert decision.decision == "rollback"
    assert "p95 latency" in decision.reason


def test_one_evaluation_within_bounds_resets_the_latency_rule() -> None:
    def latency(seconds: float) -> float:
        return 0.1 if 600 <= seconds < 960 else 0.2

    config = CONFIG.model_copy(update={"window_seconds": 60.0})
    fired = fires_at(samples(Traffic(latency_seconds=latency), 2400), config)
    assert fired is not None
    assert fired >= 960 + 900


def test_a_gap_in_the_scrapes_resets_the_latency_rule() -> None:
    found = samples(steady(latency_seconds=0.2), 1500)
    start = found[0].time_seconds
    with_gap = [item for item in found if not 300 <= item.time_seconds - start < 660]
    fired = fires_at(with_gap)
    assert fired is None or fired >= 660 + 900


def test_latency_within_the_margin_is_left_alone() -> None:
    # three buckets up is a ratio of exactly 1.3: not over it
    middle = [(a + b) / 2 for a, b in zip(LATENCY_BUCKETS_SECONDS, LATENCY_BUCKETS_SECONDS[1:])]  # noqa: B905
    found = samples(
        steady(latency_seconds=middle[43]), 1800, stable=steady(latency_seconds=middle[41])
    )
    assert judge(CONFIG, found).decision == "promote"


def test_a_failing_canary_is_taken_back_long_before_the_latency_rule() -> None:
    fired = fires_at(samples(steady(errors=2), 1200))
    assert fired is not None
    assert fired <= 60


def test_a_broken_canary_is_taken_back_without_a_stable_arm() -> None:
    found = [
        dataclasses.replace(item, stable=None)
        for item in samples(steady(requests=21, errors=21), 30)
    ]
    decision = judge(CONFIG, found)
    assert decision.decision == "rollback"
    assert "failed" in decision.reason


def test_errors_that_stable_has_too_are_not_the_canarys() -> None:
    found = samples(steady(errors=2), 1200, stable=steady(errors=2))
    assert judge(CONFIG, found).decision == "promote"


def test_a_few_errors_are_not_yet_evidence() -> None:
    canary = Traffic(errors=lambda seconds: 1 if seconds in (15, 30, 45) else 0)
    assert fires_at(samples(canary, 600)) is None


def test_a_rollback_stays_a_rollback() -> None:
    canary = Traffic(errors=lambda seconds: 20 if 200 <= seconds < 260 else 0)
    found = samples(canary, 3600)
    fired = fires_at(found)
    assert fired is not None
    for end in range(int(fired / STEP_SECONDS) + 1, len(found), 10):
        assert judge(CONFIG, found[:end]).decision == "rollback"


def test_restarted_counters_neither_hide_nor_invent_traffic() -> None:
    found = samples(steady(), 1200)
    offset = found[40].canary
    assert offset is not None
    restarted = []
    for index, item in enumerate(found):
        canary = item.canary
        if index > 40 and canary is not None:
            buckets = zip(canary.latency_buckets, offset.latency_buckets, strict=True)
            canary = ArmCounters(
                canary.revision,
                canary.draws - offset.draws,
                canary.requests - offset.requests,
                0,
                tuple(late - early for late, early in buckets),
            )
        restarted.append(dataclasses.replace(item, canary=canary))
    decision = judge(CONFIG, restarted)
    assert decision.decision == "promote"
    assert decision.canary_requests == 30 * 80


@pytest.mark.parametrize("requests", [0, 1])
def test_too_little_canary_traffic_never_promotes(requests: int) -> None:
    canary = steady(requests=requests)
    assert judge(CONFIG, samples(canary, 6000)).decision == "continue"
    decision = judge(CONFIG, samples(canary, 7200))
    assert decision.decision == "inconclusive"
    assert "undecided" in decision.reason


def test_traffic_on_one_arm_only_never_promotes() -> None:
    found = [dataclasses.replace(item, stable=None) for item in samples(steady(), 1800)]
    decision = judge(CONFIG, found)
    assert decision.decision == "continue"
    assert "cannot be compared" in decision.reason
    idle = samples(steady(), 1800, stable=steady(requests=0))
    assert judge(CONFIG, idle).decision == "continue"


def test_stable_that_fell_silent_stops_a_promotion() -> None:
    stable = Traffic(requests=lambda seconds: 30 if seconds < 900 else 0)
    assert judge(CONFIG, samples(steady(), 1800, stable=stable)).decision == "continue"


def test_a_canary_that_was_slow_as_a_whole_is_not_promoted() -> None:
    canary = Traffic(latency_seconds=lambda seconds: 0.2 if seconds < 500 else 0.1)
    decision = judge(CONFIG, samples(canary, 1000))
    assert decision.decision == "continue"
    assert "p95 latency" in decision.reason


def test_nonsense_numbers_decide_nothing() -> None:
    found = samples(steady(), 1800)
    nan = math.nan
    broken = ArmCounters("assistant-00002", nan, nan, nan, (nan,) * 126)  # type: ignore[arg-type]
    short = ArmCounters("assistant-00002", 1, 1, 1, (1,))
    for canary in (broken, short, None):
        hostile = [dataclasses.replace(item, canary=canary) for item in found]
        assert judge(CONFIG, hostile).decision == "continue"
    timeless = [dataclasses.replace(item, time_seconds=nan) for item in found]
    assert judge(CONFIG, timeless).decision == "continue"
    assert judge(CONFIG, []).decision == "continue"


def test_a_clock_that_went_back_starts_the_evidence_anew() -> None:
    found = samples(steady(), 1200)
    later = [
        dataclasses.replace(item, time_seconds=item.time_seconds - 3600) for item in found[:20]
    ]
    decision = judge(CONFIG, found + later)
    assert decision.decision == "continue"
    assert decision.canary_requests == 19 * 30


def test_a_clock_that_jumped_ahead_promotes_nothing_by_itself() -> None:
    found = samples(steady(), 300)
    ahead = dataclasses.replace(found[-1], time_seconds=found[-1].time_seconds + 3e8)
    started = time.perf_counter()
    assert judge(CONFIG, [*found, ahead]).decision == "inconclusive"
    assert time.perf_counter() - started < 1


def test_a_day_of_scrapes_is_judged_in_seconds() -> None:
    config = CanaryConfig(requests_min=10**9, seconds_max=10**6)
    found = samples(steady(), 86400)
    started = time.process_time()
    assert judge(config, found).decision == "continue"
    assert time.process_time() - started < 4


def test_impossible_times_are_refused() -> None:
    with pytest.raises(ValidationError, match="seconds_max"):
        CanaryConfig(seconds_min=100, seconds_max=50)
    with pytest.raises(ValidationError, match="window_seconds"):
        CanaryConfig(window_seconds=10, evaluate_seconds=60)


@pytest.mark.parametrize("module", ["validation.canary", "validation.gates"])
def test_judging_needs_no_heavy_library(module: str) -> None:
    heavy = {"numpy", "pandas", "torch", "mlflow", "evidently", "great_expectations", "rensa"}
    code = f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_as_a_guard_it_does_not_take_a_busy_hour_in_a_larger_share_for_a_slow_canary() -> None:
    """Both arms slow down together when the canary gets ten times the requests of before."""
    late = 600.0
    canary = Traffic(
        requests=lambda seconds: 60 if seconds >= late else 6,
        latency_seconds=lambda seconds: 0.4 if seconds >= late else 0.1,
    )
    stable = Traffic(
        requests=lambda seconds: 60 if seconds >= late else 600,
        latency_seconds=lambda seconds: 0.4 if seconds >= late else 0.1,
    )
    guard = ClassicRule(CONFIG, alone=False)
    for sample in samples(canary, 1500, stable):
        guard.add(sample)
    assert guard.decide().decision == "promote"
