"""The supervisor over stand-in parts: restarts, back-off, held sockets, adoption, end."""

import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

from cli import processes
from cli.environment import MEMBER_VARIABLE, ROOT
from cli.processes import Identity
from cli.stack import stop_stack
from cli.stack_file import StackFile, read_stack
from cli.supervisor import LOG_BYTES_KEPT, LOG_BYTES_MAX, back_off_seconds, cut_log
from core.settings import STACK_FILE, Settings

SCRIPT = Path(__file__).with_name("stand_in_stack.py")
SECONDS_MAX = 10.0
Start = Callable[..., subprocess.Popen[bytes]]
Found = TypeVar("Found")


def until(look: Callable[[], Found | None], what: str) -> Found:
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.02)
    raise AssertionError(f"not within {SECONDS_MAX} s: {what}")


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    processes.stop([*processes.members(MEMBER_VARIABLE, str(tmp_path))], 2)


@pytest.fixture
def supervise(home: Path, free_port: int) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(home), str(free_port), *options],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), MEMBER_VARIABLE: str(home)},
        )
        started.append(process)
        until(lambda: running(home).get("gateway"), "gateway runs")
        return process

    yield start
    for process in started:
        process.terminate()
        process.wait(SECONDS_MAX)


def running(home: Path) -> dict[str, Identity]:
    stack = read_stack(home)
    return stack.living if stack.supervised else {}


def successor(home: Path, name: str, before: Identity) -> Identity:
    def look() -> Identity | None:
        now = running(home).get(name)
        return now if now != before else None

    return until(look, f"{name} runs again")


def ask(port: int, seconds: float = SECONDS_MAX) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=seconds) as answer:
        return int(answer.read())


def test_a_killed_part_is_started_again_at_once(supervise: Start, home: Path) -> None:
    supervise()
    before = until(lambda: running(home).get("keeper"), "keeper runs")
    os.kill(before.pid, signal.SIGKILL)
    killed_at = time.monotonic()
    assert successor(home, "keeper", before) != before
    assert time.monotonic() - killed_at < 1.0
    assert read_stack(home).processes["keeper"].restarts == 1


def test_connections_wait_while_the_gateway_restarts(
    supervise: Start, home: Path, free_port: int
) -> None:
    supervise()
    first = ask(free_port)
    failures: list[str] = []
    answered: list[int] = []
    done = threading.Event()

    def load() -> None:
        while not done.is_set():
            try:
                answered.append(ask(free_port))
            except ConnectionResetError:
                pass  # It was being answered by the process that was killed.
            except (urllib.error.URLError, OSError) as error:
                if "refused" in str(error):
                    failures.append(str(error))

    client = threading.Thread(target=load)
    client.start()
    os.kill(first, signal.SIGKILL)
    try:
        until(lambda: answered and answered[-1] != first, "the new gateway answers")
    finally:
        done.set()
        client.join()
    assert failures == []


def test_a_part_that_keeps_dying_is_started_ever_more_rarely(supervise: Start, home: Path) -> None:
    supervise("--with", "dying")
    until(lambda: read_stack(home).processes["dying"].restarts >= 3, "three restarts")
    assert [back_off_seconds(count) for count in range(5)] == [0, 0, 0.5, 1, 2]
    assert back_off_seconds(1000) == 30
    assert read_stack(home).processes["dying"].restarts <= 4
    until(lambda: running(home).get("keeper"), "keeper runs")


def test_parts_outlive_a_killed_supervisor_and_are_adopted(
    supervise: Start, home: Path, free_port: int
) -> None:
    first = supervise()
    until(lambda: len(running(home)) == 2, "both parts run")
    before = running(home)
    first.kill()
    first.wait()
    assert read_stack(home).living == before
    assert ask(free_port) == before["gateway"].pid
    supervise()
    assert until(lambda: running(home), "adopted") == before
    os.kill(before["keeper"].pid, signal.SIGKILL)
    successor(home, "keeper", before["keeper"])


def test_an_adopted_gateway_is_restarted_on_the_same_port(
    supervise: Start, home: Path, free_port: int
) -> None:
    first = supervise()
    first.kill()
    first.wait()
    supervise()
    before = running(home)["gateway"]
    os.kill(before.pid, signal.SIGKILL)
    after = successor(home, "gateway", before)
    assert ask(free_port) == after.pid


def test_a_part_with_another_command_line_is_replaced(supervise: Start, home: Path) -> None:
    first = supervise("--tag", "old")
    before = until(lambda: running(home).get("keeper"), "keeper runs")
    first.kill()
    first.wait()
    supervise("--tag", "new")
    successor(home, "keeper", before)
    assert not processes.alive(before)
    assert read_stack(home).processes["keeper"].argv[-1] == "new"


def test_a_second_supervisor_is_refused(supervise: Start, home: Path) -> None:
    supervise()
    before = running(home)
    second = subprocess.run(
        [sys.executable, str(SCRIPT), str(home), "0"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode != 0
    assert "another supervisor already runs" in second.stderr
    assert running(home)["gateway"] == before["gateway"]


def test_the_worker_is_added_on_demand(supervise: Start, home: Path) -> None:
    process = supervise()
    assert "worker" not in running(home)
    process.send_signal(signal.SIGUSR1)
    until(lambda: running(home).get("worker"), "worker runs")


def test_the_end_stops_every_part_and_forgets_the_stack(supervise: Start, home: Path) -> None:
    process = supervise("--with", "stubborn")
    until(lambda: len(running(home)) == 3, "three parts run")
    before = running(home)
    process.terminate()
    assert process.wait(SECONDS_MAX) == 0
    assert not any(processes.alive(identity) for identity in before.values())
    assert read_stack(home) == StackFile()


def test_a_stack_whose_file_is_lost_is_stopped_all_the_same(supervise: Start, home: Path) -> None:
    process = supervise()
    until(lambda: len(running(home)) == 2, "both parts run")
    (home / STACK_FILE).unlink()
    stopped = stop_stack(Settings.read({"SERIN_HOME": str(home)}))
    assert stopped == ["3 other processes"]
    assert process.wait(SECONDS_MAX) == 0
    assert [*processes.members(MEMBER_VARIABLE, str(home))] == []


def test_settings_read_the_addresses(supervise: Start, home: Path, free_port: int) -> None:
    supervise()
    settings = Settings.read({"SERIN_HOME": str(home)})
    assert settings.gateway_url == f"http://127.0.0.1:{free_port}"


def test_a_log_over_its_limit_keeps_its_end(tmp_path: Path) -> None:
    path = tmp_path / "part.log"
    path.write_bytes(b"x" * LOG_BYTES_MAX + b"the end")
    with path.open("ab") as writer:
        cut_log(path)
        writer.write(b"goes on")
    assert path.read_bytes() == b"goes on"
    kept = (tmp_path / "part.log.1").read_bytes()
    assert kept.endswith(b"the end")
    assert len(kept) == LOG_BYTES_KEPT


def test_a_missing_log_is_no_error(tmp_path: Path) -> None:
    cut_log(tmp_path / "absent.log")
    assert not any(tmp_path.iterdir())
