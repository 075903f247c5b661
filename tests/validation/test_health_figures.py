"""The health matrix's figures: increases over windows, shares, weeks of scores."""

import pytest

from core.contracts import LATENCY_BUCKETS_SECONDS
from validation.health_config import HealthConfig
from validation.health_figures import (
    BUCKETS_PER_WEEK,
    Look,
    Score,
    counted_readings,
    increase,
    quality_drop,
    with_score,
)

WEEK = 7 * 86400.0
NOW = 100 * WEEK
HERE = int(NOW // (WEEK / BUCKETS_PER_WEEK))


def looks(*counts: dict[str, float], seconds: float = 30.0) -> list[Look]:
    return [Look(at * seconds, found, 0.0, 0.0) for at, found in enumerate(counts)]


def test_an_increase_covers_the_window_and_begins_anew_where_a_counter_fell() -> None:
    found = increase(looks({"a": 100}, {"a": 110}, {"a": 5}, {"a": 7}), 60)
    assert found is not None
    assert found.seconds == 60
    assert found.of("a") == 5 + 2
    assert found.of("b") is None
    assert increase(looks({"a": 1}), 60) is None


def test_the_first_look_is_unknown_and_the_second_gives_rates() -> None:
    config = HealthConfig(requests_min=1)
    one, two = {"requests": 0.0, "blocked": 0.0}, {"requests": 6000.0, "blocked": 0.0}
    assert counted_readings(config, looks(one))["request_rate"].value is None
    assert counted_readings(config, looks(one, two))["request_rate"].value == 200


def test_p95_comes_from_the_buckets_of_the_window() -> None:
    config = HealthConfig(requests_min=1)
    edge = next(i for i, edge in enumerate(LATENCY_BUCKETS_SECONDS) if edge > 2)
    counts = {"requests": 100.0, "bucket:0": 50.0, f"bucket:{edge}": 50.0}
    before = {"requests": 0.0, "bucket:0": 0.0, f"bucket:{edge}": 0.0}
    value = counted_readings(config, looks(before, counts))["latency_p95_seconds"].value
    assert value is not None
    assert LATENCY_BUCKETS_SECONDS[edge - 1] < value <= LATENCY_BUCKETS_SECONDS[edge]


def test_few_requests_are_neither_slow_nor_illegal() -> None:
    after = {"requests": 2.0, "failed_authentication": 3.0, "blocked": 0.0, "malformed": 0.0}
    readings = counted_readings(HealthConfig(), looks(dict.fromkeys(after, 0.0), after))
    assert readings["latency_p95_seconds"].value == 0
    assert readings["illegal_request_share"].value == 0


def test_refused_requests_count_among_those_asked() -> None:
    after = {"requests": 60.0, "failed_authentication": 30.0, "blocked": 10.0, "malformed": 10.0}
    readings = counted_readings(HealthConfig(), looks(dict.fromkeys(after, 0.0), after))
    assert readings["illegal_request_share"].value == pytest.approx(0.5)


def test_what_the_request_filter_holds_back_stays_illegal() -> None:
    after = {"requests": 50.0, "failed_authentication": 0.0, "filtered": 50.0}
    readings = counted_readings(HealthConfig(), looks(dict.fromkeys(after, 0.0), after))
    assert readings["illegal_request_share"].value == pytest.approx(0.5)


def test_who_does_not_answer_is_unknown() -> None:
    readings = counted_readings(HealthConfig(), looks({}, {}))
    assert {reading.value for reading in readings.values()} == {None}


@pytest.mark.parametrize(("canary", "wrong"), [(520, False), (700, True)])
def test_a_share_is_wrong_only_beyond_chance(canary: int, wrong: bool) -> None:
    drawn = {"requests": 1000.0, "draws:stable:a": 1000.0 - canary, "draws:canary:b": canary}
    found = [
        Look(0, dict.fromkeys(drawn, 0.0), 0.5, 0.5),
        Look(300, drawn, 0.5, 0.5),
    ]
    value = counted_readings(HealthConfig(), found)["routing_share_error"].value
    assert value is not None
    assert (value > 0.02) == wrong


def test_a_declared_share_that_the_service_does_not_say_is_an_error() -> None:
    found = [Look(at, {"requests": 0.0}, 0.1, 0.5) for at in (0, 30)]
    assert counted_readings(HealthConfig(), found)["routing_share_error"].value == pytest.approx(
        0.4
    )


def test_draws_under_an_earlier_share_are_not_counted_against_this_one() -> None:
    drawn = [{"draws:stable:a": 1000.0, "draws:canary:b": 0.0, "requests": 1000.0}]
    drawn += [{"draws:stable:a": 2000.0, "draws:canary:b": 0.0, "requests": 2000.0}]
    drawn += [{"draws:stable:a": 2050.0, "draws:canary:b": 50.0, "requests": 2100.0}]
    found = [Look(at * 30.0, one, 0.5 * (at > 0), 0.5) for at, one in enumerate(drawn)]
    assert counted_readings(HealthConfig(), found)["routing_share_error"].value == 0


def scores(version: str, weeks_ago: float, mean: float, source: str = "feedback") -> Score:
    bucket = HERE - int(weeks_ago * BUCKETS_PER_WEEK)
    return Score(version, source, bucket, 100, 100 * mean)


def drop(*found: Score, since: float = 0.0) -> float | None:
    return quality_drop(found, "2", since, NOW, WEEK, 50).value


def test_a_drop_is_this_week_against_the_week_before() -> None:
    assert drop(scores("2", 0.5, 0.8), scores("2", 1.5, 0.9)) == pytest.approx(1 / 9)
    assert drop(scores("2", 0.5, 0.9), scores("2", 1.5, 0.9)) == pytest.approx(0)


def test_a_new_version_is_compared_with_what_served_before_it() -> None:
    since = NOW - WEEK / 4
    found = (scores("2", 0.1, 0.6), scores("1", 0.5, 0.9))
    assert drop(*found, since=since) == pytest.approx(1 / 3)


def test_the_worst_source_counts_and_sources_are_not_mixed() -> None:
    feedback = scores("2", 0.5, 0.9), scores("2", 1.5, 0.9)
    probes = scores("2", 0.5, 0.5, "probes"), scores("2", 1.5, 1.0, "probes")
    assert drop(*feedback, *probes) == pytest.approx(0.5)


def test_too_few_scores_are_unknown() -> None:
    assert drop(scores("2", 0.5, 0.1)) is None
    assert drop(Score("2", "feedback", HERE, 10, 1), scores("2", 1.5, 0.9)) is None


def test_scores_are_kept_for_two_weeks_in_parts_of_a_week() -> None:
    found: tuple[Score, ...] = ()
    for bucket in range(4 * BUCKETS_PER_WEEK):
        for _ in range(3):
            found = with_score(found, Score("2", "feedback", bucket, 1, 0.5))
    assert len(found) <= 2 * BUCKETS_PER_WEEK + 2
    assert {score.count for score in found} == {3}


def unscanned(*counts: dict[str, float]) -> float | None:
    named = [{f"unscanned_bytes:{one}": n for one, n in found.items()} for found in counts]
    return counted_readings(HealthConfig(), looks(*named))["unscanned_bytes"].value


def test_a_predictor_that_leaves_or_is_silent_for_a_look_adds_no_unscanned_bytes() -> None:
    assert unscanned({"a": 100, "b": 50}, {"a": 100, "b": 50}, {"b": 50}) == 0
    assert unscanned({"a": 100, "b": 50}, {"b": 50}, {"a": 100, "b": 50}) == 0
    assert unscanned({"a": 100, "b": 50}, {"b": 50}, {"a": 103, "b": 50}) == 3


def test_a_new_predictors_unscanned_bytes_count_from_its_start() -> None:
    assert unscanned({"a": 100}, {"a": 100, "b": 7}) == 7
    assert unscanned({}, {"b": 7}, {"b": 7}) == 0
