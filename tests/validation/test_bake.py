"""Absolute limits for what has just become stable: too few requests tell nothing."""

from bisect import bisect_left

import pytest

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters
from validation.bake import BakeConfig, bake_problem


def counted(requests: int, errors: int = 0, latency_seconds: float = 0.1) -> ArmCounters:
    edge = bisect_left(LATENCY_BUCKETS_SECONDS, latency_seconds)
    buckets = [requests * (index >= edge) for index in range(len(LATENCY_BUCKETS_SECONDS))]
    return ArmCounters("assistant-00002", requests, requests, errors, tuple(buckets))


@pytest.mark.parametrize("arm", [counted(0), counted(99, 99), counted(100, 5), counted(1000, 50)])
def test_within_its_limits_or_unknown_it_stays(arm: ArmCounters) -> None:
    assert bake_problem(BakeConfig(), arm) == ""


def test_too_many_failures_are_named() -> None:
    assert "6.0% of 100 requests failed" in bake_problem(BakeConfig(), counted(100, 6))


def test_latency_has_a_limit_only_where_one_is_given() -> None:
    slow = counted(100, latency_seconds=3.0)
    assert bake_problem(BakeConfig(), slow) == ""
    assert "p95 latency" in bake_problem(BakeConfig(p95_seconds_max=2.0), slow)
    assert bake_problem(BakeConfig(p95_seconds_max=4.0), slow) == ""
