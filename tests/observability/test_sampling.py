"""Which requests are traced, and what a traceparent header may say."""

import pytest

from core.errors import ConfigurationError
from core.telemetry import TelemetrySettings
from observability.sampling import Parent, RequestSampler, read_parent

SAMPLED = Parent(0xABC, 0x1, sampled=True)
UNSAMPLED = Parent(0xABC, 0x1, sampled=False)


def sampler(*, trusting: bool = False, **environment: str) -> RequestSampler:
    return RequestSampler(TelemetrySettings.read(environment), trusting)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "00-" + "0" * 32 + "-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-" + "0" * 16 + "-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
    ],
)
def test_an_invalid_context_is_none(header: str) -> None:
    assert read_parent(header) is None


def test_a_context_survives_reading_and_writing() -> None:
    header = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    parent = read_parent(header)
    assert parent is not None
    assert parent.header == header
    later = read_parent("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more")
    assert later is not None
    assert not later.sampled


def test_without_a_sampler_the_first_request_of_a_second_is_traced() -> None:
    limited = sampler(SERIN_TRACES_PER_SECOND="0.01")
    assert [limited.wants(None) for _ in range(5)] == [True, False, False, False, False]
    assert not sampler(SERIN_TRACES_PER_SECOND="0").wants(None)


def test_a_stranger_cannot_have_more_traced_than_the_limit() -> None:
    limited = sampler(SERIN_TRACES_PER_SECOND="0.01")
    assert [limited.wants(SAMPLED) for _ in range(3)] == [True, False, False]
    assert not sampler().wants(UNSAMPLED)


def test_a_process_of_ours_is_followed() -> None:
    follower = sampler(trusting=True, SERIN_TRACES_PER_SECOND="0.01")
    assert all(follower.wants(SAMPLED) for _ in range(5))
    assert not follower.wants(UNSAMPLED)


@pytest.mark.parametrize(
    ("name", "alone", "after_sampled", "after_unsampled"),
    [
        ("always_on", True, True, True),
        ("always_off", False, False, False),
        ("parentbased_always_on", True, True, False),
        ("parentbased_always_off", False, True, False),
        ("parentbased_traceidratio", False, True, False),
    ],
)
def test_the_standard_samplers(
    name: str, alone: bool, after_sampled: bool, after_unsampled: bool
) -> None:
    found = sampler(OTEL_TRACES_SAMPLER=name, OTEL_TRACES_SAMPLER_ARG="0")
    assert found.wants(None) is alone
    assert found.wants(SAMPLED) is after_sampled
    assert found.wants(UNSAMPLED) is after_unsampled


def test_a_ratio_decides_by_the_trace_alike_in_every_process() -> None:
    half = sampler(OTEL_TRACES_SAMPLER="traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5")
    assert half.wants(Parent(0x7FFF_FFFF_FFFF_FFFF, 1, sampled=False))
    assert not half.wants(Parent(0x8000_0000_0000_0000, 1, sampled=True))
    drawn = sum(half.wants(None) for _ in range(2000))
    assert 800 < drawn < 1200


def test_a_wrong_value_names_its_variable() -> None:
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_SAMPLER_ARG"):
        TelemetrySettings.read({"OTEL_TRACES_SAMPLER_ARG": "much"})
    with pytest.raises(ConfigurationError, match="OTEL_TRACES_SAMPLER"):
        TelemetrySettings.read({"OTEL_TRACES_SAMPLER": "sometimes"})


def test_traces_go_to_mlflow_unless_a_collector_is_named() -> None:
    at_home = TelemetrySettings.read({}, mlflow_url="http://127.0.0.1:8802")
    assert at_home.traces
    assert at_home.to_mlflow
    assert not at_home.metrics
    collected = TelemetrySettings.read(
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, mlflow_url="http://127.0.0.1:8802"
    )
    assert not collected.to_mlflow
    assert collected.metrics
    for off in ({"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}):
        assert not TelemetrySettings.read(off, mlflow_url="http://127.0.0.1:8802").traces
    assert not TelemetrySettings.read({}, mlflow_url="sqlite:///m.db").traces
