"""A collector for tests: takes OTLP over HTTP and gRPC and keeps what came, decoded."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import grpc
from opentelemetry.proto.collector.metrics.v1 import (
    metrics_service_pb2,
    metrics_service_pb2_grpc,
)
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

TRACES, METRICS = "/v1/traces", "/v1/metrics"


class Collector:
    """What arrived: spans as {name, trace, id, parent, kind, status, service, attributes}."""

    def __init__(self) -> None:
        self.spans: list[dict[str, Any]] = []
        self.metrics: dict[str, Any] = {}
        self.headers: list[dict[str, str]] = []
        self.http_url = self.grpc_url = ""

    def take_traces(self, request: Any) -> None:
        for group in request.resource_spans:
            resource = _attributes(group.resource.attributes)
            for scope in group.scope_spans:
                for span in scope.spans:
                    self.spans.append(
                        {
                            "name": span.name,
                            "trace": span.trace_id.hex(),
                            "id": span.span_id.hex(),
                            "parent": span.parent_span_id.hex(),
                            "kind": span.kind,
                            "status": span.status.code,
                            "start": span.start_time_unix_nano,
                            "end": span.end_time_unix_nano,
                            "service": resource["service.name"],
                            "attributes": _attributes(span.attributes),
                        }
                    )

    def take_metrics(self, request: Any) -> None:
        for group in request.resource_metrics:
            for scope in group.scope_metrics:
                self.metrics.update({metric.name: metric for metric in scope.metrics})

    def named(self, name: str) -> list[dict[str, Any]]:
        return [span for span in self.spans if span["name"] == name]

    def with_id(self, span_id: str) -> dict[str, Any] | None:
        return next((span for span in self.spans if span["id"] == span_id), None)

    def parent_of(self, span_id: str) -> dict[str, Any] | None:
        span = self.with_id(span_id)
        return span and self.with_id(span["parent"])

    def children_of(self, parent: dict[str, Any]) -> list[str]:
        return [span["name"] for span in self.spans if span["parent"] == parent["id"]]


def _attributes(pairs: Any) -> dict[str, Any]:
    found = {}
    for pair in pairs:
        kind = pair.value.WhichOneof("value")
        value = getattr(pair.value, kind)
        if kind == "array_value":
            value = [item.string_value for item in value.values]
        found[pair.key] = value
    return found


@contextmanager
def collector() -> Iterator[Collector]:
    """Run one on two free ports of loopback."""
    found = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.headers.append({name.lower(): value for name, value in self.headers.items()})
            if self.path == TRACES:
                found.take_traces(trace_service_pb2.ExportTraceServiceRequest.FromString(body))
            elif self.path == METRICS:
                kind = metrics_service_pb2.ExportMetricsServiceRequest
                found.take_metrics(kind.FromString(body))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: Any) -> None:
            pass

    class Servicer(trace_service_pb2_grpc.TraceServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            found.take_traces(request)
            return trace_service_pb2.ExportTraceServiceResponse()

    class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
        def Export(self, request: Any, context: Any) -> Any:
            found.take_metrics(request)
            return metrics_service_pb2.ExportMetricsServiceResponse()

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(Servicer(), server)
    metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server(MetricsServicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    found.http_url = f"http://127.0.0.1:{http.server_address[1]}"
    found.grpc_url = f"http://127.0.0.1:{port}"
    try:
        yield found
    finally:
        http.shutdown()
        http.server_close()
        server.stop(None)
