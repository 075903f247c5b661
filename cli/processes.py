"""Processes of the operating system: identified, started, watched and stopped in bounded time.

Linux only (pidfd, /proc). Knows nothing about what the processes do.
"""

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

POLL_SECONDS = 0.05
PIDFD_GETFD = 438
"""System call number of pidfd_getfd, the same on every architecture (Linux 5.6)."""


@dataclass(frozen=True, slots=True)
class Identity:
    """One process and no later one with the same number: `start_ticks` is its start since boot."""

    pid: int
    start_ticks: int


def identify(pid: int) -> Identity | None:
    """Return the identity of a living process; None when it is gone or only a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name may hold spaces and brackets: fields count from its last bracket.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else Identity(pid, int(fields[19]))


def alive(identity: Identity | None) -> bool:
    """Tell whether exactly this process still runs."""
    return identity is not None and identify(identity.pid) == identity


def start(
    argv: Sequence[str],
    *,
    environment: Mapping[str, str],
    folder: Path,
    log: Path,
    descriptors: Collection[int] = (),
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, so that it outlives whoever started it.

    Its output is appended to `log`; it inherits `descriptors` under the same numbers.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=dict(environment),
            cwd=folder,
            pass_fds=tuple(descriptors),
            start_new_session=True,
        )


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command line that runs a module with this interpreter."""
    return (sys.executable, "-m", module, *arguments)


def watch(identity: Identity) -> int | None:
    """Return a pidfd that becomes readable when the process ends; None when it has ended."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if alive(identity):
        return descriptor
    os.close(descriptor)
    return None


def send(identity: Identity | None, number: int) -> bool:
    """Send a signal to exactly this process. Returns whether it was there."""
    if identity is None or not alive(identity):
        return False
    with contextlib.suppress(ProcessLookupError):
        os.kill(identity.pid, number)
        return True
    return False


def stop(identities: Collection[Identity], grace_seconds: float) -> list[Identity]:
    """End processes: SIGTERM, then SIGKILL after `grace_seconds`.

    Returns those that had to be killed. A stopped (SIGSTOP) process is continued so that it can
    react.
    """
    for identity in identities:
        if send(identity, signal.SIGTERM):
            send(identity, signal.SIGCONT)
    wait_gone(identities, grace_seconds)
    stubborn = [identity for identity in identities if send(identity, signal.SIGKILL)]
    wait_gone(stubborn, grace_seconds)
    return stubborn


def wait_gone(identities: Collection[Identity], seconds: float) -> bool:
    """Wait until none of them runs, at most `seconds`. Returns whether all are gone."""
    deadline = time.monotonic() + seconds
    while any(_still_there(identity) for identity in identities):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _still_there(identity: Identity) -> bool:
    with contextlib.suppress(ChildProcessError):
        os.waitpid(identity.pid, os.WNOHANG)
    return alive(identity)


def end_group(leader_pid: int) -> None:
    """Kill what a dead group leader left behind: its successor must find ports and files free."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader_pid, signal.SIGKILL)


def members(variable: str, value: str) -> Iterator[Identity]:
    """Yield every process that was started with `variable=value`, except this one.

    Processes of other users, whose environment cannot be read, are not ours and are passed over.
    """
    wanted = f"{variable}={value}".encode()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit() or int(folder.name) == os.getpid():
            continue
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted in variables and (found := identify(int(folder.name))):
            yield found


def take_listener(identity: Identity, port: int) -> socket.socket | None:
    """Return a duplicate of the socket on which another process listens on `port`.

    None when the kernel refuses (another user, a restricted container) or there is no such socket:
    the caller then has to wait for that process to end before it can listen itself.
    """
    descriptor = watch(identity)
    if descriptor is None:
        return None
    try:
        for number in _socket_numbers(identity.pid):
            taken = ctypes.CDLL(None).syscall(PIDFD_GETFD, descriptor, number, 0)
            if taken < 0:
                continue
            found = socket.socket(fileno=taken)
            if _listens(found, port):
                return found
            found.close()
    finally:
        os.close(descriptor)
    return None


def _socket_numbers(pid: int) -> list[int]:
    numbers = []
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.readlink(entry).startswith("socket:"):
                    numbers.append(int(entry.name))
    return sorted(numbers)


def _listens(found: socket.socket, port: int) -> bool:
    try:
        listening = bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        return found.family == socket.AF_INET and listening and found.getsockname()[1] == port
    except OSError:
        return False
