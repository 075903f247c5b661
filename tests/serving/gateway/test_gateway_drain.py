"""Restarts, route changes and full houses: no request that was accepted is lost."""

import http.client
import json
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import pytest
from gateway_world import ASK, CHAT, CLIENT, Predictor, World, until

Calm = tuple[World, Predictor, Predictor]


def listener() -> socket.socket:
    """A listening socket as the supervisor holds it."""
    found = socket.socket()
    found.bind(("127.0.0.1", 0))
    found.listen(512)
    return found


def inherit(world: World, held: socket.socket, **config: float) -> None:
    """Start a gateway on an inherited socket."""
    number = held.fileno()
    url = f"http://127.0.0.1:{held.getsockname()[1]}"
    world.start_gateway("--fd", str(number), pass_fds=(number,), url=url, **config)


class Asking(threading.Thread):
    """One request in a thread of its own."""

    def __init__(self, world: World, **more: object) -> None:
        super().__init__(daemon=True)
        self.world, self.more = world, more
        self.answer: httpx.Response | None = None
        self.start()

    def run(self) -> None:
        self.answer = CLIENT.post(self.world.url + CHAT, json={**ASK, **self.more})


def test_sigterm_finishes_what_runs_and_exits_0(world: World, stable: Predictor) -> None:
    gateway = world.start_gateway()
    world.route(stable)
    stable.behave(delay=1.0, gap=0.2)
    asking = [Asking(world), Asking(world, stream=True)]
    until(lambda: stable.seen()["requests"] == 2)
    gateway.send_signal(signal.SIGTERM)
    texts = []
    for thread in asking:
        thread.join(10)
        assert thread.answer is not None
        assert thread.answer.status_code == 200
        texts.append(thread.answer.text)
    assert "[DONE]" in texts[1]
    assert gateway.wait(10) == 0
    with pytest.raises(httpx.ConnectError):
        CLIENT.get(world.url + "/healthz")


def test_a_drain_that_takes_too_long_ends_with_503_and_exit_0(
    world: World, stable: Predictor
) -> None:
    gateway = world.start_gateway(drain_seconds_max=1)
    world.route(stable)
    stable.behave(delay=30)
    asking = Asking(world)
    until(lambda: stable.seen()["requests"] == 1)
    gateway.send_signal(signal.SIGTERM)
    asking.join(10)
    assert asking.answer is not None
    assert asking.answer.status_code == 503
    assert gateway.wait(10) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_connections_wait_while_a_gateway_on_an_inherited_socket_restarts(
    world: World, stable: Predictor, number: signal.Signals
) -> None:
    world.write_routes({})
    with listener() as held:
        inherit(world, held)
        world.route(stable)
        gateway = world.gateway
        assert gateway is not None
        gateway.send_signal(number)
        gateway.wait(10)
        asking = [Asking(world) for _ in range(20)]
        time.sleep(0.3)
        inherit(world, held)
        for thread in asking:
            thread.join(10)
            assert thread.answer is not None
            assert thread.answer.status_code == 200


def test_a_graceful_restart_under_load_loses_nothing(world: World, stable: Predictor) -> None:
    stable.behave(delay=0.02)
    with listener() as held:
        inherit(world, held)
        world.route(stable)
        load = world.load(80, stream_share=0.2, reuse_connections=False)
        gateway = world.gateway
        assert gateway is not None
        time.sleep(0.3)
        gateway.send_signal(signal.SIGTERM)
        assert gateway.wait(10) == 0
        inherit(world, held)
        until(lambda: world.applied() == world.generation)
        report = load.stop()
    assert report.failed == report.limited == report.skipped == 0
    assert report.ok == report.sent > 30


def test_a_request_on_an_idle_connection_is_still_answered_during_the_drain(
    world: World, stable: Predictor
) -> None:
    gateway = world.start_gateway()
    world.route(stable)
    url = httpx.URL(world.url)
    connection = http.client.HTTPConnection(url.host, url.port, timeout=5)
    for draining in (False, True):
        connection.request("POST", CHAT, json.dumps(ASK))
        answer = connection.getresponse()
        answer.read()
        assert answer.status == 200
        assert (answer.getheader("connection") == "close") is draining
        if not draining:
            gateway.send_signal(signal.SIGTERM)
            time.sleep(0.4)
    connection.close()
    assert gateway.wait(10) == 0


def test_a_killed_gateway_loses_only_what_was_in_flight(world: World, stable: Predictor) -> None:
    stable.behave(delay=0.05)
    with listener() as held:
        inherit(world, held)
        world.route(stable)
        load = world.load(40)
        time.sleep(0.5)
        gateway = world.gateway
        assert gateway is not None
        gateway.kill()
        gateway.wait()
        killed = time.time()
        inherit(world, held)
        time.sleep(2)
        report = load.stop()
    assert all(failure.time_seconds < killed + 0.2 for failure in report.failures)
    assert report.failed <= 10
    assert report.ok + report.failed == report.sent


def test_changing_routes_under_load_loses_nothing(
    world: World, stable: Predictor, canary: Predictor
) -> None:
    first, second = stable, canary
    world.start_gateway()
    world.route(first)
    load = world.load(100, stream_share=0.2)
    for percent in (5, 50, 95, 0, 100):
        world.route(first, second, percent)
        time.sleep(0.1)
    world.route(second)
    world.route(second, first, 10)
    world.route(first)
    report = load.stop()
    assert report.failed == report.limited == 0
    assert set(report.by_version) == {"1", "2"}
    assert world.metric("serin_gateway_draws_total") == report.sent


def test_routes_are_applied_within_50_milliseconds(calm: Calm) -> None:
    world, stable, canary = calm
    waits = []
    for turn in range(10):
        time.sleep(0.013 * turn)
        started = time.monotonic()
        world.route(stable, canary, percent=turn)
        waits.append(time.monotonic() - started)
    assert sorted(waits)[5] < 0.06


def test_the_last_routes_on_disk_serve_without_a_control_plane(
    world: World, stable: Predictor
) -> None:
    world.route(stable)
    world.start_gateway()
    assert world.ask().status_code == 200
    (world.home / "control" / "routes.json").unlink()
    time.sleep(0.1)
    assert world.ask().status_code == 200


def test_a_full_gateway_queues_then_answers_429(world: World, stable: Predictor) -> None:
    world.start_gateway(concurrency_max=2, waiting_max=2, waiting_seconds_max=5)
    world.route(stable)
    stable.behave(delay=0.5)
    asking = [Asking(world) for _ in range(4)]
    until(lambda: world.metric("serin_gateway_waiting") == 2)
    refused = world.ask()
    assert refused.status_code == 429
    assert refused.headers["retry-after"] == "1"
    assert refused.json()["error"]["type"] == "rate_limit_error"
    for thread in asking:
        thread.join(10)
        assert thread.answer is not None
        assert thread.answer.status_code == 200
    assert world.metric("serin_gateway_draws_total") == 4
    assert world.metric("serin_gateway_refused_total", reason="queue_full") == 1


def test_a_wait_for_a_place_has_an_end(world: World, stable: Predictor) -> None:
    world.start_gateway(concurrency_max=1, waiting_seconds_max=0.2)
    world.route(stable)
    stable.behave(delay=1.5)
    asking = Asking(world)
    until(lambda: stable.seen()["requests"] == 1)
    assert world.ask().status_code == 429
    asking.join(10)
    assert asking.answer is not None
    assert asking.answer.status_code == 200


def leave_after_sending(world: World, **more: object) -> None:
    """Send a request and close the connection without reading the answer."""
    url, body = httpx.URL(world.url), json.dumps({**ASK, **more}).encode()
    with socket.create_connection((url.host, url.port or 0)) as connection:
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        time.sleep(0.3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_place_and_stops_the_work(
    world: World, stable: Predictor, stream: bool
) -> None:
    world.start_gateway(concurrency_max=1, waiting_max=0)
    world.route(stable)
    stable.behave(chunks=1000, gap=0.05, delay=0.0 if stream else 20.0)
    leave_after_sending(world, stream=stream)
    until(lambda: stable.seen()["left"] == 1)
    cancelled = "serin_gateway_requests_total"
    until(lambda: world.metric(cancelled, outcome="cancelled") == 1)
    stable.behave()
    assert world.ask().status_code == 200
    assert world.metric("serin_gateway_in_flight") == 0


def test_a_client_that_leaves_the_queue_frees_its_place_there(
    world: World, stable: Predictor
) -> None:
    world.start_gateway(concurrency_max=1, waiting_max=1)
    world.route(stable)
    stable.behave(delay=1.5)
    asking = Asking(world)
    until(lambda: stable.seen()["requests"] == 1)
    leave_after_sending(world)
    until(lambda: world.metric("serin_gateway_waiting") == 0)
    asking.join(10)
    assert world.ask().status_code == 200
    assert world.metric("serin_gateway_draws_total") == 2


def test_a_client_that_does_not_read_its_stream_is_cut_at_the_deadline(
    world: World, stable: Predictor
) -> None:
    world.start_gateway(deadline_seconds=1.5, concurrency_max=1)
    world.route(stable)
    stable.behave(chunks=200_000)
    url, body = httpx.URL(world.url), json.dumps({**ASK, "stream": True}).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((url.host, url.port or 0))
        head = f"POST {CHAT} HTTP/1.1\r\nhost: a\r\ncontent-length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: stable.seen()["left"] == 1)
        stable.behave()
        assert world.ask().status_code == 200


def test_too_many_connections_are_answered_429(world: World) -> None:
    world.start_gateway(connections_max=5)
    url = httpx.URL(world.url)
    address = (url.host, url.port or 0)
    held = [socket.create_connection(address) for _ in range(5)]
    time.sleep(0.2)
    with socket.create_connection(address, timeout=5) as surplus:
        assert surplus.recv(100).startswith(b"HTTP/1.1 429 ")
    for connection in held:
        connection.close()
    until(lambda: CLIENT.get(world.url + "/healthz").status_code == 200)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fd", "99"), "--fd 99"),
        (("--fd", "0"), "--fd 0"),
        (("--port", "{taken}"), "--port"),
        (("--port", "0", "--config", "{missing}"), "--config"),
        (("--port", "0", "--config", "{wrong}"), "concurrency_max"),
    ],
)
def test_a_wrong_start_says_what_to_change(
    world: World, arguments: tuple[str, ...], words: str
) -> None:
    wrong = world.home / "wrong.yaml"
    wrong.write_text("concurrency_max: 0\n")
    with listener() as held:
        values = {"taken": held.getsockname()[1], "missing": world.home / "no", "wrong": wrong}
        given = [item.format(**values) for item in arguments]
        done = subprocess.run(
            [sys.executable, "-m", "serving.gateway", "--home", str(world.home), *given],
            capture_output=True,
            text=True,
            timeout=30,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr
