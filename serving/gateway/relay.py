"""Passes a predictor's answer on to the client: whole when it is small, else as it comes.

Knows neither arms nor retries; says whether the answer was whole.
"""

import asyncio

import aiohttp

from serving.gateway.reply import Header, Refusal, Reply
from serving.gateway.upstream import READING, AttemptFailed

EVENTS = "text/event-stream"
EVENT_BYTES_MAX = 1 << 20
DONE = b"data: [DONE]"
ERROR = b'data: {"error"'
HELD_BACK = b'"finish_reason":"content_filter"'
"""How a stream says that safety rules ended it: its headers left before they knew."""
NOT_PASSED = frozenset(
    (
        b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"trailer",
        b"upgrade", b"proxy-authenticate", b"date", b"server", b"x-request-id", b"x-serin-arm",
        b"x-serin-response-id", b"x-serin-region",
    )
)  # fmt: skip


def is_event_stream(answer: aiohttp.ClientResponse) -> bool:
    """Whether the answer is a stream of server-sent events."""
    return answer.headers.get("content-type", "").startswith(EVENTS)


def answer_headers(answer: aiohttp.ClientResponse) -> list[Header]:
    """The answer's headers that are meant for the client."""
    found = ((name.lower(), value) for name, value in answer.raw_headers)
    return [(name, value) for name, value in found if name not in NOT_PASSED]


async def read_start(answer: aiohttp.ClientResponse, size: int) -> tuple[bytes, bool]:
    """Read what must be here before the client gets a byte: (body so far, whether it is whole).

    A stream's first chunk; of other answers up to `size` bytes. Raises AttemptFailed.
    """
    with READING:
        if is_event_stream(answer):
            return await answer.content.readany(), False
        parts, length = [], 0
        while chunk := await answer.content.readany():
            parts.append(chunk)
            length += len(chunk)
            if length > size:
                return b"".join(parts), False
    return b"".join(parts), True


async def relay(answer: aiohttp.ClientResponse, start: bytes, reply: Reply) -> bool:
    """Send head, `start` and the rest of an answer; True when it was whole.

    When the endpoint breaks off, a stream ends with an error event and anything else is cut;
    raises AttemptFailed then, after the client was told.
    """
    reply.is_event_stream = is_event_stream(answer)
    await reply.start(answer.status, answer_headers(answer))
    try:
        if reply.is_event_stream:
            silence = _Silence(answer)
            try:
                return await _relay_events(answer, start, reply, silence)
            finally:
                silence.stop()
        chunk = start
        while chunk:
            await reply.write(chunk)
            with READING:
                chunk = await answer.content.readany()
        await reply.end()
        return True
    except AttemptFailed:
        refusal = Refusal(502, "the answer broke off; send the request again", "answer_broken")
        await reply.refuse(refusal)
        raise


class _Silence:
    """Ends a stream that says nothing for the session's `sock_read` seconds.

    One timer for all of a stream's chunks; aiohttp's own is a new one for each.
    """

    def __init__(self, answer: aiohttp.ClientResponse) -> None:
        protocol = answer.connection.protocol if answer.connection is not None else None
        seconds = None if protocol is None else protocol.read_timeout
        self._loop = asyncio.get_running_loop()
        self._content = answer.content
        self._timer: asyncio.TimerHandle | None = None
        self._heard_at = self._loop.time()
        if protocol is not None and seconds:
            protocol.read_timeout = None
            self._timer = self._loop.call_later(seconds, self._look, seconds)

    def heard(self) -> None:
        """The stream has said something."""
        self._heard_at = self._loop.time()

    def _look(self, seconds: float) -> None:
        left = self._heard_at + seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look, seconds)
        else:
            self._content.set_exception(TimeoutError(f"silent for {seconds:g} s"))

    def stop(self) -> None:
        """The stream is over."""
        if self._timer is not None:
            self._timer.cancel()


async def _relay_events(
    answer: aiohttp.ClientResponse, start: bytes, reply: Reply, silence: _Silence
) -> bool:
    """Pass whole events only, so that an error event can follow whatever was sent before."""
    chunk, rest = start, b""
    done = failed = False
    while chunk:
        events = rest + chunk if rest else chunk
        rest = b""
        if not events.endswith((b"\n\n", b"\r\n\r\n")):
            end = _end_of_events(events)
            events, rest = events[:end], events[end:]
            if len(rest) > EVENT_BYTES_MAX:
                raise AttemptFailed("event_too_large", sent=True)
        if events:
            done = done or DONE in events
            failed = failed or ERROR in events
            reply.events += events.count(b"\n\n")
            reply.held_back = reply.held_back or HELD_BACK in events
            await reply.write(events)
        silence.heard()
        with READING:
            chunk = await answer.content.readany()
    await reply.end(rest)
    return done and not failed


def _end_of_events(data: bytes) -> int:
    newline, carriage = data.rfind(b"\n\n"), data.rfind(b"\r\n\r\n")
    return max(newline + 2 if newline >= 0 else 0, carriage + 4 if carriage >= 0 else 0)
