"""What `serin status` says of tokens and their price, from predictors' own counters."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cli.costs import UsageView, read_usage, usage_of
from core.keys import bearer, predictor_token
from core.settings import Settings
from serving.gpus import Gpus
from serving.predictor_metrics import PredictorMetrics
from tests.serving.test_resource_metrics import FakeNvml


def exposition(revision: str, prices: dict[str, float], gpus: int = 0) -> str:
    metrics = PredictorMetrics(revision[-1], revision)
    metrics.watch_resources(Gpus(FakeNvml(gpus)), prices, list)
    metrics.tokens(1_000_000, 500_000)
    return metrics.exposition(None)[0].decode()


def test_processes_of_a_revision_count_together() -> None:
    prices = {"input": 1.0, "output": 4.0}
    shown = [exposition("a-1", prices), exposition("a-1", prices), exposition("a-2", {}, gpus=1)]
    first, second = usage_of(shown)
    assert (first.revision, first.model_version) == ("a-1", "1")
    assert (first.prompt_tokens, first.generated_tokens) == (2_000_000, 1_000_000)
    assert first.cost == pytest.approx(6.0)
    assert first.gpu_seconds is None
    assert second.cost is None
    assert second.gpu_seconds is not None
    assert first.cpu_seconds > 0


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[int]:
    """A predictor's /metrics that asks for the home's token."""
    token = bearer(predictor_token(tmp_path))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known = self.headers.get("authorization") == token
            body = exposition("a-1", {"input": 2.0}).encode() if known else b""
            self.send_response(200 if known else 401)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


def test_every_predictor_is_asked_with_the_homes_token(tmp_path: Path, listening: int) -> None:
    settings = Settings.read({"SERIN_HOME": str(tmp_path)})
    assert read_usage(settings, 5) is None
    entry = {"service": "assistant", "revision": "a-1"}
    listed = [{**entry, "port": listening}, {**entry, "port": 1}, {**entry, "port": 0}]
    (tmp_path / "control" / "processes.json").write_text(json.dumps({"processes": listed}))
    found = read_usage(settings, 5)
    assert found is not None
    assert [type(view) for view in found] == [UsageView]
    assert found[0].cost == pytest.approx(2.0)
