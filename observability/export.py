"""Sends spans by OTLP to a collector or to MLflow, and drops them while that is away.

Nothing here is called by a request: a thread of the SDK exports what its bounded queue holds.
"""

import http.client
import json
import logging
import threading
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON

from core.telemetry import TelemetrySettings

log = logging.getLogger("serin.tracing")

QUEUE_SPANS_MAX = 4096
"""Spans that wait for export; further ones push the oldest out."""
BATCH_SPANS_MAX = 512
BATCH_SECONDS = 2.0
EXPORT_SECONDS_MAX = 5.0
CLOSE_SECONDS = 2.0
"""How long a process that ends waits for a collector to take what is left."""
MLFLOW_SECONDS_MAX = 5.0
EXPERIMENT_HEADER = "x-mlflow-experiment-id"


class CountedExporter(SpanExporter):
    """Counts what was sent and what was dropped; says once that a collector is away, or is back."""

    def __init__(self, inner: SpanExporter, where: str) -> None:
        self._inner = inner
        self._where = where
        self._away = False
        self.sent = self.dropped = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; a batch that cannot be sent is gone."""
        try:
            result = self._inner.export(spans)
        except Exception as error:  # noqa: BLE001 - whatever an exporter raises, the process lives on
            log.debug("traces: %s", error)
            result = SpanExportResult.FAILURE
        failed = result is not SpanExportResult.SUCCESS
        if failed:
            self.dropped += len(spans)
        else:
            self.sent += len(spans)
        if failed != self._away:
            self._away = failed
            text = "does not take traces; they are dropped" if failed else "takes traces again"
            log.warning("%s %s", self._where, text)
        return result

    def shutdown(self) -> None:
        """Close the connection."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Nothing is held back here."""
        return True


class MlflowExporter(SpanExporter):
    """Sends spans to the experiment of an MLflow server, which is found or made first."""

    def __init__(self, url: str, experiment: str) -> None:
        self._url = url.rstrip("/")
        self._experiment = experiment
        self._inner: SpanExporter | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send a batch; fails while the server does not answer."""
        if self._inner is None:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

            experiment_id = find_experiment(self._url, self._experiment)
            if experiment_id is None:
                return SpanExportResult.FAILURE
            self._inner = OTLPSpanExporter(
                f"{self._url}/v1/traces",
                headers={EXPERIMENT_HEADER: experiment_id},
                timeout=EXPORT_SECONDS_MAX,
            )
        return self._inner.export(spans)

    def shutdown(self) -> None:
        """Close the connection."""
        if self._inner is not None:
            self._inner.shutdown()


def find_experiment(url: str, name: str) -> str | None:
    """Return the id of an MLflow experiment, made if need be; None when the server is away."""
    query = urllib.parse.urlencode({"experiment_name": name})
    found = _mlflow("GET", url, f"get-by-name?{query}")
    if found is None:
        return None
    if "experiment" in found:
        return str(found["experiment"]["experiment_id"])
    made = _mlflow("POST", url, "create", {"name": name})
    if made is not None and "experiment_id" not in made:  # another process was faster
        made = (_mlflow("GET", url, f"get-by-name?{query}") or {}).get("experiment")
    return None if made is None else str(made["experiment_id"])


def _mlflow(
    method: str, url: str, call: str, content: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=MLFLOW_SECONDS_MAX)
    try:
        body = None if content is None else json.dumps(content)
        path = f"{parts.path.rstrip('/')}/api/2.0/mlflow/experiments/{call}"
        connection.request(method, path, body, {"content-type": "application/json"})
        found: dict[str, Any] = json.loads(connection.getresponse().read())
        return found
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


def make_exporter(settings: TelemetrySettings, experiment: str) -> CountedExporter:
    """Return the exporter that the settings ask for; its other settings are OpenTelemetry's own."""
    if settings.to_mlflow:
        mlflow = MlflowExporter(settings.mlflow_url, experiment)
        return CountedExporter(mlflow, f"MLflow at {settings.mlflow_url}")
    where = f"the collector at {settings.traces_endpoint or settings.endpoint}"
    if settings.traces_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
            OTLPSpanExporter as GrpcSpanExporter,
        )

        return CountedExporter(GrpcSpanExporter(), where)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return CountedExporter(OTLPSpanExporter(), where)


class GivenIds(RandomIdGenerator):
    """Gives the ids that it was told, else random ones."""

    def __init__(self) -> None:
        self.given: tuple[int, int] | None = None

    def generate_trace_id(self) -> int:
        """Return the id of a new trace."""
        return self.given[0] if self.given else super().generate_trace_id()

    def generate_span_id(self) -> int:
        """Return the id of a new span."""
        return self.given[1] if self.given else super().generate_span_id()


class Export:
    """The SDK of one process: a provider whose spans wait in a bounded queue for a thread."""

    def __init__(
        self,
        settings: TelemetrySettings,
        experiment: str,
        resource: Mapping[str, str],
    ) -> None:
        for name in ("opentelemetry", "urllib3", "grpc"):  # each batch that fails would be a trace
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._ids = GivenIds()
        self._giving = threading.Lock()
        self._exporter = make_exporter(settings, experiment)
        # What is recorded was decided before. Our own end is bounded, the SDK's is not.
        self._provider = TracerProvider(
            ALWAYS_ON, Resource.create(resource), shutdown_on_exit=False, id_generator=self._ids
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                self._exporter,
                max_queue_size=QUEUE_SPANS_MAX,
                schedule_delay_millis=BATCH_SECONDS * 1000,
                max_export_batch_size=BATCH_SPANS_MAX,
                export_timeout_millis=EXPORT_SECONDS_MAX * 1000,
            )
        )
        self.tracer = self._provider.get_tracer("serin")

    @contextmanager
    def given_ids(self, trace_id: int, span_id: int) -> Iterator[None]:
        """Give these ids to the span that is started meanwhile, and to no other thread's."""
        with self._giving:
            self._ids.given = trace_id, span_id
            try:
                yield
            finally:
                self._ids.given = None

    @property
    def counts(self) -> Iterator[tuple[str, int]]:
        """How many spans were sent, and dropped because nobody took them."""
        yield "sent", self._exporter.sent
        yield "dropped", self._exporter.dropped

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Send what is left, for so long at most."""
        ending = threading.Thread(target=self._provider.shutdown, daemon=True)
        ending.start()
        ending.join(seconds)
