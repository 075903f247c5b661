"""Predictor processes: started so that they outlive this one, found again, signalled, stopped.

A process is known by its pid and its start time in clock ticks since boot: a pid may be used again,
and a stepped wall clock must not make a living process look like another one.
"""

import os
import secrets
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import psutil

from core.errors import RefusedError
from core.files import write_whole
from observability.logs import message_of
from serving.local.config import LocalConfig
from serving.local.files import check_schema, lock_home, read_as
from serving.local.reconcile import Slot
from serving.local.revisions import Revision

ROOT = Path(__file__).resolve().parents[2]
SCHEMA_VERSION = 1
POLL_SECONDS = 0.02
LOG_TAIL_BYTES = 2048
LOG_TAIL_LINES = 3
KILLED_EXIT = 128
"""Added to a signal's number to give the exit code that a container would have."""


@dataclass(frozen=True, slots=True)
class ProcessEntry:
    """One line of processes.json. pid 0: about to be started, or started and not yet recorded.

    `start_ticks` is the kernel's start time (clock ticks since boot), `create_time` the same as
    psutil tells it (seconds since the epoch), `port` 0 until the predictor listens.
    """

    process_id: str
    uid: str
    service: str
    revision: str
    index: int
    port_file: str
    log_file: str
    pid: int = 0
    start_ticks: int = 0
    create_time: float = 0.0
    port: int = 0
    ready: bool = False
    bundle_digest: str = ""

    @property
    def slot(self) -> Slot:
        """The place it fills."""
        return Slot(self.uid, self.revision, self.index)

    @property
    def url(self) -> str:
        """Where it answers; empty until it listens."""
        return f"http://127.0.0.1:{self.port}" if self.port else ""

    @property
    def alive(self) -> bool:
        """Whether this very process runs."""
        return bool(self.pid) and start_ticks(self.pid) == self.start_ticks


@dataclass(slots=True)
class ProcessList:
    """The content of processes.json."""

    boot_id: str
    processes: list[ProcessEntry] = field(default_factory=list)
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True, slots=True)
class Folders:
    """Where processes leave their traces below a home."""

    home: Path

    @property
    def control(self) -> Path:
        """All state of the control plane."""
        return self.home / "control"

    @property
    def ports(self) -> Path:
        """One file per starting predictor, in which it writes its port."""
        return self.control / "ports"

    @property
    def logs(self) -> Path:
        """Output of the predictors."""
        return self.home / "logs"

    @property
    def processes(self) -> Path:
        """The list of processes."""
        return self.control / "processes.json"

    def make(self) -> None:
        """Create the folders."""
        for folder in (self.control, self.ports, self.logs):
            folder.mkdir(parents=True, exist_ok=True)


def boot_id() -> str:
    """Return what tells this boot of the machine from others."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def start_ticks(pid: int) -> int | None:
    """Return a running process's start time in clock ticks since boot; None when there is none.

    A process that ended but was not yet waited for does not run.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # proc(5): the name, in brackets, may hold anything; state is field 3, start time field 22.
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in ("Z", "X") else int(fields[19])


def read_entries(folders: Folders) -> list[ProcessEntry]:
    """Return the recorded processes that run now; none from before the last boot.

    A start that was recorded but interrupted is searched for by its port file, which is in the
    process's arguments. Raises IntegrityError when the list is malformed.
    """
    content = read_as(folders.processes, ProcessList)
    if content is None or content.boot_id != boot_id():
        return []
    check_schema(folders.processes, content.schema_version, SCHEMA_VERSION)
    entries = content.processes
    lost = {entry.port_file for entry in entries if not entry.pid}
    found = _search(lost) if lost else {}
    entries = [
        entry if entry.pid else _with_pid(entry, found[entry.port_file])
        for entry in entries
        if entry.pid or entry.port_file in found
    ]
    return [entry for entry in entries if entry.alive]


def write_entries(folders: Folders, entries: Iterable[ProcessEntry]) -> None:
    """Replace the list of processes."""
    content = ProcessList(boot_id(), list(entries))
    text = msgspec.json.format(msgspec.json.encode(content), indent=1)
    write_whole(folders.processes, text)


def new_entry(slot: Slot, service: str, folders: Folders) -> ProcessEntry:
    """Return the entry of a process that is about to be started; record it before `launch`."""
    process_id = f"{slot.revision}-{slot.index}-{secrets.token_hex(4)}"
    log = slot.revision if slot.index == 0 else f"{slot.revision}-{slot.index}"
    return ProcessEntry(
        process_id=process_id,
        uid=slot.uid,
        service=service,
        revision=slot.revision,
        index=slot.index,
        port_file=str(folders.ports / process_id),
        log_file=str(folders.logs / f"{log}.log"),
    )


def launch(
    entry: ProcessEntry, revision: Revision, folders: Folders, config: LocalConfig
) -> tuple[ProcessEntry, "subprocess.Popen[bytes]"]:
    """Start a predictor in a session of its own; it outlives this process and its terminal.

    Raises OSError when the program cannot be started.
    """
    log = Path(entry.log_file)
    _put_aside(log, config.log_bytes_max)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command(entry, revision, config),
            cwd=ROOT,
            env=environment(revision, folders.home, config, os.environ),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return _with_pid(entry, process.pid), process


def command(entry: ProcessEntry, revision: Revision, config: LocalConfig) -> list[str]:
    """Return a predictor's command line. The spec's arguments come first, so that ours win."""
    options = {
        "--bundle": revision.bundle,
        "--model-name": entry.service,
        "--model-version": revision.model_version,
        "--revision": revision.name,
        "--http-port": "0",
        "--port-file": entry.port_file,
        "--expected-digest": revision.expected_digest,
        "--threads": None if config.threads is None else str(config.threads),
    }
    given = [part for name, value in options.items() if value is not None for part in (name, value)]
    return [*config.predictor_command, *revision.arguments, *given]


def environment(
    revision: Revision, home: Path, config: LocalConfig, base: Mapping[str, str]
) -> dict[str, str]:
    """Return a predictor's environment: ours, the spec's variables, then what must hold."""
    variables = {**base, **dict(revision.environment), "SERIN_HOME": str(home)}
    # Only who starts the control plane may allow faults, never a spec.
    variables["SERIN_ALLOW_FAULTS"] = base.get("SERIN_ALLOW_FAULTS", "0")
    if config.threads is not None:
        variables["OMP_NUM_THREADS"] = str(config.threads)
    return variables


def read_port(entry: ProcessEntry) -> int:
    """Return the port that a predictor wrote; 0 while it has not."""
    try:
        text = Path(entry.port_file).read_text().strip()
    except OSError:
        return 0
    return int(text) if text.isdigit() and 0 < int(text) < 65536 else 0


def send(entry: ProcessEntry, number: signal.Signals) -> bool:
    """Signal this very process, its whole session when killing; False when it is gone."""
    try:
        descriptor = os.pidfd_open(entry.pid)
    except OSError:
        return False
    try:
        # The descriptor holds the process fast; only now is its start time checked.
        if not entry.alive:
            return False
        if number == signal.SIGKILL:
            os.killpg(entry.pid, number)
        else:
            signal.pidfd_send_signal(descriptor, number)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def exit_code(process: "subprocess.Popen[bytes] | None") -> int | None:
    """Return an ended child's exit code as a container would show it; None for an adopted one."""
    if process is None:
        return None
    code = process.poll()
    return code if code is None or code >= 0 else KILLED_EXIT - code


def log_tail(entry: ProcessEntry) -> str:
    """Return the last lines that a predictor wrote, for a failure's message."""
    try:
        with Path(entry.log_file).open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    lines = [message_of(line.strip()) for line in text.splitlines() if line.strip()]
    return " | ".join(lines[-LOG_TAIL_LINES:])[-LOG_TAIL_BYTES // 4 :]


def stop_all(home: Path, grace_seconds: float = 10) -> int:
    """Stop every predictor of a home: SIGTERM, and SIGKILL after the grace. Return how many.

    The control plane must have ended before, or it would start them again: RefusedError then.
    """
    folders = Folders(home.absolute())
    if not folders.processes.exists():
        return 0
    lock = lock_home(folders.control)
    try:
        entries = read_entries(folders)
        for entry in entries:
            send(entry, signal.SIGTERM)
        left = _wait(entries, grace_seconds)
        for entry in left:
            send(entry, signal.SIGKILL)
        if left := _wait(left, grace_seconds):
            pids = ", ".join(str(entry.pid) for entry in left)
            raise RefusedError(f"processes {pids} do not end even after SIGKILL")
        write_entries(folders, [])
        return len(entries)
    finally:
        os.close(lock)


def _wait(entries: Sequence[ProcessEntry], seconds: float) -> list[ProcessEntry]:
    deadline = time.monotonic() + seconds
    left = [entry for entry in entries if entry.alive]
    while left and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        left = [entry for entry in left if entry.alive]
    return left


def _with_pid(entry: ProcessEntry, pid: int) -> ProcessEntry:
    try:
        created = psutil.Process(pid).create_time()
    except psutil.Error:
        created = 0.0
    return replace(entry, pid=pid, start_ticks=start_ticks(pid) or 0, create_time=created)


def _search(port_files: set[str]) -> dict[str, int]:
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        for part in process.info["cmdline"] or ():
            if part in port_files:
                found[part] = process.pid
    return found


def _put_aside(log: Path, bytes_max: int) -> None:
    if log.exists() and log.stat().st_size > bytes_max:
        log.replace(log.with_suffix(".log.1"))
