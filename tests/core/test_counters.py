"""Counter arithmetic: resets, missing scrapes, and quantiles as Prometheus computes them."""

import math

import pytest

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters
from core.counters import NOTHING, histogram_quantile, increase
from core.errors import InputError

BUCKETS = len(LATENCY_BUCKETS_SECONDS)


def counters(
    requests: int, errors: int = 0, revision: str = "assistant-00001", edge: int = 10
) -> ArmCounters:
    """All requests took between the edges `edge - 1` and `edge`."""
    buckets = tuple(requests if index >= edge else 0 for index in range(BUCKETS))
    return ArmCounters(revision, requests, requests, errors, buckets)


def test_growth_is_the_difference_of_two_scrapes() -> None:
    grown = increase(counters(10, 1), counters(25, 4))
    assert (grown.draws, grown.requests, grown.errors) == (15, 15, 3)
    assert grown.latency_buckets[9:12] == (0, 15, 15)
    assert grown.error_share == pytest.approx(0.2)


def test_a_restarted_process_counts_from_zero() -> None:
    grown = increase(counters(100, 3), counters(7, 5))
    assert (grown.requests, grown.errors) == (7, 5)


def test_one_fallen_counter_means_that_all_were_reset() -> None:
    assert increase(counters(10, 9), counters(12, 1)).requests == 12


def test_another_revision_is_a_starting_point() -> None:
    assert increase(counters(10), counters(90, revision="assistant-00002")) == NOTHING


def test_bucket_counts_must_agree() -> None:
    short = ArmCounters("assistant-00001", 0, 0, 0, (0, 0))
    with pytest.raises(InputError, match="latency buckets"):
        increase(short, counters(1))
    with pytest.raises(InputError, match="bucket edges"):
        histogram_quantile(0.5, [1], 1, [0.1, 0.2])


@pytest.mark.parametrize(
    ("quantile", "cumulative", "requests", "expected"),
    [  # the worked values follow promql/quantile.go by hand
        (0.5, [0, 10, 10], 10, 0.15),
        (0.9, [10, 10, 10], 10, 0.09),
        (0.95, [0, 0, 5], 10, 0.4),  # falls into +Inf: the last finite edge
        (0.5, [2, 6, 10], 10, 0.175),
        (0.0, [0, 4, 4], 4, 0.1),
        (1.0, [0, 4, 4], 4, 0.2),
        (0.5, [4, 3, 4], 4, 0.05),  # a lagging bucket is lifted to its predecessor
    ],
)
def test_quantiles_are_those_of_prometheus(
    quantile: float, cumulative: list[float], requests: float, expected: float
) -> None:
    found = histogram_quantile(quantile, cumulative, requests, [0.1, 0.2, 0.4])
    assert found == pytest.approx(expected)


def test_quantiles_of_nothing_are_not_numbers() -> None:
    assert math.isnan(NOTHING.latency_quantile(0.95))
    assert math.isnan(NOTHING.error_share)
    assert math.isnan(histogram_quantile(math.nan, [1], 1, [0.1]))
    assert histogram_quantile(-0.1, [1], 1, [0.1]) == -math.inf
    assert histogram_quantile(1.1, [1], 1, [0.1]) == math.inf
