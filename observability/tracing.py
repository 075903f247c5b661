"""One request's trace inside one process: its span, its stages, and what the next process is told.

Knows no route and no model. Durations are given in seconds of time.perf_counter().
"""

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from core.telemetry import TelemetrySettings
from observability.otlp_metrics import MetricsPush
from observability.sampling import Parent, RequestSampler, read_parent

if TYPE_CHECKING:
    from observability.export import Export

log = logging.getLogger("serin.tracing")

LOAD_AFTER_SECONDS = 1.0
NANOSECONDS = 1_000_000_000
CURRENT: ContextVar["RequestTrace | None"] = ContextVar("serin_trace", default=None)
Attribute = str | bool | int | float | tuple[str, ...]


def current() -> "RequestTrace | None":
    """Return the trace of the request that runs; None for one that is not recorded."""
    return CURRENT.get()


def in_nanoseconds(perf_seconds: float) -> int:
    """Return a reading of time.perf_counter() as nanoseconds since the epoch."""
    return time.time_ns() - int((time.perf_counter() - perf_seconds) * NANOSECONDS)


class RequestTrace:
    """A recorded request. Every method is quick and raises nothing; `end` may be called twice."""

    __slots__ = ("_context", "_export", "_open", "span", "span_id", "trace_id")

    def __init__(self, export: "Export", name: str, parent: Parent | None, began: float) -> None:
        from opentelemetry import trace

        context = None
        if parent is not None:
            flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
            remote = trace.SpanContext(parent.trace_id, parent.span_id, True, flags)
            context = trace.set_span_in_context(trace.NonRecordingSpan(remote))
        self._export = export
        self.span: Any = export.tracer.start_span(
            name, context, trace.SpanKind.SERVER, start_time=in_nanoseconds(began)
        )
        self._context = trace.set_span_in_context(self.span)
        self._open = True
        made = self.span.get_span_context()
        self.trace_id = f"{made.trace_id:032x}"
        self.span_id = f"{made.span_id:016x}"

    def note(self, **attributes: Attribute) -> None:
        """Say something of the request; `__` in a name stands for a dot."""
        self.span.set_attributes(_named(attributes))

    def stage(self, name: str, began: float, ended: float, **attributes: Attribute) -> None:
        """Add a part of the request that is over."""
        span = self._export.tracer.start_span(
            name, self._context, attributes=_named(attributes), start_time=in_nanoseconds(began)
        )
        span.end(in_nanoseconds(ended))

    def call(self, name: str) -> "Call":
        """Begin a call of another process."""
        return Call(self._export, self._context, name)

    def end(self, error: str = "") -> None:
        """End the request; with an error it failed."""
        if self._open:
            self._open = False
            _finish(self.span, error)


class Call:
    """A call of another process, which goes on with the trace by the header `traceparent`."""

    __slots__ = ("_span", "traceparent")

    def __init__(self, export: "Export", context: Any, name: str) -> None:
        from opentelemetry.trace import SpanKind

        self._span = export.tracer.start_span(name, context, SpanKind.CLIENT)
        made = self._span.get_span_context()
        self.traceparent = Parent(made.trace_id, made.span_id, sampled=True).header

    def note(self, **attributes: Attribute) -> None:
        """Say something of the call."""
        self._span.set_attributes(_named(attributes))

    def end(self, error: str = "") -> None:
        """End the call; with an error it failed."""
        _finish(self._span, error)


class Tracing:
    """Begins the traces of one process's requests. Off, it costs one look at a flag."""

    def __init__(
        self,
        settings: TelemetrySettings,
        process: str,
        service: str,
        *,
        trusting: bool,
        resource: Mapping[str, str] | None = None,
    ) -> None:
        """`process` is the name in the traces, `service` the name of MLflow's experiment."""
        self._settings = settings
        self._experiment = service
        self._resource = {"service.name": process, "service.namespace": "serin", **(resource or {})}
        self._sampler = RequestSampler(settings, trusting)
        self._export: Export | None = None

    def start(self) -> None:
        """Load the SDK in a thread: requests are served meanwhile, and traced once it is there.

        A moment later, because whoever waited for this process to start comes first.
        """
        if self._settings.traces:
            loading = threading.Timer(LOAD_AFTER_SECONDS, self._load)
            loading.daemon = True
            loading.start()

    def begin(self, name: str, traceparent: str, began: float) -> RequestTrace | None:
        """Return the trace of a request, which is current from now on; None for most of them."""
        if self._export is None:
            return None
        parent = read_parent(traceparent) if traceparent else None
        if not self._sampler.wants(parent):
            return None
        trace = RequestTrace(self._export, name, parent, began)
        CURRENT.set(trace)
        return trace

    def passed_on(self, traceparent: str) -> str:
        """Return the header as a request that is not recorded here passes it on."""
        parent = read_parent(traceparent)
        if parent is None or self._export is None:
            return traceparent
        return Parent(parent.trace_id, parent.span_id, sampled=False).header

    def pushing(self, read: Callable[[], str]) -> MetricsPush:
        """Return what pushes the metrics of the same process, where that is asked for."""
        return MetricsPush(self._settings, self._resource, read)

    def counts(self) -> Iterator[tuple[str, int]]:
        """How many spans were sent and dropped."""
        yield from self._export.counts if self._export is not None else ()

    def close(self) -> None:
        """Send what is left, in bounded time."""
        if self._export is not None:
            self._export.close()

    def _load(self) -> None:
        from observability.export import Export

        try:
            self._export = Export(self._settings, self._experiment, self._resource)
        except Exception as error:  # noqa: BLE001 - wrong OTEL_* values must not end what serves
            log.error("traces are off: %s", error)


def _named(attributes: Mapping[str, Attribute]) -> dict[str, Attribute]:
    return {name.replace("__", "."): value for name, value in attributes.items()}


def _finish(span: Any, error: str) -> None:
    if error:
        from opentelemetry.trace import Status, StatusCode

        span.set_attribute("error.type", error)
        span.set_status(Status(StatusCode.ERROR))
    span.end()
