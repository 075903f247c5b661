"""Traces that outlive a process: their ids follow from a key, so that whoever goes on finds them.

Told when a part is over, from what was kept of it; telling twice gives the same spans again.
"""

import atexit
import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from core.telemetry import TelemetrySettings
from observability.tracing import NANOSECONDS, Attribute

if TYPE_CHECKING:
    from observability.export import Export

TRACE_BYTES, SPAN_BYTES = 16, 8


@dataclass(frozen=True, slots=True)
class Part:
    """One span to be: times in seconds since the epoch; `notes` are (time, text) within it.

    `key` tells it from others of its name; `error` is empty where nothing went wrong.
    """

    name: str
    began_seconds: float
    ended_seconds: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    notes: tuple[tuple[float, str], ...] = ()
    error: str = ""
    key: str = ""


def tell(settings: TelemetrySettings, service: str, key: str, root: Part | None,
         parts: Iterable[Part]) -> None:  # fmt: skip
    """Send a trace's root (None: somebody else tells it) and parts of it; nothing where it is off.

    Returns at once: a thread sends, and the process's end waits for it in bounded time.
    """
    if not settings.traces or settings.sampler.endswith("always_off"):
        return
    export = _open(settings, service)
    trace_id, root_id = number(key, TRACE_BYTES), number(f"{key} root", SPAN_BYTES)
    for part in parts:
        span_id = number(f"{key} {part.name} {part.key or part.began_seconds}", SPAN_BYTES)
        _send(export, part, trace_id, span_id, root_id)
    if root is not None:
        _send(export, root, trace_id, root_id, None)


def number(text: str, size: int) -> int:
    """Return the id that follows from a text; never 0."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=size).digest()) or 1


@functools.cache
def _open(settings: TelemetrySettings, service: str) -> "Export":
    from observability.export import Export

    resource = {"service.name": "serin-flows", "service.namespace": "serin"}
    export = Export(settings, service, resource)
    atexit.register(export.close)
    return export


def _send(export: "Export", part: Part, trace_id: int, span_id: int, parent_id: int | None) -> None:
    from opentelemetry import trace

    context = None
    if parent_id is not None:
        flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
        parent = trace.SpanContext(trace_id, parent_id, True, flags)
        context = trace.set_span_in_context(trace.NonRecordingSpan(parent))
    with export.given_ids(trace_id, span_id):
        span = export.tracer.start_span(
            part.name,
            context,
            attributes=dict(part.attributes),
            start_time=int(part.began_seconds * NANOSECONDS),
        )
    for seconds, text in part.notes:
        span.add_event(text, timestamp=int(seconds * NANOSECONDS))
    if part.error:
        span.set_status(trace.Status(trace.StatusCode.ERROR, part.error))
    span.end(int(max(part.ended_seconds, part.began_seconds) * NANOSECONDS))
