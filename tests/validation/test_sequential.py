"""The betting tests: fair games stay fair, evidence grows where it should, figures of the paper."""

import math
import random

import pytest

from core.errors import InputError
from validation.sequential import (
    DifferenceTest,
    PairedTest,
    ShareTest,
    log_mean_exp,
    log_sum_exp,
)


@pytest.mark.parametrize(
    ("share", "tolerance", "requests"),
    [(0.05, 0.005, 23_353), (0.15, 0.005, 7_782), (0.5, 0.005, 2_332), (0.5, 0.05, 230)],
)
def test_flawless_traffic_needs_the_derived_number_of_requests(
    share: float, tolerance: float, requests: int
) -> None:
    before, after = DifferenceTest(tolerance), DifferenceTest(tolerance)
    before.observe_counts(share, 0, 0, requests - 1)
    after.observe_counts(share, 0, 0, requests + 1)
    assert before.log_for < math.log(20) < after.log_for


def test_single_requests_and_counts_give_the_same_evidence() -> None:
    one, many = DifferenceTest(0.01), DifferenceTest(0.01)
    for canary, bad in [(True, 1.0)] * 3 + [(False, 1.0)] * 2 + [(True, 0.0)] * 4:
        one.observe(0.3, canary, bad)
    many.observe_counts(0.3, 3, 2, 4)
    assert one.log_against == pytest.approx(many.log_against)
    assert one.log_for == pytest.approx(many.log_for)


def test_expected_wealth_of_both_bets_never_exceeds_the_stake_at_the_tolerance() -> None:
    share, tolerance, stable_bad, canary_bad = 0.2, 0.1, 0.3, 0.4
    outcomes = [
        (share * canary_bad, True, 1.0),
        (share * (1 - canary_bad), True, 0.0),
        ((1 - share) * stable_bad, False, 1.0),
        ((1 - share) * (1 - stable_bad), False, 0.0),
    ]
    against = promoting = 0.0
    for chance, canary, bad in outcomes:
        test = DifferenceTest(tolerance)
        test.observe(share, canary, bad, centre=0.35)
        against += chance * math.exp(test.log_against)
        promoting += chance * math.exp(test.log_for)
    assert against == pytest.approx(1.0)
    assert promoting == pytest.approx(1.0)


def test_a_late_fault_is_found_after_hours_of_lost_bets() -> None:
    once, restarted = DifferenceTest(0.005), DifferenceTest(0.005)
    for test in (once, restarted):
        test.observe_counts(0.05, 0, 0, 100_000)
    restarted.restart()
    for test in (once, restarted):
        test.observe_counts(0.05, 10, 0, 190)
    assert restarted.log_against > math.log(100) > once.log_against


def test_unknown_outcomes_push_neither_decision() -> None:
    test = DifferenceTest(0.005)
    generator = random.Random(1)
    for _ in range(5_000):
        test.observe(0.5, generator.random() < 0.5, None)
    assert test.log_against < math.log(2)
    assert test.log_for < 0


def test_a_wrong_share_is_noticed_both_ways_and_a_right_one_is_not() -> None:
    right, more, fewer = ShareTest(), ShareTest(), ShareTest()
    right.observe_counts(0.05, 500, 9_500)
    more.observe_counts(0.05, 700, 9_300)
    fewer.observe_counts(0.05, 300, 9_700)
    assert right.log_against < math.log(1_000)
    assert min(more.log_against, fewer.log_against) > math.log(1_000)


def test_paired_evidence_grows_with_paired_differences_only() -> None:
    worse, equal = PairedTest(0.03), PairedTest(0.03)
    for _ in range(200):
        worse.observe(1.0, 0.5)
        equal.observe(0.4, 0.4)
    assert worse.log_against > math.log(100) > equal.log_against
    assert worse.log_for < 0 < equal.log_for


@pytest.mark.parametrize("share", [0.0, 1.0, -0.1, math.nan])
def test_a_one_armed_share_is_refused(share: float) -> None:
    with pytest.raises(InputError, match="one arm"):
        DifferenceTest(0.01).observe(share, True, 0.0)
    with pytest.raises(InputError, match="one arm"):
        ShareTest().observe_counts(share, 1, 1)


def test_impossible_values_are_refused() -> None:
    with pytest.raises(InputError):
        DifferenceTest(0.01).observe(0.5, True, 1.5)
    with pytest.raises(InputError):
        DifferenceTest(0.01).observe_counts(0.5, -1, 0, 0)
    with pytest.raises(InputError):
        PairedTest(0.01).observe(2.0, 0.0)
    with pytest.raises(InputError):
        ShareTest().observe_counts(0.5, -1, 0)


def test_logarithmic_sums_survive_extremes() -> None:
    assert log_sum_exp([]) == -math.inf
    assert log_mean_exp([]) == -math.inf
    assert log_sum_exp([1_000.0, 1_000.0]) == pytest.approx(1_000 + math.log(2))
    assert log_mean_exp([-5_000.0, -5_000.0]) == pytest.approx(-5_000)
