"""The load generator: steady arrivals whatever the answers, each answer counted by its kind."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from core.contracts import Message
from core.errors import InputError
from observability.load import LoadConfig, LoadGenerator, TimedPrompt, read_prompts
from observability.tally import LATENCIES_MAX, FailedRequest, Tally

ROOT = Path(__file__).resolve().parents[2]
GOOD = json.dumps({"choices": [{"message": {"content": "hi"}}]}).encode()


class Server(ThreadingHTTPServer):
    """Answers as `kind` says and keeps the bodies it got."""

    daemon_threads = True
    request_queue_size = 256
    kind = "ok"
    bodies: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append(json.loads(content))
        kind = self.server.kind
        if kind == "drop":
            self.close_connection = True
            return
        status = {"limited": 429, "error": 500, "bad": 400, "held": 400}.get(kind, 200)
        held = b'{"error":{"message":"held back","code":"content_filter"}}'
        bodies = {"html": b"<html>", "empty": b'{"choices": []}', "bad": b"{}", "held": held}
        body = bodies.get(kind, GOOD)
        if self.server.bodies[-1].get("stream"):
            end = b"" if kind == "open" else b"data: [DONE]\n\n"
            body = b'data: {"choices": []}\n\n' + end
        if kind == "slow":
            time.sleep(0.5)
        self.send_response(status)
        self.send_header("content-length", str(len(body) + (10 if kind == "cut" else 0)))
        self.send_header("x-serin-arm", "canary" if len(self.server.bodies) % 2 else "stable")
        self.send_header("x-serin-model-version", "7")
        self.end_headers()
        self.wfile.write(body)
        self.close_connection = kind == "cut"

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server(("127.0.0.1", 0), Handler)
    found.bodies = []
    thread = threading.Thread(target=found.serve_forever, args=(0.02,))
    thread.start()
    yield found
    found.shutdown()
    thread.join()
    found.server_close()


def load(server: Server, **more: Any) -> LoadGenerator:
    values = {"rps": 100, "seconds": 0.4, "arrivals": "uniform", **more}
    url = f"http://127.0.0.1:{server.server_address[1]}"
    found = LoadGenerator(LoadConfig(url=url, **values), ["a", "b", [Message("user", "c")]])
    found.start()
    return found


def test_prompts_are_replayed_in_order_at_the_rate(server: Server) -> None:
    report = load(server).wait()
    assert report.sent == report.ok == len(server.bodies)
    assert 36 <= report.sent <= 40
    assert {body["messages"][0]["content"] for body in server.bodies} == {"a", "b", "c"}
    assert report.total.p50_seconds is not None
    assert report.by_arm["canary"].ok + report.by_arm["stable"].ok == report.by_version["7"].ok
    assert report.by_version["7"].ok == report.sent


def test_a_trace_is_sent_once_at_its_times_with_its_own_lengths(server: Server) -> None:
    trace = [TimedPrompt("first", 3, 0.0), TimedPrompt("last", 70, 0.3)]
    url = f"http://127.0.0.1:{server.server_address[1]}"
    found = LoadGenerator(LoadConfig(url=url), (), trace)
    began = time.monotonic()
    found.start()
    assert found.wait().ok == 2
    assert time.monotonic() - began >= 0.3
    asked = [(body["messages"][0]["content"], body["max_tokens"]) for body in server.bodies]
    assert asked == [("first", 3), ("last", 70)]


@pytest.mark.parametrize(
    ("kind", "cause"),
    [
        ("error", "status_500"),
        ("bad", "status_400"),
        ("html", "broken_body"),
        ("empty", "empty_body"),
        ("cut", "answer_cut"),
        ("drop", "connection_lost"),
    ],
)
def test_an_answer_that_is_not_whole_is_a_failed_request(
    server: Server, kind: str, cause: str
) -> None:
    server.kind = kind
    report = load(server, failures_max=3).wait()
    assert report.failed == report.sent == len(server.bodies)
    assert report.causes == {cause: report.sent}
    assert len(report.failures) == 3
    assert report.failures[0].cause == cause


def test_a_stream_without_its_end_is_a_failed_request(server: Server) -> None:
    assert load(server, stream_share=1).wait().failed == 0
    server.kind = "open"
    assert set(load(server, stream_share=1).wait().causes) == {"broken_stream"}


def test_being_asked_to_come_back_is_counted_on_its_own(server: Server) -> None:
    server.kind = "limited"
    report = load(server).wait()
    assert (report.limited, report.failed, report.ok) == (report.sent, 0, 0)


def test_a_prompt_that_the_policy_holds_back_was_answered(server: Server) -> None:
    server.kind = "held"
    report = load(server).wait()
    assert (report.ok, report.failed) == (report.sent, 0)


def test_nobody_listening_is_a_failed_request(server: Server) -> None:
    config = LoadConfig(url="http://127.0.0.1:9", rps=50, seconds=0.2)
    found = LoadGenerator(config, ["a"])
    found.start()
    report = found.wait()
    assert report.failed == report.sent
    assert set(report.causes) <= {"not_connected"}


def test_a_timeout_is_a_failed_request(server: Server) -> None:
    server.kind = "slow"
    report = load(server, timeout_seconds=0.1, seconds=0.1).wait()
    assert report.causes == {"timeout": report.sent}


def test_slow_answers_do_not_slow_the_arrivals(server: Server) -> None:
    server.kind = "slow"
    report = load(server).wait()
    assert report.ok == report.sent >= 36
    assert report.total.p50_seconds is not None
    assert report.total.p50_seconds >= 0.5


def test_too_many_open_requests_are_skipped_and_said(server: Server) -> None:
    server.kind = "slow"
    report = load(server, in_flight_max=5).wait()
    assert report.sent == 5
    assert report.skipped >= 30


def test_a_load_without_end_is_stopped_and_waits_for_its_answers(server: Server) -> None:
    server.kind = "slow"
    found = load(server, seconds=None)
    while found.report().sent < 5:
        time.sleep(0.01)
    report = found.stop()
    assert report.in_flight == 0
    assert report.ok == report.sent >= 5
    assert found.stop() == report


def test_poisson_arrivals_are_seeded_and_keep_the_mean(server: Server) -> None:
    first = load(server, arrivals="poisson", rps=200, seconds=1.0, seed=3).wait().sent
    second = load(server, arrivals="poisson", rps=200, seconds=1.0, seed=3).wait().sent
    assert first == second
    assert 140 < first < 260


def test_latencies_stay_bounded_and_representative() -> None:
    tally = Tally(failures_max=2, seed=1)
    for index in range(2 * LATENCIES_MAX):
        tally.send()
        tally.ok("stable", "1", index / LATENCIES_MAX)
    for _ in range(5):
        tally.send()
        tally.failed(FailedRequest(0, "timeout", 0, "", "", ""))
    report = tally.report()
    assert report.total.p50_seconds == pytest.approx(1.0, abs=0.03)
    assert report.total.p99_seconds == pytest.approx(1.98, abs=0.01)
    assert (report.failed, len(report.failures)) == (5, 2)


def test_prompts_are_read_from_json_lines_and_plain_lines(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    rows = [
        '{"prompt": "one"}',
        '{"text": "two", "intent": "x"}',
        '{"messages": [{"role": "user", "content": "three"},'
        ' {"role": "assistant", "content": "x"}]}',
        "four, plain",
        "",
        "5",
    ]
    file.write_text("\n".join(rows))
    found = read_prompts(file)
    assert found == ["one", "two", [Message("user", "three")], "four, plain", "5"]


@pytest.mark.parametrize("text", ["", "\n\n", '{"other": 1}', '{"messages": [{"role": "x"}]}'])
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(text)
    with pytest.raises(InputError):
        read_prompts(file)
    with pytest.raises(InputError):
        read_prompts(tmp_path / "missing")


def test_the_command_line_prints_one_object_and_tells_failure_by_its_exit_code(
    server: Server, tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("hello\n")
    command = [
        sys.executable, "-m", "observability.load", "--prompts", str(file), "--rps", "50",
        "--seconds", "0.3", "--json", "--url", f"http://127.0.0.1:{server.server_address[1]}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["ok"] > 0
    server.kind = "error"
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert json.loads(done.stdout)["causes"]["status_500"] > 0
