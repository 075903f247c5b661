"""The reconcile loop: look, plan, carry out, again. All input and output of the control plane.

It wakes at every event (a patch, a health change, an exit, an answer of the gateway) and otherwise
every tick. Everything it does may be cut off anywhere and is done again by the next one.
"""

import asyncio
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from core.errors import UnavailableError
from core.files import write_whole
from serving.local.config import LocalConfig
from serving.local.files import check_schema, read_as
from serving.local.objects import timestamp
from serving.local.probes import ask_generation
from serving.local.reconcile import Plan, Slot, World, reconcile
from serving.local.revisions import ServiceState
from serving.local.roster import Roster
from serving.local.routes import RoutesWriter
from serving.local.store import Store

SCHEMA_VERSION = 1
PASSES_MAX = 16
PAUSE_SECONDS_MIN = 1.0
GATEWAY_TIMEOUT_SECONDS = 0.5
log = logging.getLogger(__name__)


@dataclass(slots=True)
class Memory:
    """What the control plane remembers beside the objects (revisions.json)."""

    services: dict[str, ServiceState] = field(default_factory=dict)
    routes_generation: int = 0
    schema_version: int = SCHEMA_VERSION


class Controller:
    """Brings processes, routes and status in line with the InferenceServices of one home."""

    def __init__(
        self, home: Path, store: Store, config: LocalConfig, gateway_url: str, token: str
    ) -> None:
        """`token` is what the predictors ask of their callers."""
        self.config = config
        self.gateway_url = gateway_url
        self.roots = config.bundle_roots or (home / "bundles",)
        self.store = store
        self.wake = asyncio.Event()
        self.store.on_change = self.wake.set
        self.roster = Roster(home, config, token, self.wake.set)
        self.memory_file = self.roster.folders.control / "revisions.json"
        memory = read_as(self.memory_file, Memory) or Memory()
        check_schema(self.memory_file, memory.schema_version, SCHEMA_VERSION)
        self.states = memory.services
        self.routes = RoutesWriter(
            self.roster.folders.control / "routes.json", memory.routes_generation
        )
        self.routes_changed = asyncio.Event()
        self.loading_since: dict[tuple[str, str], float] = {}
        self._written = self._memory()

    async def run(self) -> None:
        """Adopt what runs, then reconcile until cancelled. The predictors go on after it."""
        expected = {
            Slot(state.uid, revision.name, index): revision.expected_digest
            for state in self.states.values()
            for revision in state.revisions.values()
            for index in range(max(1, revision.replicas_min))
        }
        # An error that nobody expected, in any task, ends the whole process: its supervisor starts
        # another one, which adopts the predictors.
        async with asyncio.TaskGroup() as tasks:
            self.roster.adopt(expected, tasks)
            self.routes_changed.set()
            tasks.create_task(self._follow_gateway())
            try:
                while True:
                    self.wake.clear()
                    self._look()
                    await self._pause()
            finally:
                self.roster.leave()

    def world(self) -> World:
        """Return everything that the next plan depends on."""
        return World(
            now=self.roster.clock(),
            timestamp=timestamp(time.time()),
            objects=self.store.objects(),
            states=self.states,
            processes=self.roster.views(),
            slots=self.roster.slots,
            loading_since=self.loading_since,
            routes=self.routes.services,
            routes_applied=self.routes.settled,
            bundle_roots=self.roots,
            gateway_url=self.gateway_url,
        )

    def _look(self) -> None:
        try:
            for _ in range(PASSES_MAX):
                self.roster.observe()
                if not self._carry_out(reconcile(self.world(), self.config)):
                    return
        except OSError as error:
            # A full disk, say: what was not written is planned again at the next tick.
            log.error("this pass was not carried out: %s", error)

    async def _pause(self) -> None:
        before = time.monotonic()
        try:
            async with asyncio.timeout(self.config.tick_seconds):
                await self.wake.wait()
        except TimeoutError:
            pass
        late = time.monotonic() - before - self.config.tick_seconds
        if late > PAUSE_SECONDS_MIN:
            log.warning("this process was paused for %.1f seconds", late)
            self.roster.lose(late)

    def _carry_out(self, plan: Plan) -> bool:
        """Do what a plan says, in an order that a crash cannot harm; return whether to ask again.

        Revisions are remembered before their process starts, traffic is routed before it is told,
        and a process is signalled only when no route leads to it.
        """
        again = self._remember(plan.states)
        if plan.routes != self.routes.services or not self.routes.written:
            self.routes.write(plan.routes)
            if not self.gateway_url:
                self.routes.applied = self.routes.generation
            self.roster.note_routes(self.routes.urls())
            self.routes_changed.set()
            again = True
        for key, status in plan.statuses.items():
            self.store.set_status(key, status)
        for action in plan.signals:
            self.roster.carry_out(action)
        for start in plan.starts:
            self.roster.start(start)
        return again

    def _remember(self, states: dict[str, ServiceState]) -> bool:
        changed = states != self.states
        self.states = states
        content = self._memory()
        if content != self._written:
            write_whole(self.memory_file, content, durable=True)
            self._written = content
        loading = {
            (state.uid, revision.name)
            for state in states.values()
            for revision in state.revisions.values()
            if revision.phase == "loading"
        }
        now = self.roster.clock()
        self.loading_since = {key: self.loading_since.get(key, now) for key in loading}
        known = {(state.uid, name) for state in states.values() for name in state.revisions}
        slots = self.roster.slots
        self.roster.forget({slot for slot in slots if (slot.uid, slot.revision) in known})
        return changed

    def _memory(self) -> bytes:
        return msgspec.json.encode(Memory(self.states, self.routes.generation))

    async def _follow_gateway(self) -> None:
        """Learn when the gateway has applied the routes; an absent one is not waited for."""
        if not self.gateway_url:
            self.routes.applied = self.routes.generation
            self.wake.set()
            return
        while True:
            await self.routes_changed.wait()
            self.routes_changed.clear()
            answered_at = self.roster.clock()
            while not self.routes.settled:
                try:
                    found = await ask_generation(self.gateway_url, GATEWAY_TIMEOUT_SECONDS)
                    answered_at = self.roster.clock()
                except (UnavailableError, TimeoutError):
                    waited = self.roster.clock() - answered_at
                    if waited >= self.config.gateway_wait_seconds:
                        log.warning("the gateway at %s does not answer", self.gateway_url)
                        found = self.routes.generation
                    else:
                        found = -1
                if found == self.routes.generation:
                    self.routes.applied = found
                    self.wake.set()
                else:
                    await asyncio.sleep(self.config.gateway_poll_seconds)
