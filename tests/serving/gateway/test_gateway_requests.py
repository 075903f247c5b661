"""What clients get: answers passed on, their mistakes answered, slow and hostile ones bounded."""

import json
import socket
import time

import httpx
import openai
import pytest
from gateway_world import ASK, CHAT, CLIENT, Predictor, World, until

from core.keys import bearer, predictor_token

Calm = tuple[World, Predictor, Predictor]


def raw(world: World, data: bytes, timeout: float = 10.0) -> bytes:
    """Send bytes, return all bytes until the gateway closes."""
    with socket.create_connection(address(world), timeout=timeout) as connection:
        connection.sendall(data)
        return drain(connection)


def drain(connection: socket.socket) -> bytes:
    found = b""
    while chunk := connection.recv(65536):
        found += chunk
    return found


def address(world: World) -> tuple[str, int]:
    url = httpx.URL(world.url)
    return url.host, url.port or 0


def test_answers_come_with_version_revision_arm_and_request_id(calm: Calm) -> None:
    world, stable, _ = calm
    answer = world.ask(headers={"x-request-id": "mine-1"})
    assert answer.status_code == 200
    assert answer.json()["model"] == "assistant:1"
    assert answer.headers["x-serin-model-version"] == "1"
    assert answer.headers["x-serin-revision"] == stable.revision
    assert answer.headers["x-serin-arm"] == "stable"
    assert answer.headers["x-request-id"] == "mine-1"
    assert stable.seen()["headers"]["x-request-id"] == "mine-1"


def test_a_request_id_is_made_where_none_or_a_bad_one_came(calm: Calm) -> None:
    world, _, _ = calm
    for headers in ({}, {"x-request-id": "a" * 500}, {"x-request-id": "a b"}):
        found = world.ask(headers=headers).headers["x-request-id"]
        assert len(found) == 32
        assert int(found, 16)


def test_the_deadline_is_passed_on_minus_the_time_spent(calm: Calm) -> None:
    world, stable, _ = calm
    world.ask()
    assert 15 < float(stable.seen()["headers"]["x-serin-deadline-seconds"]) <= 20
    world.ask(headers={"x-serin-deadline-seconds": "2.5"})
    assert 0 < float(stable.seen()["headers"]["x-serin-deadline-seconds"]) <= 2.5
    assert world.ask(headers={"x-serin-deadline-seconds": "soon"}).status_code == 400


def test_a_request_over_its_deadline_is_answered_504_and_stops_upstream(calm: Calm) -> None:
    world, stable, _ = calm
    stable.behave(delay=5)
    answer = world.ask(headers={"x-serin-deadline-seconds": "0.2"})
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "server_error"
    until(lambda: stable.seen()["left"] == 1)


def test_the_official_client_works_streaming_and_not(calm: Calm) -> None:
    world, stable, _ = calm
    with openai.OpenAI(base_url=world.url + "/openai/v1", api_key="none", max_retries=0) as client:
        answer = client.chat.completions.create(model="assistant", messages=ASK["messages"])
        assert answer.choices[0].message.content == stable.revision
        stream = client.chat.completions.create(
            model="assistant", messages=ASK["messages"], stream=True
        )
        assert "".join(part.choices[0].delta.content or "" for part in stream) == "0 1 2 "
        assert [model.id for model in client.models.list()] == ["assistant"]
        assert client.models.retrieve("assistant").id == "assistant"
        with pytest.raises(openai.NotFoundError):
            client.models.retrieve("other")


def test_a_stream_is_passed_on_event_by_event(calm: Calm) -> None:
    world, stable, _ = calm
    stable.behave(chunks=4, gap=0.2)
    arrived = []
    with CLIENT.stream("POST", world.url + CHAT, json={**ASK, "stream": True}) as answer:
        for line in answer.iter_lines():
            if line:
                arrived.append(time.monotonic())
    gaps = [late - early for early, late in zip(arrived, arrived[1:], strict=False)]
    assert len(arrived) == 5
    assert min(gaps) > 0.1


def test_an_answer_larger_than_the_buffer_is_passed_on_whole(calm: Calm) -> None:
    world, stable, _ = calm
    stable.behave(answer_bytes=300_000)
    content = world.ask().json()["choices"][0]["message"]["content"]
    assert content == "x" * 300_000


def test_the_predictor_is_asked_with_its_token_whatever_the_client_sends(calm: Calm) -> None:
    world, stable, _ = calm
    for sent in ({}, {"authorization": "Bearer of-a-client"}, {"Authorization": "x"}):
        assert world.ask(headers=sent).status_code == 200
        assert stable.seen()["headers"]["authorization"] == bearer(predictor_token(world.home))


def test_the_predictor_is_told_who_asks_and_no_client_can_tell_it_otherwise(calm: Calm) -> None:
    world, stable, _ = calm
    forged = {"x-serin-key": "boss", "X-Serin-Client": "10.9.9.9", "x-serin-shadow": "1"}
    assert world.ask(headers=forged).status_code == 200
    seen = stable.seen()["headers"]
    assert (seen["x-serin-key"], seen["x-serin-client"]) == ("", "127.0.0.1")
    assert "x-serin-shadow" not in seen


def test_errors_of_the_predictor_for_bad_requests_are_passed_on(calm: Calm) -> None:
    world, stable, _ = calm
    before = world.metric("serin_gateway_requests_total", outcome="client_error")
    stable.behave(status=400)
    assert world.ask().status_code == 400
    after = world.metric("serin_gateway_requests_total", outcome="client_error")
    assert after == before + 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "invalid_body"),
        (b"not json", 400, "invalid_body"),
        (b'{"model": "assistant', 400, "invalid_body"),
        (b'{"model": "\xff\xfe"}', 400, "invalid_body"),
        (b'{"messages": []}', 400, "invalid_body"),
        (b'{"model": 7}', 400, "invalid_body"),
        (b'["assistant"]', 400, "invalid_body"),
        (b"[" * 9000, 400, "invalid_body"),
        (b'{"model": "nobody"}', 404, "model_not_found"),
        (b'{"model": "' + b"a" * 30_000 + b'"}', 413, "body_too_large"),
    ],
)
def test_mistakes_in_the_body_are_answered_in_the_apis_words(
    calm: Calm, body: bytes, status: int, code: str
) -> None:
    world, stable, _ = calm
    stable.behave()
    answer = CLIENT.post(world.url + CHAT, content=body)
    assert answer.status_code == status
    assert answer.json()["error"]["code"] == code
    assert answer.json()["error"]["message"]
    assert stable.seen()["requests"] == 0


def test_a_body_without_announced_length_is_bounded_too(calm: Calm) -> None:
    world, _, _ = calm
    answer = CLIENT.post(world.url + CHAT, content=(b"x" * 5000 for _ in range(100)))
    assert answer.status_code == 413
    assert CLIENT.post(world.url + CHAT, content=iter([json.dumps(ASK).encode()])).is_success


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/openai/v1/embeddings", 404),
        ("GET", "/openai/v1/../../etc/passwd", 404),
        ("POST", "/v2/models/assistant/infer", 404),
        ("GET", CHAT, 405),
        ("POST", "/metrics", 405),
        ("DELETE", "/openai/v1/models", 405),
        ("GET", "/openai/v1/models/nobody", 404),
        ("GET", "/%ff%fe", 404),
    ],
)
def test_unknown_paths_and_methods_are_refused(
    calm: Calm, method: str, path: str, status: int
) -> None:
    world, _, _ = calm
    answer = CLIENT.request(method, world.url + path, content=b"{}" if method == "POST" else None)
    assert answer.status_code == status
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert answer.headers["x-request-id"]


@pytest.mark.parametrize(
    "data",
    [
        b"GARBAGE\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: a\r\ncontent-length: -5\r\n\r\n",
        b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\n"
        b"transfer-encoding: chunked\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nhost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n",
    ],
)
def test_what_is_not_http_is_answered_400(calm: Calm, data: bytes) -> None:
    world, _, _ = calm
    answer = raw(world, data)
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"invalid_http" in answer


@pytest.mark.parametrize(
    "head",
    [
        b"GET /healthz HTTP/1.1\r\nx-large: " + b"a" * 40_000 + b"\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"x-many: 1234567890\r\n" * 3000 + b"\r\n",
        b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nx-endless: " + b"a" * 400_000,
    ],
    ids=["one-header", "many-headers", "path", "endless"],
)
def test_a_head_over_its_size_is_answered_431(calm: Calm, head: bytes) -> None:
    world, _, _ = calm
    with socket.create_connection(address(world), timeout=10) as connection:
        try:
            connection.sendall(head)
            answer = drain(connection)
        except ConnectionError:
            return  # closed while we still sent: bounded as well
    assert answer.startswith(b"HTTP/1.1 431 ") or answer == b""


def test_a_head_that_trickles_in_is_answered_408(calm: Calm) -> None:
    world, _, _ = calm
    started = time.monotonic()
    answer = raw(world, b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: a\r\nx-slow: ")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert time.monotonic() - started < 5


def test_a_body_that_trickles_in_is_answered_408(calm: Calm) -> None:
    world, _, _ = calm
    head = b"POST " + CHAT.encode() + b" HTTP/1.1\r\nhost: a\r\ncontent-length: 500\r\n\r\n{"
    assert raw(world, head).startswith(b"HTTP/1.1 408 ")


def test_an_upgrade_is_ignored_and_a_head_has_no_body(calm: Calm) -> None:
    world, _, _ = calm
    close = b"host: a\r\nconnection: close, upgrade\r\n"
    upgrade = b"upgrade: websocket\r\nsec-websocket-key: eA==\r\nsec-websocket-version: 13\r\n"
    answer = raw(world, b"GET /healthz HTTP/1.1\r\n" + close + upgrade + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    answer = raw(world, b"HEAD /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert answer.endswith(b"\r\n\r\n")


def test_pipelined_requests_are_answered_in_order(calm: Calm) -> None:
    world, _, _ = calm
    body = json.dumps(ASK).encode()
    one = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n".encode()
    requests = [
        one + b"x-request-id: number-%d\r\n" % number + end + b"\r\n" + body
        for number, end in enumerate((b"", b"", b"connection: close\r\n"))
    ]
    answer = raw(world, b"".join(requests))
    places = [answer.index(b"x-request-id: number-%d" % number) for number in range(3)]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200 ") == 3


def test_a_client_that_waits_for_permission_to_send_gets_it(calm: Calm) -> None:
    world, _, _ = calm
    body = json.dumps(ASK).encode()
    with socket.create_connection(address(world), timeout=5) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\nconnection: close\r\n"
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(body))
        assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
        connection.sendall(body)
        assert drain(connection).startswith(b"HTTP/1.1 200 ")


def test_a_thousand_idle_connections_harm_nobody(calm: Calm) -> None:
    world, _, _ = calm
    idle = [socket.create_connection(address(world)) for _ in range(1000)]
    try:
        started = time.monotonic()
        assert all(world.ask().status_code == 200 for _ in range(20))
        assert time.monotonic() - started < 5
    finally:
        for connection in idle:
            connection.close()


def test_a_hundred_slow_heads_harm_nobody(calm: Calm) -> None:
    world, _, _ = calm
    slow = [socket.create_connection(address(world)) for _ in range(100)]
    try:
        for connection in slow:
            connection.sendall(b"POST / HTTP/1.1\r\nx-part: ")
        assert all(world.ask().status_code == 200 for _ in range(5))
        slow[0].settimeout(5)
        assert slow[0].recv(20).startswith(b"HTTP/1.1 408 ")
    finally:
        for connection in slow:
            connection.close()


def test_models_health_and_routes_are_told(calm: Calm) -> None:
    world, stable, _ = calm
    assert CLIENT.get(world.url + "/healthz").json()["status"] == "ok"
    routes = CLIENT.get(world.url + "/serin/routes").json()
    assert routes["services"]["assistant"]["arms"][0]["endpoints"][0]["url"] == stable.url


def test_without_routes_requests_are_told_to_come_back(calm: Calm) -> None:
    world, _, _ = calm
    world.write_routes({})
    until(lambda: world.applied() == world.generation)
    answer = world.ask()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"


def test_without_a_ready_server_a_request_is_held_then_told_to_come_back(calm: Calm) -> None:
    world, stable, _ = calm
    world.route(stable, ready=False)
    started = time.monotonic()
    answer = world.ask()
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert 2.5 < time.monotonic() - started < 6


def test_malformed_routes_leave_the_last_good_ones_in_force(calm: Calm) -> None:
    world, _, _ = calm
    for text in ("{", '{"generation": 99, "services": {"assistant": {"arms": [{}]}}}', "[]"):
        world.write_routes_text(text)
        time.sleep(0.1)
        assert world.applied() == world.generation
        assert world.ask().status_code == 200
