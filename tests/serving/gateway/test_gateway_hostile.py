"""Whatever a client sends wrong, the gateway never answers it with a 5xx of its own."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from gateway_world import ASK, CHAT, Predictor, World, until
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

Calm = tuple[World, Predictor, Predictor]
DEEP = b'{"model": "assistant", "x": ' + b"[" * 9000 + b"]" * 9000 + b"}"


def sent(world: World, data: bytes) -> bytes:
    """Send bytes on a connection of their own; what comes back until it closes or is silent."""
    host, port = world.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        parts = []
        try:
            connection.sendall(data)
            while part := connection.recv(65536):
                parts.append(part)
        except ConnectionError:
            pass  # it was cut, which is no 5xx
        return b"".join(parts)


def asked(world: World, headers: bytes = b"", body: bytes = b"", path: str = CHAT) -> int:
    """The status of a request with these further header lines; 0 without an answer."""
    body = body or json.dumps(ASK).encode()
    head = b"POST " + path.encode() + b" HTTP/1.1\r\nhost: a\r\nconnection: close\r\n" + headers
    data = head + b"content-length: %d\r\n\r\n" % len(body) + body
    return status(sent(world, data))


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def calmly(world: World) -> None:
    """Nothing that came before has harmed the gateway."""
    assert asked(world) == 200


@pytest.mark.parametrize(
    "body",
    [
        DEEP,
        b'{"model": "assistant", "x": ' + b'{"a":' * 9000,
        b'{"model": "\\ud800"}',
        b'{"model": "assistant", "messages": "\\udfff"}',
        b'{"model": "assistant", "messages": [{"role": "user", "content": "\xc3\x28"}]}',
        b'\xef\xbb\xbf{"model": "assistant"}',
        b"\x00" * 100,
        b'{"model": "assistant", "temperature": ' + b"9" * 4000 + b"}",
        b'{"model": "assistant", "temperature": 0, "max_tokens": ' + b"9" * 4000 + b"}",
        b'{"model": "assistant", "temperature": NaN}',
        b'{"model": "assistant", "temperature": 0, "stream": {"a": 1}, "max_tokens": [1]}',
        b'{"model": "assistant", "model": "nobody"}',
        b'{"model": ""}',
        b'{"model": "../../etc/passwd\\u0000"}',
    ],
    ids=range(14),
)
@pytest.mark.parametrize("headers", [b"", b"x-serin-cache: allow\r\n"], ids=["plain", "kept"])
def test_bodies_that_make_no_sense(calm: Calm, body: bytes, headers: bytes) -> None:
    world, _, _ = calm
    assert 200 <= asked(world, headers, body) < 500
    calmly(world)


@pytest.mark.parametrize(
    "headers",
    [
        b"x-serin-conversation: \xff\xfe\x80\r\n",
        b"x-request-id: \xc3\x28\r\n",
        b"authorization: Bearer \xff\xff\r\n",
        b"authorization: \r\n",
        b"x-api-key: \xf0\x9f\x90\xa6\r\n",
        b"x-serin-deadline-seconds: nan\r\n",
        b"x-serin-deadline-seconds: 1e999\r\n",
        b"x-serin-deadline-seconds: " + b"9" * 5000 + b"\r\n",
        b"x-serin-deadline-seconds: \xd9\xa1\r\n",
        b"x-serin-cache: \xff\r\n",
        b"x-serin-region: \xff\r\n",
        b"x-serin-response-id: chatcmpl-made-up\r\n",
        b"x-forwarded-for: \xff, 999.1.1.1, ::::\r\n",
        b"traceparent: 00-\xff-\xff-zz\r\n",
        b"expect: 200-perhaps\r\n",
        b"connection: upgrade, close\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n",
        b"content-length: " + b"9" * 5000 + b"\r\n",
        b"transfer-encoding: chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"content-encoding: gzip\r\n",
        b"content-type: multipart/form-data\r\n",
        b"cookie: " + b"a=b;" * 5000 + b"\r\n",
    ],
)
def test_headers_that_make_no_sense(calm: Calm, headers: bytes) -> None:
    world, _, _ = calm
    assert asked(world, headers) < 500
    calmly(world)


@pytest.mark.parametrize(
    "chunks", [b"zz\r\n{}\r\n0\r\n\r\n", b"ffffffffffffffff\r\n{", b"-1\r\n", b"2;" + b"x" * 70_000]
)
def test_chunks_that_make_no_sense(calm: Calm, chunks: bytes) -> None:
    world, _, _ = calm
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    assert status(sent(world, head + chunks)) < 500
    calmly(world)


@pytest.mark.parametrize(
    "path", ["/v1/feedback", "/openai/v1/completions", "/openai/v1/models/%00"]
)
def test_other_routes_are_as_calm(calm: Calm, path: str) -> None:
    world, _, _ = calm
    for body in (DEEP, b"\xff\xfe", b"{}", b"[]", b'{"id": "\\ud800", "score": 1e999}'):
        assert asked(world, b"", body, path) < 500


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.binary(max_size=400), known=st.booleans())
def test_any_bytes(calm: Calm, data: bytes, known: bool) -> None:
    world, _, _ = calm
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n".encode() if known else b""
    assert status(sent(world, head + data + b"\r\n\r\n")) < 500


@pytest.fixture
def aborted(calm: Calm) -> Iterator[tuple[World, Predictor]]:
    world, stable, _ = calm
    stable.behave(chunks=200, gap=0.02)
    yield world, stable
    stable.behave()


def test_a_hundred_aborted_streams_leave_nothing_behind(aborted: tuple[World, Predictor]) -> None:
    world, stable = aborted
    body = json.dumps({**ASK, "stream": True}).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    host, port = world.url.removeprefix("http://").split(":")
    connections: list[Any] = []
    for _ in range(100):
        connection = socket.create_connection((host, int(port)), timeout=20)
        connection.sendall(head + body)
        connections.append(connection)
    for connection in connections:
        assert connection.recv(10) == b"HTTP/1.1 2"
        connection.close()
    until(lambda: stable.seen()["left"] == 100)
    assert world.metric("serin_gateway_in_flight") == 0
    stable.behave()
    calmly(world)
