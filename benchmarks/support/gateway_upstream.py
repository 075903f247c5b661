"""An upstream that costs next to nothing: a process that answers OpenAI's chat without a model.

A stream's chunks carry the time at which they were sent, so that a client on the same machine sees
how long each took. Knows just enough of HTTP for the clients of the gateway benchmark.
"""

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import cast

import msgspec
import uvloop

from benchmarks.support.serving_predictors import MODEL

REVISION = "benchmark-1"
HEAD_END = b"\r\n\r\n"
LENGTH = b"content-length:"
SENT = "@"
"""What stands before a chunk's sending time, in seconds of the monotonic clock; a blank follows."""


def answer_of(status: str, body: bytes, kind: str = "application/json") -> bytes:
    """Return a whole HTTP answer."""
    head = f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n"
    return f"{head}x-serin-revision: {REVISION}\r\n\r\n".encode() + body


USAGE = {"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}
CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "All is well with your order."},
    "finish_reason": "stop",
}
COMPLETION = {
    "id": "chatcmpl-benchmark",
    "object": "chat.completion",
    "created": 1,
    "model": MODEL,
    "choices": [CHOICE],
    "usage": USAGE,
}
WHOLE = answer_of("200 OK", msgspec.json.encode(COMPLETION))
READY = answer_of("200 OK", b'{"ready":true}')
MISSING = answer_of("404 Not Found", b"{}")
STREAM_HEAD = (
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n"
    f"x-serin-revision: {REVISION}\r\n\r\n"
).encode()


def event(text: str) -> bytes:
    """Return one event of a stream as an HTTP chunk."""
    data = f"data: {text}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


def piece(reason: str = "null") -> str:
    """Return a stream's piece, stamped with the time now."""
    delta = f'{{"role":"assistant","content":"{SENT}{time.monotonic():.6f} "}}'
    choice = f'{{"index":0,"delta":{delta},"finish_reason":{reason}}}'
    head = '{"id":"chatcmpl-benchmark","object":"chat.completion.chunk","created":1,'
    return f'{head}"model":"{MODEL}","choices":[{choice}]}}'


class Connection(asyncio.Protocol):
    """Answers one request after the other on one connection."""

    def __init__(self, chunks: int, gap_seconds: float) -> None:
        self._chunks, self._gap_seconds = chunks, gap_seconds
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the way back."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is of no such class

    def data_received(self, data: bytes) -> None:
        """Answer every request that is here whole."""
        self._received += data
        while HEAD_END in self._received:
            head, rest = self._received.split(HEAD_END, 1)
            length = _length(head)
            if len(rest) < length:
                return
            self._received = rest[length:]
            self._answer(head, rest[:length])

    def _answer(self, head: bytes, body: bytes) -> None:
        assert self._transport is not None
        if b"chat/completions" not in head[:128]:
            ready = head.startswith(b"GET /v2/health/ready")
            self._transport.write(READY if ready else MISSING)
        elif b'"stream":true' in body or b'"stream": true' in body:
            task = asyncio.get_running_loop().create_task(self._stream())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            self._transport.write(WHOLE)

    async def _stream(self) -> None:
        assert self._transport is not None
        self._transport.write(STREAM_HEAD)
        for number in range(self._chunks):
            reason = '"stop"' if number == self._chunks - 1 else "null"
            self._transport.write(event(piece(reason)))
            await asyncio.sleep(self._gap_seconds)
        self._transport.write(event("[DONE]") + b"0\r\n\r\n")


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        if line.startswith(LENGTH):
            return int(line[len(LENGTH) :])
    return 0


async def serve(port_file: Path, chunks: int, gap_seconds: float) -> None:
    """Serve on a free port of loopback until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(chunks, gap_seconds), "127.0.0.1", 0)
    temporary = port_file.with_suffix(".new")
    temporary.write_text(str(server.sockets[0].getsockname()[1]))
    os.replace(temporary, port_file)
    await server.serve_forever()


def main() -> None:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port-file", type=Path, required=True)
    parser.add_argument("--chunks", type=int, default=100, help="pieces of a stream")
    parser.add_argument("--gap-seconds", type=float, default=0.002, help="time between them")
    options = parser.parse_args()
    uvloop.run(serve(options.port_file, options.chunks, options.gap_seconds))


if __name__ == "__main__":
    main()
