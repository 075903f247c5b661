"""`python -m cli.supervisor`: keeps a stack's parts alive and holds their listening sockets.

It only watches processes: whether they answer is asked by `serin up` and `serin status`. If it is
killed the parts go on, and the next one adopts them.
"""

import argparse
import contextlib
import fcntl
import logging
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from cli import processes
from cli.children import ADDRESS_OF, WATCHING_PARTS, Child, member_environment
from cli.environment import ROOT
from cli.plan import plan_stack
from cli.ports import bind
from cli.processes import Identity
from cli.stack_file import ChildRecord, StackFile, read_stack, write_stack
from core.digests import digest_json
from core.errors import ConflictError, SerinError
from core.settings import STACK_FILE, Settings
from observability.logs import configure

log = logging.getLogger("serin.supervisor")

LOCK_FILE = "supervisor.lock"
LIVED_SECONDS = 10.0
"""A part that lived this long is started again at once; one that died sooner has to wait."""
BACK_OFF_SECONDS_FIRST = 0.5
BACK_OFF_SECONDS_MAX = 30.0
LOG_BYTES_MAX = 32 << 20
LOG_BYTES_KEPT = 1 << 20
LOG_CHECK_SECONDS = 60.0
ADDING: Mapping[int, tuple[str, ...]] = {
    signal.SIGUSR1: ("worker",),
    signal.SIGUSR2: WATCHING_PARTS,
}
"""Signal: the optional parts that it adds."""


class Supervisor:
    """Starts, adopts, watches and restarts the parts of one home until it is told to stop."""

    def __init__(
        self,
        home: Path,
        children: Mapping[str, Child],
        addresses: Mapping[str, str],
        listeners: Mapping[str, socket.socket],
        optional: Mapping[str, Child] | None = None,
    ) -> None:
        """`listeners` are sockets already claimed; `optional` parts are added on a signal."""
        self._home = home
        self._children = dict(children)
        self._optional = dict(optional or {})
        self._listeners = dict(listeners)
        self._addresses = dict(addresses)
        self._records: dict[str, ChildRecord] = {}
        self._failures: dict[str, int] = {}
        # Monotonic: a clock that jumps must not delay a restart.
        self._started_at: dict[str, float] = {}
        self._due_at: dict[str, float] = {}
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._adding: set[str] = set()
        self._log_check_at = 0.0

    def run(self) -> None:
        """Supervise until SIGTERM or SIGINT, then stop every part and forget the stack."""
        with self._signals():
            self._adopt(read_stack(self._home))
            while not self._stopping:
                self._start_due()
                for key, _ in self._selector.select(self._seconds_to_next()):
                    key.data()
                self._cut_logs()
            stop_parts(self._home, self._children, self._stack())
            (self._home / STACK_FILE).unlink(missing_ok=True)

    def _stack(self) -> StackFile:
        mine = processes.identify(os.getpid())
        return StackFile(self._addresses, mine, dict(self._records))

    def _write(self) -> None:
        write_stack(self._home, self._stack())

    def _adopt(self, before: StackFile) -> None:
        """Take over the living parts of an earlier supervisor; end those that are not wanted so."""
        for name, record in before.processes.items():
            if record.identity is None or not processes.alive(record.identity):
                continue
            child = self._children.get(name) or self._optional.get(name)
            if child is None or not self._same(child, record):
                processes.stop([record.identity], child.grace_seconds if child else 5.0)
                continue
            self._children[name] = child
            if child.holds_socket and child.port and name not in self._listeners:
                taken = processes.take_listener(record.identity, child.port)
                if taken is not None:
                    self._listeners[name] = taken
            self._records[name] = record
            self._watch(name, record.identity)
        for name, child in self._children.items():
            self._records.setdefault(name, self._new_record(child))
        self._write()

    def _new_record(self, child: Child) -> ChildRecord:
        watching = {ADDRESS_OF[name] for name in WATCHING_PARTS}
        # Nobody but Prometheus asks these: a part need not end because they moved.
        asked = {name: url for name, url in self._addresses.items() if name not in watching}
        binding = digest_json([dict(child.environment), asked])
        return ChildRecord(child.argv, binding, port=child.port)

    def _same(self, child: Child, record: ChildRecord) -> bool:
        new = self._new_record(child)
        return (new.argv, new.binding, new.port) == (record.argv, record.binding, record.port)

    def _watch(self, name: str, identity: Identity) -> None:
        descriptor = processes.watch(identity)
        if descriptor is None:
            self._ended(name)
            return

        def ended() -> None:
            self._selector.unregister(descriptor)
            os.close(descriptor)
            self._ended(name)

        self._selector.register(descriptor, selectors.EVENT_READ, ended)

    def _ended(self, name: str) -> None:
        """Note a part's death and when to start it again: at once unless it keeps dying early."""
        record, child = self._records[name], self._children[name]
        if record.identity is not None:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(record.identity.pid, os.WNOHANG)
            if child.sweeps_group:
                processes.end_group(record.identity.pid)
        lived = time.monotonic() - self._started_at.get(name, 0.0)
        failures = 0 if lived >= LIVED_SECONDS else self._failures.get(name, 0) + 1
        self._failures[name] = failures
        wait = back_off_seconds(failures)
        self._due_at[name] = time.monotonic() + wait
        self._records[name] = replace(record, identity=None)
        log.warning("%s ended after %.1f s; starts again in %.1f s", name, lived, wait)
        self._write()

    def _start_due(self) -> None:
        for name in self._adding & self._optional.keys():
            self._children[name] = self._optional[name]
        for name, child in self._children.items():
            record = self._records.setdefault(name, self._new_record(child))
            due = self._due_at.get(name, 0.0) <= time.monotonic()
            if record.identity is None and due and not self._stopping:
                self._start(child, record)

    def _start(self, child: Child, record: ChildRecord) -> None:
        descriptors = []
        argv = child.argv
        if child.holds_socket:
            try:
                descriptors.append(self._listener(child).fileno())
            except OSError as error:
                self._due_at[child.name] = time.monotonic() + BACK_OFF_SECONDS_FIRST
                text = "%s: port %s cannot be used yet (%s)"
                log.warning(text, child.name, child.port, error.strerror)
                return
            argv = tuple(part.replace("{fd}", str(descriptors[0])) for part in argv)
        started = processes.start(
            argv,
            environment={
                **os.environ,
                **member_environment(self._home),
                **child.environment,
            },
            folder=ROOT,
            log=log_path(self._home, child.name),
            descriptors=descriptors,
        )
        # The pidfd and waitpid in _ended stand for the Popen object, which is not kept.
        started.returncode = 0
        first = record.started_at_seconds == 0.0
        identity = processes.identify(started.pid) or Identity(started.pid, 0)
        self._records[child.name] = replace(
            record,
            identity=identity,
            restarts=record.restarts + (0 if first else 1),
            started_at_seconds=time.time(),
        )
        self._started_at[child.name] = time.monotonic()
        self._write()
        self._watch(child.name, identity)

    def _listener(self, child: Child) -> socket.socket:
        """Return the part's listening socket; bind it anew where it could not be taken over."""
        if child.name not in self._listeners:
            self._listeners[child.name] = bind(child.port or 0)
        return self._listeners[child.name]

    def _seconds_to_next(self) -> float:
        waiting = [
            self._due_at.get(name, 0.0)
            for name, record in self._records.items()
            if record.identity is None
        ]
        seconds = min(waiting, default=float("inf")) - time.monotonic()
        return min(max(seconds, 0.0), LOG_CHECK_SECONDS)

    def _cut_logs(self) -> None:
        if time.monotonic() < self._log_check_at:
            return
        self._log_check_at = time.monotonic() + LOG_CHECK_SECONDS
        for name in self._children:
            cut_log(log_path(self._home, name))

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        before = signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, *ADDING):
            signal.signal(number, self._signalled)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        self._selector.register(reading, selectors.EVENT_READ, lambda: reading.recv(64))
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            reading.close()
            writing.close()

    def _signalled(self, number: int, _frame: object) -> None:
        # Only notes: a handler runs in the midst of whatever the loop is doing.
        if number in ADDING:
            self._adding.update(ADDING[number])
        else:
            self._stopping = True


def back_off_seconds(failures: int) -> float:
    """Return the wait before the next start after `failures` early deaths in a row."""
    if failures <= 1:
        return 0.0
    return min(BACK_OFF_SECONDS_FIRST * 2.0 ** min(failures - 2, 16), BACK_OFF_SECONDS_MAX)


def stop_parts(home: Path, children: Mapping[str, Child], stack: StackFile) -> list[str]:
    """Stop the parts phase by phase, the ones that others need last. Returns what was stopped.

    Each phase is bounded by its parts' grace times, twice. Parts not in `children` go first.
    """
    living = stack.living
    phases = sorted({_phase(children.get(name)) for name in living})
    stopped = []
    for phase in phases:
        names = [name for name in living if _phase(children.get(name)) == phase]
        grace = max(child.grace_seconds if (child := children.get(n)) else 5.0 for n in names)
        processes.stop([living[name] for name in names], grace)
        stopped += names
    return stopped


def _phase(child: Child | None) -> int:
    return child.stop_phase if child else 0


def log_path(home: Path, name: str) -> Path:
    """Return the file that a part's output goes to."""
    return home / "logs" / f"{name}.log"


def cut_log(path: Path) -> None:
    """Keep a log bounded: over its limit its end moves to `<name>.log.1` and it starts empty.

    The writer appends, so that it goes on at the new end. A line written in between may be lost.
    """
    if not path.exists() or path.stat().st_size <= LOG_BYTES_MAX:
        return
    with path.open("rb+") as file:
        file.seek(-LOG_BYTES_KEPT, os.SEEK_END)
        path.with_suffix(".log.1").write_bytes(file.read())
        file.truncate(0)


@contextlib.contextmanager
def one_per_home(home: Path) -> Iterator[None]:
    """Hold the home's supervisor lock. Raises ConflictError when another process holds it."""
    home.mkdir(parents=True, exist_ok=True)
    with (home / LOCK_FILE).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConflictError(f"another supervisor already runs in {home}") from None
        yield


def main() -> int:
    """Supervise the home that the environment names; returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m cli.supervisor", description=__doc__)
    parser.add_argument("--worker", action="store_true", help="also run the Prefect worker")
    parser.add_argument("--watching", action="store_true", help="also run Prometheus")
    options = parser.parse_args()
    configure("supervisor")
    try:
        settings = Settings.read()
        with one_per_home(settings.home):
            before = read_stack(settings.home)
            wanted = {"worker": options.worker, "watching": options.watching}
            plan = plan_stack(settings, os.environ, before, **wanted)
            Supervisor(
                settings.home, plan.children, plan.addresses, plan.listeners, plan.optional
            ).run()
    except SerinError as error:
        log.error("serin: %s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
