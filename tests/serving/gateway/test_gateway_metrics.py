"""The gateway's counters: written as Prometheus reads them, kept in bounds, read back equal."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from core.contracts import LATENCY_BUCKETS_SECONDS
from observability.metrics import parse_sample
from serving.gateway.balancer import Arm, Service
from serving.gateway.metrics import Metrics

FIRST = Arm("stable", "assistant-00001", "1", 95, ())
SECOND = Arm("canary", "assistant-00002", "2", 5, ())
PROMOTED = Arm("stable", "assistant-00002", "2", 100, ())


def metrics(series_max: int = 4, keep: float = 3600) -> Metrics:
    return Metrics(series_max, keep)


def split(found: Metrics, share: float = 0.05) -> None:
    found.apply(1, [Service("assistant", (FIRST, SECOND), share)])


def count(found: Metrics, arm: Arm, *answers: tuple[str, float]) -> None:
    series = found.series("assistant", arm)
    for outcome, seconds in answers:
        series.draw()
        series.finish(outcome, seconds)  # type: ignore[arg-type]


def text(found: Metrics) -> str:
    return found.exposition({"hung": 2}, 3).decode()


def test_the_exposition_is_read_by_prometheus_own_parser() -> None:
    found = metrics()
    split(found)
    count(found, FIRST, ("ok", 0.1), ("error", 200.0))
    found.series("assistant", FIRST).retry('odd "reason"\\\n')
    found.refuse("queue_full")
    families = {family.name: family for family in text_string_to_metric_families(text(found))}
    histogram = families["serin_gateway_request_seconds"]
    assert histogram.type == "histogram"
    buckets = [
        item
        for item in histogram.samples
        if item.name.endswith("_bucket") and item.labels["arm"] == "stable"
    ]
    assert [float(item.labels["le"]) for item in buckets][:-1] == list(LATENCY_BUCKETS_SECONDS)
    assert [item.value for item in buckets][-2:] == [1, 2]
    assert families["serin_gateway_retries"].samples[0].labels["reason"] == 'odd "reason"\\\n'
    assert families["serin_gateway_declared_share"].samples[0].value == 0.05


def test_what_is_counted_is_read_back_per_arm() -> None:
    found = metrics()
    split(found)
    count(found, FIRST, ("ok", 0.002), ("ok", 0.0021), ("error", 500.0), ("client_error", 0.1))
    count(found, SECOND, ("cancelled", 1.0))
    found.series("assistant", SECOND).draw()
    sample = parse_sample(text(found), "assistant", 7.0)
    assert (sample.time_seconds, sample.share) == (7.0, 0.05)
    assert sample.stable is not None
    assert sample.canary is not None
    stable, canary = sample.stable, sample.canary
    assert (stable.revision, stable.draws, stable.requests, stable.errors) == (
        "assistant-00001", 4, 4, 1,
    )  # fmt: skip
    assert stable.latency_buckets[:2] == (1, 2)  # an edge belongs to its own bucket
    assert stable.latency_buckets[-1] == 3
    assert (canary.draws, canary.requests, canary.errors) == (2, 1, 0)


def test_arms_without_a_request_have_counters_at_zero() -> None:
    found = metrics()
    split(found)
    sample = parse_sample(text(found), "assistant", 1.0)
    assert sample.canary is not None
    assert sample.canary.requests == 0
    assert set(sample.canary.latency_buckets) == {0}
    assert parse_sample(text(found), "another", 1.0).stable is None


def test_after_a_promotion_the_new_stable_starts_at_zero() -> None:
    found = metrics()
    split(found)
    count(found, SECOND, ("ok", 0.1), ("ok", 0.1))
    found.apply(2, [Service("assistant", (PROMOTED,), 0.0)])
    count(found, PROMOTED, ("ok", 0.1))
    sample = parse_sample(text(found), "assistant", 1.0)
    assert sample.stable is not None
    assert (sample.stable.revision, sample.stable.requests) == ("assistant-00002", 1)
    assert sample.canary is None


def test_only_so_many_past_revisions_are_kept() -> None:
    found = metrics(series_max=4)
    for number in range(100):
        arm = Arm("stable", f"assistant-{number:05}", str(number), 100, ())
        found.apply(number, [Service("assistant", (arm,), 0.0)])
        count(found, arm, ("ok", 0.1))
    lines = [line for line in text(found).splitlines() if line.startswith("serin_gateway_draws_")]
    assert len(lines) == 5
    assert 'revision="assistant-00099"' in lines[-1]


def test_past_revisions_are_dropped_after_a_while_but_never_with_requests_in_flight() -> None:
    found = metrics(keep=0)
    split(found)
    found.series("assistant", SECOND).draw()
    found.apply(2, [Service("assistant", (FIRST,), 0.0)])
    found.apply(3, [Service("assistant", (FIRST,), 0.0)])
    assert 'revision="assistant-00002"' in text(found)
    found.series("assistant", SECOND).finish("ok", 0.1)
    found.apply(4, [Service("assistant", (FIRST,), 0.0)])
    assert 'revision="assistant-00002"' not in text(found)


@pytest.mark.parametrize("outcome", ["ok", "error", "client_error", "cancelled"])
def test_each_draw_has_one_outcome_or_is_in_flight(outcome: str) -> None:
    found = metrics()
    series = found.series("assistant", FIRST)
    series.draw()
    assert (series.draws, series.in_flight) == (1, 1)
    series.finish(outcome, 0.1)  # type: ignore[arg-type]
    assert (series.requests, series.in_flight) == (1, 0)
