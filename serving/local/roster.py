"""The living processes as the control plane watches them: health, identity, exits, pauses.

Turns observations into the frozen views that a plan is made from; decides nothing itself.
"""

import asyncio
import logging
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from core.errors import UnavailableError
from serving.local.config import LocalConfig
from serving.local.metrics import Exits
from serving.local.objects import timestamp
from serving.local.probes import HEALTH_PATH, ask_identity, fetch
from serving.local.processes import (
    Folders,
    ProcessEntry,
    exit_code,
    launch,
    log_tail,
    new_entry,
    read_entries,
    read_port,
    send,
    write_entries,
)
from serving.local.reconcile import ProcessView, Signal, Slot, SlotView, Start
from serving.local.revisions import Failure

PORT_POLL_SECONDS = 0.05
NUMBERS = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Watched:
    """One living process and what was seen of it. Times are those of the roster's clock."""

    entry: ProcessEntry
    child: "subprocess.Popen[bytes] | None"
    started_at: float
    expected_digest: str | None
    answering: bool = False
    ready_at: float | None = None
    ready_since: float | None = None
    fault: str | None = None
    unrouted_at: float | None = None
    terminated_at: float | None = None
    killed: bool = False
    task: "asyncio.Task[None] | None" = None
    descriptor: int | None = None


class Roster:
    """Starts, watches and signals the predictors of one home."""

    def __init__(
        self, home: Path, config: LocalConfig, token: str, on_change: Callable[[], None]
    ) -> None:
        self.folders = Folders(home)
        self.config = config
        self._token = token
        self.on_change = on_change
        self.slots: dict[Slot, SlotView] = {}
        self._watched: dict[str, Watched] = {}
        self._lost_seconds = 0.0
        self.exits = Exits()
        self._changed = False
        self._tasks: asyncio.TaskGroup | None = None

    def clock(self) -> float:
        """Return seconds that this process was able to watch: monotonic time without pauses."""
        return time.monotonic() - self._lost_seconds

    def lose(self, seconds: float) -> None:
        """Leave out a pause of this process (stopped, machine asleep): nobody is judged by it."""
        self._lost_seconds += seconds

    def adopt(self, expected: dict[Slot, str | None], tasks: asyncio.TaskGroup) -> None:
        """Take over the predictors that an earlier control plane started and that still run.

        One that was ready counts as ready until its health says otherwise. `expected` holds the
        bundle digest that each slot must report; the watching runs in `tasks`.
        """
        self._tasks = tasks
        self.folders.make()
        now = self.clock()
        for entry in read_entries(self.folders):
            watched = Watched(entry, None, now, expected.get(entry.slot))
            if entry.ready:
                watched.answering = True
                watched.ready_at = watched.ready_since = now
            self._watch(watched)
            log.info("adopted %s (process %d)", entry.process_id, entry.pid)
        self._changed = True

    def start(self, start: Start) -> None:
        """Start the process of a slot; when it cannot be started, that counts as an exit."""
        slot, now = start.slot, self.clock()
        entry = new_entry(slot, start.service, self.folders)
        # Recorded before and after: a crash in between must not leave an unknown process.
        write_entries(self.folders, [*self._entries(), entry])
        try:
            entry, child = launch(entry, start.revision, self.folders, self.config)
        except OSError as error:
            self.exits.add(entry.service, entry.revision)
            self._exited(slot, False, Failure(str(error), timestamp(time.time())))
            self._changed = True
            return
        self._watch(Watched(entry, child, now, start.revision.expected_digest))
        self._changed = True
        write_entries(self.folders, self._entries())
        log.info("started %s (process %d)", entry.process_id, entry.pid)

    def carry_out(self, action: Signal) -> None:
        """Do one step of stopping a process."""
        watched = self._watched.get(action.process_id)
        if watched is None:
            return
        if action.kind == "unroute":
            watched.unrouted_at = self.clock()
            return
        log.info("%s %s: %s", action.kind, action.process_id, action.why)
        send(watched.entry, NUMBERS[action.kind])
        if action.kind == "kill":
            watched.killed = True
        else:
            watched.terminated_at = self.clock()

    def note_routes(self, urls: set[str]) -> None:
        """Begin a process's drain anew when a client is sent to it again."""
        for watched in self._watched.values():
            if watched.entry.url in urls:
                watched.unrouted_at = None

    def observe(self) -> None:
        """Notice the processes that ended, and record what changed. Raises OSError."""
        ended = [watched for watched in self._watched.values() if not _lives(watched)]
        for watched in ended:
            self._end(watched)
        if self._changed:
            write_entries(self.folders, self._entries())
            self._changed = False

    def views(self) -> list[ProcessView]:
        """Return every living process as it is seen now."""
        now = self.clock()
        return [
            ProcessView(
                process_id=watched.entry.process_id,
                slot=watched.entry.slot,
                url=watched.entry.url,
                ready=self._is_ready(watched, now),
                started_at=watched.started_at,
                ready_at=watched.ready_at,
                bundle_digest=watched.entry.bundle_digest,
                fault=watched.fault,
                unrouted_at=watched.unrouted_at,
                terminated_at=watched.terminated_at,
                killed=watched.killed,
            )
            for watched in self._watched.values()
        ]

    def forget(self, slots: set[Slot]) -> None:
        """Keep the history of these slots only."""
        self.slots = {slot: self.slots[slot] for slot in self.slots if slot in slots}

    def leave(self) -> None:
        """Stop noticing exits; the processes go on."""
        for watched in self._watched.values():
            self._close(watched)

    def _is_ready(self, watched: Watched, now: float) -> bool:
        return (
            watched.answering
            and watched.ready_at is not None
            and now - watched.ready_at < self.config.silent_seconds_max
            and watched.terminated_at is None
            and not watched.killed
        )

    def _entries(self) -> list[ProcessEntry]:
        return [watched.entry for watched in self._watched.values()]

    def _watch(self, watched: Watched) -> None:
        entry = watched.entry
        self._watched[entry.process_id] = watched
        try:
            watched.descriptor = os.pidfd_open(entry.pid)
        except OSError:
            # Ended already, or a kernel without pidfd: the next look notices.
            self.on_change()
        else:
            asyncio.get_running_loop().add_reader(watched.descriptor, self._wake, watched)
        if self._tasks is not None:
            watched.task = self._tasks.create_task(self._probe(watched))

    def _wake(self, watched: Watched) -> None:
        self._close(watched)
        self.on_change()

    def _close(self, watched: Watched) -> None:
        if watched.descriptor is not None:
            asyncio.get_running_loop().remove_reader(watched.descriptor)
            os.close(watched.descriptor)
            watched.descriptor = None

    def _end(self, watched: Watched) -> None:
        entry = watched.entry
        code = exit_code(watched.child)
        self._close(watched)
        if watched.task is not None:
            watched.task.cancel()
        del self._watched[entry.process_id]
        self._changed = True
        Path(entry.port_file).unlink(missing_ok=True)
        log.info("%s (process %d) ended with %s", entry.process_id, entry.pid, code)
        if watched.terminated_at is not None:
            self.slots.pop(entry.slot, None)
            return
        self.exits.add(entry.service, entry.revision)
        since = watched.ready_since
        settled = since is not None and self.clock() - since >= self.config.restart_reset_seconds
        how = "an unknown exit code" if code is None else f"exit code {code}"
        tail = log_tail(entry)
        message = f"{how}: {tail}" if tail else how
        self._exited(entry.slot, settled, Failure(message, timestamp(time.time()), code))

    def _exited(self, slot: Slot, settled: bool, failure: Failure) -> None:
        before = self.slots.get(slot)
        exits = 1 if settled or before is None else before.exits + 1
        # Who served well is started again at once, who ends again and again ever later.
        pause = 0.0
        if not settled:
            doubled = self.config.restart_first_seconds * 2.0 ** min(exits - 1, 30)
            pause = min(self.config.restart_seconds_max, doubled)
        self.slots[slot] = SlotView(exits, failure, self.clock() + pause)

    async def _probe(self, watched: Watched) -> None:
        while True:
            if not watched.entry.port:
                port = read_port(watched.entry)
                if port:
                    watched.entry = replace(watched.entry, port=port)
                    self._changed = True
                else:
                    await asyncio.sleep(PORT_POLL_SECONDS)
                    continue
            before = watched.answering
            await self._ask(watched)
            if watched.answering != before or watched.fault:
                watched.entry = replace(watched.entry, ready=watched.answering)
                self._changed = True
                self.on_change()
            if watched.fault:
                return
            ready = watched.answering
            seconds = self.config.probe_seconds if ready else self.config.probe_loading_seconds
            await asyncio.sleep(seconds)

    async def _ask(self, watched: Watched) -> None:
        entry = watched.entry
        patience = self.config.probe_timeout_seconds
        try:
            answer = await fetch(entry.url + HEALTH_PATH, patience)
            ready = answer.status == 200
            if ready and not entry.bundle_digest:
                await self._identify(watched)
        except TimeoutError:
            # Silence says nothing yet; the views turn unready when it lasts.
            return
        except UnavailableError:
            ready = False
        watched.answering = ready and not watched.fault
        if watched.answering:
            watched.ready_at = self.clock()
            watched.ready_since = watched.ready_since or watched.ready_at
        else:
            watched.ready_since = None

    async def _identify(self, watched: Watched) -> None:
        entry = watched.entry
        patience = self.config.probe_timeout_seconds
        identity = await ask_identity(entry.url, patience, self._token)
        expected = watched.expected_digest
        if expected is not None and identity.bundle_digest != expected:
            watched.fault = (
                f"the process reports bundle {identity.bundle_digest[:12]}, "
                f"expected {expected[:12]}; build the bundle again"
            )
        elif identity.revision not in ("", entry.revision):
            watched.fault = f"the process at {entry.url} is revision {identity.revision}"
        else:
            watched.entry = replace(entry, bundle_digest=identity.bundle_digest)


def _lives(watched: Watched) -> bool:
    if watched.child is not None:
        return watched.child.poll() is None
    return watched.entry.alive
