"""The last place before the caller: counts text against what was scanned, and writes the audit.

An answer leaves only if the safety chain has passed each byte of its text and its row is written.
That holds for every route but those listed here, whoever adds one.
"""

import logging
from collections import Counter
from contextlib import suppress
from urllib.parse import unquote

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import UnavailableError
from serving.api_errors import ApiError, audit_unavailable, unscanned
from serving.auditing import Asker, PredictorAudit, Record
from serving.connections import (
    CLIENT_GONE_STATUS,
    REQUEST_ID_SCOPE,
    Withheld,
    error_response,
)
from serving.coverage import EVENTS, text_bytes

log = logging.getLogger("serin.predictor")

RECORD = "serin.record"
KEY_HEADER = "x-serin-key"
CLIENT_HEADER = "x-serin-client"
SHADOW_HEADER = "x-serin-shadow"
FIXED_ROUTES = frozenset(
    (
        "/v2/health/live",
        "/v2/health/ready",
        "/v2/models/{model_name}/ready",
        "/metrics",
        "/serin/identity",
        "/openapi.json",
        "/openai/v1/models",
        "/openai/v1/models/{name}",
    )
)
"""Routes whose answers no model has a part in; they have no row either."""


class Edge:
    """Gives each request a record, and lets out what belongs to it."""

    def __init__(self, app: ASGIApp, audit: PredictorAudit) -> None:
        self._app = app
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = scope[RECORD] = self._audit.begin(_asker(scope))
        way_out = WayOut(scope, receive, send, record, self._audit)
        try:
            with suppress(Withheld):
                await self._app(scope, receive, way_out.send)
        finally:
            way_out.close()


class WayOut:
    """One answer on its way out. Status and headers wait for the first part of the body."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        record: Record,
        audit: PredictorAudit,
    ) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._record = record
        self._audit = audit
        self._metrics = audit.metrics
        self._start: Message | None = None
        self._status = CLIENT_GONE_STATUS
        self._content_type = ""
        self._sent: Counter[int] = Counter()
        self._segments = 0
        self._written = self._fixed = False

    async def send(self, message: Message) -> None:
        """Let one message out. Raises Withheld when it must not leave."""
        if message["type"] == "http.response.start":
            template = getattr(self._scope.get("route"), "path", self._scope["path"])
            self._fixed = template in FIXED_ROUTES
            self._start, self._status = message, message["status"]
            self._content_type = Headers(raw=message["headers"]).get("content-type", "")
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if not self._fixed:
            try:
                self._let_out(self._measured(body), more)
            except ApiError as error:
                await self._refuse(error)
                raise Withheld(str(error)) from error
        if self._start is not None:
            start, self._start = self._start, None
            await self._send(start)
        await self._send(message)

    def close(self) -> None:
        """Write the row of an answer that did not come to its end."""
        if self._fixed or self._written:
            return
        self._written = True
        if self._start is None and self._status < 400:
            self._record.reason = self._record.reason or "cut"
        with suppress(UnavailableError):  # it is logged; nothing is left to be refused
            self._audit.whole(self._record, self._status, self._sent.total())

    def _measured(self, body: bytes) -> Counter[int]:
        """Return the text that is about to leave. Raises ApiError when some of it is unscanned."""
        leaving = text_bytes(self._content_type, body)
        excess = sum(
            max(0, self._sent[choice] + size - self._record.released[choice])
            for choice, size in leaving.items()
        )
        if excess:
            self._metrics.unscanned(excess)
            path = self._scope["path"]
            log.critical("%d bytes of %s came to the edge unscanned; stopped", excess, path)
            raise unscanned()
        return leaving

    def _let_out(self, leaving: Counter[int], more: bool) -> None:
        """Write what must be written before this leaves. Raises ApiError when it cannot be."""
        size = leaving.total()
        try:
            if not self._written and (self._record.complete or not more):
                self._written = True
                self._audit.whole(self._record, self._status, self._sent.total() + size)
            elif not self._written and size:
                segments = self._record.segments[self._segments :]
                self._segments = len(self._record.segments)
                self._audit.part(self._record, segments, size)
        except UnavailableError as error:
            raise audit_unavailable() from error
        self._sent += leaving
        self._metrics.sent(size)

    async def _refuse(self, error: ApiError) -> None:
        """Tell the caller in the way that is still possible."""
        self._record.reason = error.code or ""
        self._status = error.status
        if self._start is not None:
            self._start = None
            await error_response(error)(self._scope, self._receive, self._send)
        elif self._content_type.startswith(EVENTS):
            event = b"data: " + error.body() + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": False})


def _asker(scope: Scope) -> Asker:
    """Return who asks: only the gateway's token leads here, so its headers are believed."""
    headers = Headers(scope=scope)
    peer = scope.get("client")
    return Asker(
        request_id=scope[REQUEST_ID_SCOPE],
        key=unquote(headers.get(KEY_HEADER, "")),
        client=headers.get(CLIENT_HEADER) or (peer[0] if peer else ""),
        shadow=SHADOW_HEADER in headers,
    )
