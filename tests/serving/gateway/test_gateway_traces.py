"""Traces of a real gateway process: whole, passed on, bounded, and never in a request's way."""

import signal
import socket
from collections.abc import Iterator

import pytest
from gateway_world import Predictor, World, until

from tests.otlp_collector import Collector

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-"
NAME = "POST /openai/v1/chat/completions"
ALWAYS = {"OTEL_TRACES_SAMPLER": "always_on", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}


def start(world: World, stable: Predictor, endpoint: str, **environment: str) -> None:
    """Start a gateway that traces to `endpoint`, with all traffic on `stable`."""
    world.environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environment}
    world.start_gateway(cache_seconds=0)
    world.route(stable)
    until(lambda: world.ask().status_code == 200)


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_request_is_one_trace_that_goes_on_in_the_predictor(
    world: World, stable: Predictor, taken: Collector, protocol: str
) -> None:
    endpoint = taken.grpc_url if protocol == "grpc" else taken.http_url
    start(world, stable, endpoint, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **ALWAYS)
    until(lambda: world.ask() and taken.spans)
    world.ask()
    _, trace, sent_id, flags = stable.seen()["headers"]["traceparent"].split("-")
    assert flags == "01"
    span = until(lambda: taken.parent_of(sent_id))
    sent = taken.with_id(sent_id)
    assert sent is not None
    assert sent["attributes"]["serin.revision"] == "assistant-00001"
    assert sent["trace"] == span["trace"] == trace
    assert (span["name"], span["service"], span["parent"]) == (NAME, "serin-gateway", "")
    assert span["attributes"]["http.response.status_code"] == 200
    assert span["attributes"]["serin.arm"] == "stable"
    assert sorted(taken.children_of(span)) == ["POST", "admission"]


def test_a_callers_context_is_continued(world: World, stable: Predictor, taken: Collector) -> None:
    start(world, stable, taken.http_url, OTEL_TRACES_SAMPLER="parentbased_always_off")
    until(lambda: world.ask(headers={"traceparent": PARENT + "01"}) and taken.named(NAME))
    span = taken.named(NAME)[0]
    assert (span["trace"], span["parent"]) == (PARENT[3:35], PARENT[36:52])


def test_what_is_not_recorded_here_is_recorded_nowhere(
    world: World, stable: Predictor, taken: Collector
) -> None:
    start(world, stable, taken.http_url, SERIN_TRACES_PER_SECOND="0")

    def passed() -> str:
        world.ask(headers={"traceparent": PARENT + "01"})
        header: str = stable.seen()["headers"]["traceparent"]
        return header

    until(lambda: passed() == PARENT + "00")
    assert not taken.spans


def test_a_refusal_says_so_in_its_trace(world: World, stable: Predictor, taken: Collector) -> None:
    start(world, stable, taken.http_url, **ALWAYS)

    def refused() -> list[str]:
        assert world.ask(model="nobody").status_code == 404
        found = (span["attributes"].get("error.type") for span in taken.named(NAME))
        return [error for error in found if error]

    assert until(refused)[0] == "model_not_found"


@pytest.fixture(params=["dead", "blackhole"])
def lost(request: pytest.FixtureRequest) -> Iterator[str]:
    """The address of a collector that is not there, or that takes all and answers nothing."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=64)
    port = listener.getsockname()[1]
    if request.param == "dead":
        listener.close()
    yield f"http://127.0.0.1:{port}"
    listener.close()


@pytest.mark.parametrize("protocol", ["http/protobuf", "grpc"])
def test_a_collector_that_is_away_costs_no_request(
    world: World, stable: Predictor, lost: str, protocol: str
) -> None:
    start(world, stable, lost, OTEL_EXPORTER_OTLP_PROTOCOL=protocol, **ALWAYS)
    load = world.load(50)
    until(lambda: world.metric("serin_gateway_requests_total", outcome="ok") > 100)
    report = load.stop()
    assert report.failed == report.limited == 0
    until(lambda: world.metric("serin_gateway_trace_spans_total", outcome="dropped") > 0, 30)
    assert world.ask().status_code == 200
    gateway = world.gateway
    assert gateway is not None
    gateway.send_signal(signal.SIGTERM)
    assert gateway.wait(15) == 0


def test_metrics_are_pushed_as_they_are_shown(
    world: World, stable: Predictor, taken: Collector
) -> None:
    start(world, stable, taken.http_url, OTEL_METRIC_EXPORT_INTERVAL="200")
    shown = "serin_gateway_requests_total"

    def pushed() -> int:
        points = taken.metrics[shown].sum.data_points if shown in taken.metrics else ()
        return int(sum(point.as_double for point in points))

    until(lambda: pushed() == world.metric(shown) > 0)
    assert "serin_gateway_request_seconds" in taken.metrics
