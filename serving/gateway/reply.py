"""What goes back to a client: OpenAI-style errors, and a reply that knows how far it got."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import msgspec

Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
CUT_SECONDS_MAX = 1.0
"""A client that does not read gets this long for the last words of a broken stream."""


def error_body(status: int, message: str, code: str | None = None) -> bytes:
    """Return an error as OpenAI's API words it."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    if status == 429:
        kind = "rate_limit_error"
    error = {"message": message, "type": kind, "param": None, "code": code}
    return msgspec.json.encode({"error": error})


class Refusal(Exception):
    """The request ends here with an error of the gateway's own."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str,
        headers: tuple[Header, ...] = (),
        retry_after_seconds: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.body = error_body(status, message, code)
        self.headers = [JSON, *headers]
        if retry_after_seconds is not None:
            self.headers.append((b"retry-after", str(retry_after_seconds).encode()))


class Reply:
    """One answer on its way to the client. `common` headers are sent with every answer."""

    __slots__ = (
        "_abort",
        "_send",
        "common",
        "events",
        "finished",
        "gone",
        "held_back",
        "is_event_stream",
        "refusal",
        "started",
        "status",
    )

    def __init__(self, send: Send, abort: Callable[[], None], common: list[Header]) -> None:
        self._send = send
        self._abort = abort
        self.common = common
        self.started = False
        self.status = 0
        """What the client was told; 0 before."""
        self.finished = False
        self.is_event_stream = False
        self.events = 0
        """Events of a stream that were passed on."""
        self.held_back = False
        """A stream ended because safety rules held the rest back."""
        self.refusal: Refusal | None = None
        """The error of the gateway's own that ended it."""
        self.gone = False
        """The client has closed its connection."""

    def set_header(self, name: bytes, value: bytes) -> None:
        """Send this header with every answer, once, whatever was set before."""
        self.common = [header for header in self.common if header[0] != name]
        self.common.append((name, value))

    async def start(self, status: int, headers: list[Header]) -> None:
        """Send status and headers."""
        self.started, self.status = True, status
        headers = [*headers, *self.common]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes) -> None:
        """Send a part of the body; waits while the client reads too slowly."""
        await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def end(self, body: bytes = b"") -> None:
        """Send the last part of the body."""
        self.finished = True
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def whole(self, status: int, headers: list[Header], body: bytes) -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, (b"content-length", str(len(body)).encode())])
        await self.end(body)

    async def refuse(self, refusal: Refusal) -> None:
        """End with an error of the gateway's own, in the way that is still possible.

        Before the first byte it is an ordinary answer; a stream of events gets it as its last
        event; anything else is cut, so that the client sees that it is not whole.
        """
        self.refusal = refusal
        if not self.started:
            await self.whole(refusal.status, refusal.headers, refusal.body)
            return
        if self.is_event_stream and not self.finished:
            try:
                async with asyncio.timeout(CUT_SECONDS_MAX):
                    await self.end(b"data: " + refusal.body + b"\n\n")
                return
            except TimeoutError:
                pass  # the client does not read
        self.finished = True
        self._abort()
