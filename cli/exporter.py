"""`python -m cli.exporter`: what no lasting process counts, and where Prometheus finds predictors.

GET /metrics reads ledger, runs, parts and disk anew; GET /targets lists the predictors that listen.
"""

import argparse
import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from cli.discovery import targets
from cli.environment import silence
from cli.flow_metrics import (
    HealthCollector,
    HomeCollector,
    LedgerReader,
    ReleaseCollector,
    RunCollector,
)
from cli.ports import LOOPBACK
from core.errors import SerinError
from core.settings import Settings
from core.telemetry import TelemetrySettings
from observability.logs import configure
from observability.otlp_metrics import MetricsPush

JSON = "application/json"


def make_registry(settings: Settings) -> CollectorRegistry:
    """Return everything that is shown of one home."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    reader = LedgerReader(settings)
    for collector in (
        ReleaseCollector(reader),
        HealthCollector(reader),
        RunCollector(settings.home / "reports"),
        HomeCollector(settings.home),
    ):
        registry.register(collector)
    return registry


def make_server(settings: Settings, port: int, registry: CollectorRegistry) -> ThreadingHTTPServer:
    """Return a server on loopback; `port` 0 takes a free one."""

    class Handler(BaseHTTPRequestHandler):
        """Answers three paths."""

        def do_GET(self) -> None:
            """Answer one request."""
            if self.path == "/metrics":
                encoder, content_type = choose_encoder(self.headers.get("accept", ""))
                self._answer(encoder(registry), content_type)
            elif self.path == "/targets":
                self._answer(json.dumps(targets(settings.home)).encode(), JSON)
            elif self.path == "/healthz":
                self._answer(b'{"status":"ok"}', JSON)
            else:
                self.send_error(404)

        def _answer(self, body: bytes, content_type: str) -> None:
            self.send_response(200)
            self.send_header("content-type", content_type)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            """Say nothing of each scrape."""

    return ThreadingHTTPServer((LOOPBACK, port), Handler)


def main() -> int:
    """Serve until told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cli.exporter", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    options = parser.parse_args()
    silence()
    configure("exporter")
    try:
        settings = Settings.read()
        registry = make_registry(settings)
        encoder, _ = choose_encoder("")
        push = MetricsPush(
            TelemetrySettings.read(mlflow_url=settings.mlflow_url),
            {"service.name": "serin-exporter", "service.namespace": "serin"},
            lambda: encoder(registry).decode(),
        )
        server = make_server(settings, options.port, registry)
    except (SerinError, OSError) as error:
        print(f"serin: exporter: {error}", file=sys.stderr)
        return 1
    push.start()
    server.serve_forever()  # SIGTERM ends it: nothing here has to be finished
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
