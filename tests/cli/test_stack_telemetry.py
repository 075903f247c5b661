"""What the real stack tells: traces that MLflow shows, and metrics that Prometheus reads."""

import secrets
import shutil
from typing import Any

import httpx
import pytest

from observability.export import find_experiment
from tests.conftest import Stack
from tests.one_machine import until

CHAT = "/openai/v1/chat/completions"
ASK = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
TRACES_MAX = 50
needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="needs the program prometheus"
)


def prometheus(stack: Stack, path: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{stack.settings.prometheus_url}/api/v1/{path}").json()
    return found["data"]  # type: ignore[no-any-return]


def test_mlflow_shows_a_request_as_a_trace(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is served here, so that the trace is that of a refusal."""
    import mlflow

    settings = stack.settings
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    client = mlflow.MlflowClient(settings.mlflow_url)

    ours: set[str] = set()

    def traces() -> list[Any]:
        """Those of this test: other tests ask the same stack."""
        trace_id = secrets.token_hex(16)
        ours.add(f"tr-{trace_id}")
        headers = {"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"}
        answer = httpx.post(settings.gateway_url + CHAT, json=ASK, headers=headers)
        assert answer.status_code >= 400
        experiment = find_experiment(settings.mlflow_url, settings.service)
        if experiment is None:
            return []
        found = client.search_traces(locations=[experiment], max_results=TRACES_MAX)
        return [trace for trace in found if trace.info.trace_id in ours]

    trace = until(traces, "a trace in MLflow", 90)[0]
    spans = trace.data.spans
    assert [span.name for span in spans] == [f"POST {CHAT}"]
    assert spans[0].attributes["http.response.status_code"] in (404, 503)
    assert spans[0].attributes["error.type"] in ("no_routes", "not_ready", "model_not_found")


@needs_prometheus
def test_prometheus_reads_every_part_and_knows_every_rule(stack: Stack) -> None:
    def up() -> set[str]:
        found = prometheus(stack, "targets?state=active")["activeTargets"]
        return {item["labels"]["job"] for item in found if item["health"] == "up"}

    until(lambda: {"serin-gateway", "serin-control", "serin-exporter"} <= up(), "scrapes")
    groups = [group["name"] for group in prometheus(stack, "rules")["groups"]]
    assert sorted(groups) == ["serin-canary", "serin-figures", "serin-health"]
    shown = prometheus(stack, "query?query=serin_part_up")["result"]
    parts = {item["metric"]["part"]: item["value"][1] for item in shown}
    assert {item["metric"]["region"] for item in shown} == {"home"}
    assert parts["gateway"] == parts["prometheus"] == parts["mlflow"] == "1"


@needs_prometheus
def test_prometheus_listens_on_loopback_and_keeps_to_the_home(stack: Stack) -> None:
    assert stack.settings.prometheus_url.startswith("http://127.0.0.1:")
    folder = stack.home / "prometheus"
    assert (folder / "data").is_dir()
    assert (folder / "predictor.token").stat().st_mode & 0o777 == 0o600
