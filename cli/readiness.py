"""Asks a stack's parts whether they answer: by HTTP where they have a port, else by their process.

Asks only; starts and stops nothing.
"""

import http.client
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from cli.children import WORKER_READY_FILE, Child
from cli.ports import LOOPBACK
from cli.processes import alive
from cli.stack_file import ChildRecord, read_stack

PROBE_SECONDS = 2.0
POLL_SECONDS = 0.1
SETTLED_SECONDS = 0.5
"""A part without an address counts as ready once it has run this long."""
RESTARTS_MAX = 3
"""A part that died this often while it was waited for will not become ready."""


@dataclass(frozen=True, slots=True)
class Readiness:
    """One part: ready after so many seconds, or not (`died`: it keeps dying)."""

    name: str
    ready: bool
    seconds: float
    died: bool = False


def await_parts(home: Path, children: list[Child], seconds: float) -> Iterator[Readiness]:
    """Wait for every part at the same time and yield each one when it is ready or given up.

    The first part that is given up ends the wait for the others.
    """
    if not children:
        return
    began = time.monotonic()
    given_up = threading.Event()
    with ThreadPoolExecutor(len(children), thread_name_prefix="readiness") as pool:
        waits = [
            pool.submit(_await_part, home, child, began, seconds, given_up) for child in children
        ]
        try:
            for wait in as_completed(waits):
                found = wait.result()
                if not found.ready:
                    given_up.set()
                yield found
        finally:
            given_up.set()


def _await_part(
    home: Path, child: Child, began: float, seconds: float, given_up: threading.Event
) -> Readiness:
    before: int | None = None
    while time.monotonic() - began < seconds and not given_up.is_set():
        record = read_stack(home).processes.get(child.name)
        if record is not None:
            before = record.restarts if before is None else before
            if record.restarts - before >= RESTARTS_MAX:
                return Readiness(child.name, False, time.monotonic() - began, died=True)
            if alive(record.identity) and answers(home, child, record):
                return Readiness(child.name, True, time.monotonic() - began)
        time.sleep(POLL_SECONDS)
    return Readiness(child.name, False, time.monotonic() - began)


def answers(home: Path, child: Child, record: ChildRecord, seconds: float = PROBE_SECONDS) -> bool:
    """Ask one part once."""
    if child.health_path is not None and child.port is not None:
        url = f"http://{LOOPBACK}:{child.port}{child.health_path}"
        return get_status(url, seconds) == http.HTTPStatus.OK
    if child.name == "worker":
        return record.identity is not None and worker_pid(home) == record.identity.pid
    return time.time() - record.started_at_seconds >= SETTLED_SECONDS


def worker_pid(home: Path) -> int | None:
    """Return the worker that last finished applying prefect.yaml."""
    try:
        return int((home / "control" / WORKER_READY_FILE).read_text())
    except (FileNotFoundError, ValueError):
        return None


def get_status(url: str, seconds: float) -> int | None:
    """Return the HTTP status of a GET; None when nothing answers in time."""
    status: int | None = _request("GET", url, None, seconds, lambda answer: answer.status)
    return status


def fetch_json(url: str, seconds: float, content: Any = None) -> Any:
    """Return the JSON that `url` answers (POST when there is `content`); None when it does not."""
    return fetch_status_and_json(url, seconds, content)[1]


def fetch_status_and_json(url: str, seconds: float, content: Any = None) -> tuple[int | None, Any]:
    """Return the HTTP status, None when nothing answers, and the JSON of a successful answer."""

    def decode(answer: http.client.HTTPResponse) -> tuple[int, Any]:
        body = answer.read()
        good = answer.status < http.HTTPStatus.BAD_REQUEST
        return answer.status, msgspec.json.decode(body) if good and body else None

    body = None if content is None else msgspec.json.encode(content)
    found: tuple[int, Any] | None = _request(
        "GET" if body is None else "POST", url, body, seconds, decode
    )
    return found or (None, None)


def _request(
    method: str,
    url: str,
    body: bytes | None,
    seconds: float,
    read: Callable[[http.client.HTTPResponse], Any],
) -> Any:
    parts = urllib.parse.urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or LOOPBACK, parts.port, timeout=seconds)
    try:
        headers = {"content-type": "application/json"} if body is not None else {}
        target = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request(method, target or "/", body, headers)
        return read(connection.getresponse())
    except (OSError, http.client.HTTPException, msgspec.DecodeError):
        return None
    finally:
        connection.close()
