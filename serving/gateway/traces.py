"""What the gateway's spans say: a request from its arrival to its end, and each sending of it.

Follows OpenTelemetry's conventions for HTTP; knows how to read a reply, decides nothing.
"""

import time
from collections.abc import Iterator, MutableMapping

from observability.tracing import Call, RequestTrace, Tracing, current
from serving.gateway.balancer import Endpoint
from serving.gateway.cache import CACHE_HEADER
from serving.gateway.exposition import family, labels
from serving.gateway.reply import Header, Message, Reply

HEADER = b"traceparent"
SAID = {CACHE_HEADER: "serin__cache", b"x-serin-arm": "serin__arm"}
"""Headers of every answer that its span repeats."""


def begin(tracing: Tracing, scope: Message, headers: MutableMapping[bytes, bytes]) -> None:
    """Begin a request's trace if it is to be recorded; else see that nobody after us records it."""
    given = headers.get(HEADER, b"").decode("latin-1")
    trace = tracing.begin(f"{scope['method']} {scope['path']}", given, time.perf_counter())
    if trace is not None:
        method, path = scope["method"], scope["path"]
        trace.note(http__request__method=method, http__route=path, url__path=path)
    elif given:
        passed = tracing.passed_on(given).encode("latin-1")
        kept: list[Header] = [item for item in scope["headers"] if item[0] != HEADER]
        scope["headers"] = [*kept, (HEADER, passed)]


def end(reply: Reply) -> None:
    """End the request's trace, if it has one, with what the client got."""
    trace = current()
    if trace is None:
        return
    trace.note(http__response__status_code=reply.status, serin__request_id=_request_id(reply))
    trace.note(**{SAID[name]: value.decode() for name, value in reply.common if name in SAID})
    if reply.events:
        trace.note(serin__stream__events=reply.events)
    error = reply.refusal.code if reply.refusal is not None else ""
    trace.end(error or (str(reply.status) if reply.status >= 500 else ""))


def waited(trace: RequestTrace | None, began: float) -> None:
    """Note the wait for one of the gateway's places."""
    if trace is not None:
        trace.stage("admission", began, time.perf_counter())


def sending(headers: MutableMapping[str, str], endpoint: Endpoint, number: int) -> Call | None:
    """Begin one sending of the request and let the endpoint go on with its trace."""
    trace = current()
    if trace is None:
        return None
    call = trace.call("POST")
    call.note(server__address=endpoint.url, serin__revision=endpoint.revision, serin__send=number)
    headers["traceparent"] = call.traceparent
    return call


def sent(call: Call | None, status: int | None) -> None:
    """End one sending; without a status nothing came back."""
    if call is None:
        return
    if status is None:
        call.end("no_answer")
        return
    call.note(http__response__status_code=status)
    call.end(str(status) if status >= 500 else "")


def lines(tracing: Tracing) -> Iterator[str]:
    """Yield what became of the spans, in Prometheus' text format."""
    name, text = "serin_gateway_trace_spans_total", "Spans by whether somebody took them."
    counts = ((labels(outcome=outcome), count) for outcome, count in tracing.counts())
    yield from family(name, "counter", text, counts)


def _request_id(reply: Reply) -> str:
    return reply.common[0][1].decode("latin-1")
