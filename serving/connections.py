"""The HTTP edge: bounded bodies, clients that go away, event streams, headers on every answer."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncGenerator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.errors import SerinError
from serving import request_traces
from serving.api_errors import ApiError, unexpected
from serving.lifecycle import Identity, Lifecycle
from serving.predictor_metrics import PredictorMetrics

log = logging.getLogger("serin.predictor")

REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
CLIENT_GONE_STATUS = 499
REQUEST_ID_SCOPE = "serin.request_id"
"""Where in an ASGI scope the id of a request is."""
Result = TypeVar("Result")


class ClientGone(SerinError):
    """The client closed the connection before its answer was complete."""


class Withheld(SerinError):
    """What was to be sent must not leave; the caller has been told so already."""


class Ending:
    """Counts how one request ended, once."""

    def __init__(self, metrics: PredictorMetrics) -> None:
        self.arrived_seconds = time.perf_counter()
        self._metrics = metrics
        self._open = True

    def finish(self, outcome: str) -> None:
        """Count the outcome; later calls change nothing."""
        if self._open:
            self._open = False
            self._metrics.finished(outcome, time.perf_counter() - self.arrived_seconds)
            request_traces.end(outcome)


async def read_body(request: Request, bytes_max: int) -> bytes:
    """Return the body. Raises ApiError 413 above the limit, ClientGone when it ends early."""
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > bytes_max:
                raise ApiError(
                    f"The body is larger than {bytes_max} bytes.", status=413, code="too_large"
                )
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGone from error
    return b"".join(parts)


async def unless_gone(receive: Receive, work: Coroutine[Any, Any, Result]) -> Result:
    """Return what `work` returns; cancel it and raise ClientGone when the client disconnects."""
    task = asyncio.create_task(work)
    watch = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for started in (task, watch):
            started.cancel()
        await asyncio.gather(task, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events. The first is already there, so errors before it have a proper status."""

    media_type = "text/event-stream"

    def __init__(
        self,
        first: bytes,
        events: AsyncGenerator[bytes, None],
        ends_at: float,
        ending: Ending,
        headers: Mapping[str, str],
    ) -> None:
        plain = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(headers={**plain, **headers})
        del self.headers["content-length"]
        self._first = first
        self._events = events
        self._ends_at = ends_at
        self._ending = ending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or stop the answer when the client goes away or stops reading."""
        outcome = "cancelled"
        try:
            outcome = await unless_gone(receive, self._send_all(send))
        except (ClientGone, TimeoutError):
            log.debug("a stream's client went away")
        except (asyncio.CancelledError, Withheld):  # the drain's time is over, or it must not leave
            outcome = "error"
            raise
        finally:
            await self._events.aclose()
            self._ending.finish(outcome)

    async def _send_all(self, send: Send) -> str:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        outcome = "ok"
        try:
            await self._send(send, self._first)
            async with aclosing(self._events) as events:
                async for event in events:
                    await self._send(send, event)
        except ApiError as error:  # the status is sent already: clients look for `error` events
            outcome = error.outcome
            await send(_part(b"data: " + error.body() + b"\n\n"))
        await send({"type": "http.response.body", "body": b"", "more_body": False})
        return outcome

    async def _send(self, send: Send, event: bytes) -> None:
        async with asyncio.timeout_at(self._ends_at):
            await send(_part(event))


def _part(body: bytes) -> Message:
    return {"type": "http.response.body", "body": body, "more_body": True}


def error_response(error: ApiError) -> Response:
    """Return an error as OpenAI's clients expect it."""
    return Response(
        error.body(), error.status, headers=error.headers, media_type="application/json"
    )


class Envelope:
    """Puts who answered on every answer and counts requests in flight; the last to catch errors."""

    def __init__(self, app: ASGIApp, identity: Identity, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._headers = {
            "x-serin-model-version": identity.model_version,
            "x-serin-revision": identity.revision,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = Headers(scope=scope).get("x-request-id", "")
        request_id = sent if REQUEST_ID.fullmatch(sent) else uuid4().hex
        scope[REQUEST_ID_SCOPE] = request_id
        started = False

        async def labelled(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers.update({**self._headers, "x-request-id": request_id})
                if self._lifecycle.draining:
                    headers["connection"] = "close"
            await send(message)

        counted = scope["method"] == "POST"  # probes and scrapes hold up no drain
        if counted:
            self._lifecycle.entered()
        try:
            await self._app(scope, receive, labelled)
        except Exception:  # noqa: BLE001 - the edge of the process: log it, answer, live on
            log.exception("request %s failed", request_id)
            if not started:
                await error_response(unexpected())(scope, receive, labelled)
        finally:
            if counted:
                self._lifecycle.left()
