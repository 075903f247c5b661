"""One client connection: uvicorn's HTTP protocol with bounds on time and size of request heads.

Adds what uvicorn leaves open: slow and oversized heads, too many connections, and an end to a
drain that loses no request which was already on its way.
"""

import asyncio
import fcntl
import termios
from array import array
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from serving.gateway.config import GatewayConfig
from serving.gateway.reply import error_body

DRAIN_GRACE_SECONDS = 1.0
DRAIN_LOOK_SECONDS = 0.05
"""On shutdown, a connection without a request may still bring one: its client may not know yet."""

EXTENSION = "serin.connection"
"""Where the app finds its connection in the ASGI scope's extensions."""

REASONS = {400: b"Bad Request", 408: b"Request Timeout", 429: b"Too Many Requests"}
REASONS[431] = b"Request Header Fields Too Large"


class Connection(HttpToolsProtocol):
    """See the module; one instance per client connection."""

    limits = GatewayConfig()

    def __init__(self, config: Config, server_state: ServerState, *args: Any, **named: Any) -> None:
        super().__init__(config, server_state, *args, **named)
        self._head_bytes = 0
        self._silent_bytes = 0
        self._refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._draining = False
        self._begun = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections_max:
            self._refuse(429, "too many connections", "too_many_connections")
            return
        self._arm_idle_timer(self.limits.idle_seconds_max)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feed the parser; bytes that it keeps without a callback count against the head."""
        if self._refused:
            return
        if not self._begun:
            self._begun = True
            self._head_timer = self.loop.call_later(self.limits.head_seconds_max, self._too_slow)
        self._silent_bytes += len(data)
        super().data_received(data)
        if not self._refused and self._head_bytes + self._silent_bytes > self.limits.head_bytes_max:
            self._refuse_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"abort": self._abort}}
        self._head_bytes = 0

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        self._count_head(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        self._count_head(len(name) + len(value) + 4)

    def on_headers_complete(self) -> None:
        self._stop_head_timer()
        self._silent_bytes = 0
        super().on_headers_complete()
        if self._draining:
            self.cycle.keep_alive = False

    def on_body(self, body: bytes) -> None:
        self._silent_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._begun = False
        self._head_bytes = self._silent_bytes = 0
        super().on_message_complete()

    def on_chunk_header(self) -> None:
        self._silent_bytes = 0

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP; never into the middle of an answer that has begun."""
        self._refuse(400, "the request is not valid HTTP", "invalid_http")

    def shutdown(self) -> None:
        """Drain: finish what runs, and give a request that is on its way a moment to arrive."""
        self._draining = True
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.keep_alive = False
        else:
            self._unset_keepalive_if_required()
            self.loop.call_later(DRAIN_GRACE_SECONDS, self._close_if_idle)

    def _count_head(self, size: int) -> None:
        self._silent_bytes = 0
        self._head_bytes += size
        if self._head_bytes > self.limits.head_bytes_max:
            self._refuse_head()
            raise httptools.HttpParserError("head too large")  # the parser must stop here

    def _refuse_head(self) -> None:
        size = self.limits.head_bytes_max
        self._refuse(431, f"the request's head is larger than {size} bytes", "head_too_large")

    def _too_slow(self) -> None:
        seconds = self.limits.head_seconds_max
        self._refuse(408, f"the request's head took longer than {seconds:g} s", "head_too_slow")

    def _refuse(self, status: int, message: str, code: str) -> None:
        """Answer without the app and close; a running answer is cut instead."""
        if self._refused or self.transport.is_closing():
            return
        self._refused = True
        self._stop_head_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self._abort()
            return
        body = error_body(status, message, code)
        head = [
            b"HTTP/1.1 %d %s" % (status, REASONS[status]),
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
            *([b"retry-after: 1"] if status == 429 else []),
        ]
        self.transport.write(b"\r\n".join(head) + b"\r\n\r\n" + body)
        self.transport.close()

    def _arm_idle_timer(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _close_if_idle(self) -> None:
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or self._begun:
            return  # its answer will end the connection
        if self._has_unread():  # a busy process sees its timers first
            self.loop.call_later(DRAIN_LOOK_SECONDS, self._close_if_idle)
            return
        self.transport.close()

    def _has_unread(self) -> bool:
        """Whether the kernel holds bytes of this connection that were not read yet."""
        found = self.transport.get_extra_info("socket")
        length = array("i", [0])
        fcntl.ioctl(found.fileno(), termios.FIONREAD, length)
        return length[0] > 0

    def _abort(self) -> None:
        self.transport.abort()


def connection_class(limits: GatewayConfig) -> type[Connection]:
    """Return the protocol class with these limits, as uvicorn's Config takes it."""
    return type("LimitedConnection", (Connection,), {"limits": limits})
