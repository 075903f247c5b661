"""Metrics pushed by OTLP say what the exposition says."""

from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import generate_latest

from core.telemetry import TelemetrySettings
from observability.otlp_metrics import MetricsPush
from tests.one_machine import until
from tests.otlp_collector import Collector

RESOURCE = {"service.name": "serin-test"}


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    counter = Counter("serin_x", "Things", ("outcome",), registry=registry)
    counter.labels("ok").inc(3)
    Gauge("serin_y_ratio", "Share", registry=registry).set(0.5)
    histogram = Histogram("serin_z_seconds", "Time", registry=registry, buckets=(1, 2))
    for seconds in (0.5, 1.5, 1.5, 9):
        histogram.observe(seconds)
    return registry


@pytest.fixture(params=["http/protobuf", "grpc"])
def push(
    taken: Collector,
    registry: CollectorRegistry,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> Iterator[MetricsPush]:
    """A push that has begun; it reads the variables that the exporter reads itself."""
    url = taken.grpc_url if request.param == "grpc" else taken.http_url
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", request.param)
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "100")
    settings = TelemetrySettings.read()
    found = MetricsPush(settings, RESOURCE, lambda: generate_latest(registry).decode())
    found.start()
    yield found
    found.close()


def test_counters_gauges_and_histograms_keep_names_labels_and_values(
    push: MetricsPush, taken: Collector
) -> None:
    until(lambda: "serin_z_seconds" in taken.metrics, "a push")
    counted = taken.metrics["serin_x_total"].sum
    assert counted.is_monotonic
    assert counted.data_points[0].as_double == 3
    assert counted.data_points[0].attributes[0].value.string_value == "ok"
    assert taken.metrics["serin_y_ratio"].gauge.data_points[0].as_double == 0.5
    timed = taken.metrics["serin_z_seconds"].histogram.data_points[0]
    assert (list(timed.explicit_bounds), list(timed.bucket_counts)) == ([1, 2], [1, 2, 1])
    assert (timed.count, timed.sum) == (4, 12.5)


def test_without_a_collector_nothing_is_pushed(registry: CollectorRegistry) -> None:
    settings = TelemetrySettings.read({}, mlflow_url="http://127.0.0.1:1")
    never = MetricsPush(settings, RESOURCE, lambda: pytest.fail("it was read"))
    never.start()
    never.close()
