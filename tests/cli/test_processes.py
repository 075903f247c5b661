"""Processes: identity, end in bounded time, membership by environment, sockets taken over."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import processes
from cli.ports import bind
from cli.processes import Identity

SLEEP = "import time; time.sleep(60)"
DEAF = (
    "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
)
HOLD = """
import socket, sys, time
held = socket.socket(fileno=int(sys.argv[1]))
print(1, flush=True)
time.sleep(60)
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", SLEEP], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def test_identity_tells_a_process_from_a_later_one_with_its_number(
    sleeper: subprocess.Popen[bytes],
) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    assert processes.alive(identity)
    assert not processes.alive(Identity(identity.pid, identity.start_ticks + 1))
    assert not processes.send(Identity(identity.pid, identity.start_ticks + 1), signal.SIGKILL)


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    while processes.identify(process.pid) is not None:
        time.sleep(0.01)
    process.wait()


def test_a_process_that_ignores_the_request_is_killed() -> None:
    process = subprocess.Popen([sys.executable, "-c", DEAF], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    identity = processes.identify(process.pid)
    assert identity is not None
    assert processes.stop([identity], 0.2) == [identity]
    assert not processes.alive(identity)
    process.stdout.close()
    process.wait()


def test_a_suspended_process_is_stopped_without_force(sleeper: subprocess.Popen[bytes]) -> None:
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    os.kill(sleeper.pid, signal.SIGSTOP)
    assert processes.stop([identity], 5) == []


def test_descendants_are_found_by_their_environment(tmp_path: Path) -> None:
    grandchild = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {SLEEP!r}])"
    parent = processes.start(
        [sys.executable, "-c", grandchild],
        environment={**os.environ, "MEMBER_OF_TEST": str(tmp_path)},
        folder=tmp_path,
        log=tmp_path / "logs" / "parent.log",
    )
    parent.wait(10)
    found = [*processes.members("MEMBER_OF_TEST", str(tmp_path))]
    assert len(found) == 1
    assert [*processes.members("MEMBER_OF_TEST", f"{tmp_path}-other")] == []
    processes.stop(found, 5)
    assert [*processes.members("MEMBER_OF_TEST", str(tmp_path))] == []


def test_the_rest_of_a_dead_leaders_group_is_ended(tmp_path: Path) -> None:
    leader = f"""
import subprocess, sys
print(subprocess.Popen([sys.executable, '-c', {SLEEP!r}]).pid)
"""
    started = processes.start(
        [sys.executable, "-c", leader],
        environment=os.environ,
        folder=tmp_path,
        log=tmp_path / "leader.log",
    )
    started.wait(10)
    left_behind = processes.identify(int((tmp_path / "leader.log").read_text()))
    assert left_behind is not None
    processes.end_group(started.pid)
    assert processes.wait_gone([left_behind], 5)
    processes.end_group(started.pid)


def test_a_listening_socket_is_taken_from_a_living_process() -> None:
    with bind(0) as held:
        port = held.getsockname()[1]
        holder = subprocess.Popen(
            [sys.executable, "-c", HOLD, str(held.fileno())],
            pass_fds=[held.fileno()],
            stdout=subprocess.PIPE,
        )
        assert holder.stdout is not None
        holder.stdout.readline()
    identity = processes.identify(holder.pid)
    assert identity is not None
    taken = processes.take_listener(identity, port)
    assert processes.take_listener(identity, port + 1) is None
    holder.kill()
    holder.wait()
    holder.stdout.close()
    if taken is None:
        pytest.skip("the kernel does not let this user take sockets over (pidfd_getfd)")
    with taken, socket.create_connection(("127.0.0.1", port), 1):
        pass
    assert processes.take_listener(identity, port) is None
