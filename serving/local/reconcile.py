"""What to do next: services, revisions and observed processes in, actions, routes and status out.

Pure. It starts nothing and reads no clock; the controller carries the plan out and asks again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from serving.local.admission import STOP_ANNOTATION
from serving.local.config import LocalConfig
from serving.local.objects import Key, Object
from serving.local.revisions import (
    Failure,
    Revision,
    ServiceState,
    Share,
    with_current_revision,
    without_retired,
)
from serving.local.status import RevisionFacts, ServiceFacts, build_status
from serving.local.traffic import arms, shares, with_applied, with_targets

Routes = dict[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place for a process: the index-th replica of a revision of a service."""

    uid: str
    revision: str
    index: int


@dataclass(frozen=True, slots=True)
class ProcessView:
    """A living process as it was last seen. Times are seconds of the monotonic clock.

    `ready_at` is the last positive health answer, `fault` says why its identity is refused.
    """

    process_id: str
    slot: Slot
    url: str
    ready: bool
    started_at: float
    ready_at: float | None = None
    bundle_digest: str = ""
    fault: str | None = None
    unrouted_at: float | None = None
    terminated_at: float | None = None
    killed: bool = False


@dataclass(frozen=True, slots=True)
class SlotView:
    """What happened in a slot before: exits in a row, the last one, when the next start may be."""

    exits: int
    last_exit: Failure
    start_at: float


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a plan depends on."""

    now: float
    timestamp: str
    objects: Mapping[Key, Object]
    states: Mapping[str, ServiceState]
    processes: Sequence[ProcessView]
    slots: Mapping[Slot, SlotView]
    loading_since: Mapping[tuple[str, str], float]
    routes: Routes
    routes_applied: bool
    bundle_roots: Sequence[Path]
    gateway_url: str = ""


@dataclass(frozen=True, slots=True)
class Signal:
    """Send a signal to a process; `unroute` only notes that no client is sent to it any more."""

    process_id: str
    kind: Literal["unroute", "terminate", "kill"]
    why: str


@dataclass(frozen=True, slots=True)
class Start:
    """Start the process of a slot."""

    slot: Slot
    revision: Revision
    service: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done, in this order: remember, route, publish, signal, start."""

    states: dict[str, ServiceState]
    routes: Routes
    statuses: dict[Key, dict[str, Any]]
    signals: list[Signal] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)


def reconcile(world: World, config: LocalConfig) -> Plan:
    """Return the next actions. Asked again after they are carried out, it comes to rest."""
    processes: dict[tuple[str, str], list[ProcessView]] = {}
    for process in world.processes:
        processes.setdefault((process.slot.uid, process.slot.revision), []).append(process)
    states: dict[str, ServiceState] = {}
    wanted: dict[str, tuple[Share, ...]] = {}
    routes: Routes = {}
    for found in world.objects.values():
        state = _observed(found, world, processes, config)
        uid = state.uid
        wanted[uid] = () if _stopped(found) else shares(state, _percent(found))
        states[uid] = state
        routes[state.name] = {"arms": _arms(state, wanted[uid], processes)}
    settled = routes == world.routes and world.routes_applied
    statuses = {}
    slots: dict[Slot, Start] = {}
    for key, found in world.objects.items():
        uid = found["metadata"]["uid"]
        if settled:
            states[uid] = with_applied(states[uid], wanted[uid])
        kept = _kept(states[uid], wanted[uid])
        states[uid] = without_retired(states[uid], kept)
        facts = _facts(found, states[uid], wanted[uid], settled, processes, world)
        statuses[key] = build_status(found, states[uid], facts)
        for start in [] if _stopped(found) else _starts(states[uid], kept, wanted[uid]):
            slots[start.slot] = start
    signals = []
    for process in world.processes:
        slot = process.slot
        needed = slot in slots or (
            Slot(slot.uid, slot.revision, 0) in slots
            and not _is_spare(process, states[slot.uid], processes[slot.uid, slot.revision])
        )
        signals += _signals(process, needed, settled, world, config)
    return Plan(states, routes, statuses, signals, _due(slots, world))


def _percent(found: Object) -> int | None:
    percent: int | None = found["spec"]["predictor"].get("canaryTrafficPercent")
    return percent


def _stopped(found: Object) -> bool:
    annotations: dict[str, str] = found["metadata"].get("annotations") or {}
    return annotations.get(STOP_ANNOTATION) == "true"


def _observed(
    found: Object,
    world: World,
    processes: Mapping[tuple[str, str], list[ProcessView]],
    config: LocalConfig,
) -> ServiceState:
    metadata = found["metadata"]
    uid = metadata["uid"]
    state = world.states.get(uid) or ServiceState(uid, metadata["namespace"], metadata["name"])
    state = with_current_revision(state, found, world.bundle_roots, config.replicas_max)
    for revision in state.revisions.values():
        if revision.phase == "loading":
            seen = processes.get((uid, revision.name), [])
            state = state.with_revision(_judged(uid, revision, seen, world, config))
    ready = [revision for revision in state.revisions.values() if revision.phase == "ready"]
    newest = max(ready, key=lambda revision: revision.number, default=None)
    state = replace(state, latest_ready=newest.name if newest else "")
    return with_targets(state, _percent(found))


def _judged(
    uid: str,
    revision: Revision,
    seen: Sequence[ProcessView],
    world: World,
    config: LocalConfig,
) -> Revision:
    """Return a loading revision as ready, failed or still loading."""
    faults = [process.fault for process in seen if process.fault]
    exits = [
        slot for key, slot in world.slots.items() if (key.uid, key.revision) == (uid, revision.name)
    ]
    worst = max(exits, key=lambda slot: slot.exits, default=None)
    since = world.loading_since.get((uid, revision.name), world.now)
    message, exit_code = None, None
    if revision.fault or faults:
        message = revision.fault or faults[0]
    elif sum(process.ready for process in seen) >= max(1, revision.replicas_min):
        digest = next(process.bundle_digest for process in seen if process.ready)
        return replace(revision, phase="ready", bundle_digest=digest)
    elif worst is not None and worst.exits >= config.early_exits_max:
        exit_code = worst.last_exit.exit_code
        message = f"the process ended {worst.exits} times before it was ready; "
        message += f"the last time: {worst.last_exit.message}"
    elif world.now - since >= config.progress_deadline_seconds:
        message = f"not ready within {config.progress_deadline_seconds:g} seconds"
        if worst is not None:
            exit_code = worst.last_exit.exit_code
            message += f"; the process last ended with {worst.last_exit.message}"
    if message is None:
        return revision
    return replace(revision, phase="failed", failure=Failure(message, world.timestamp, exit_code))


def _kept(state: ServiceState, wanted: Sequence[Share]) -> set[str]:
    """Return the revisions that stay up: latest, in traffic, or the one to go back to."""
    names = {
        state.latest_created, state.latest_ready, state.latest_rolledout, state.previous_rolledout,
        *(share.revision for share in (*wanted, *state.traffic)),
    }  # fmt: skip
    return {name for name in names if name in state.revisions}


def _starts(state: ServiceState, kept: set[str], wanted: Sequence[Share]) -> list[Start]:
    """Return every process that should be there, running or not."""
    in_traffic = {share.revision for share in wanted if share.percent}
    starts = []
    for name in sorted(kept):
        revision = state.revisions[name]
        replicas = max(1, revision.replicas_min)
        if revision.phase == "failed":
            continue
        if revision.replicas_min == 0 and revision.phase == "ready" and name not in in_traffic:
            continue
        starts += [
            Start(Slot(state.uid, name, index), revision, state.name) for index in range(replicas)
        ]
    return starts


def _due(slots: Mapping[Slot, Start], world: World) -> list[Start]:
    busy = {process.slot for process in world.processes}
    history = world.slots
    return [
        start
        for slot, start in slots.items()
        if slot not in busy and (slot not in history or history[slot].start_at <= world.now)
    ]


def _signals(
    process: ProcessView, kept: bool, settled: bool, world: World, config: LocalConfig
) -> list[Signal]:
    """Return the next step of stopping a process: unroute, wait, terminate, wait, kill."""
    if process.killed:
        return []
    if process.terminated_at is not None:
        if world.now - process.terminated_at >= config.stop_grace_seconds:
            return [Signal(process.process_id, "kill", "it did not end after SIGTERM")]
        return []
    if kept:
        if process.ready_at is None or world.now - process.ready_at < config.hung_seconds_max:
            return []
        return [Signal(process.process_id, "kill", "it was ready and no longer answers so")]
    if not settled:
        return []
    if process.unrouted_at is None and process.ready_at is not None and config.drain_seconds:
        return [Signal(process.process_id, "unroute", "no service needs it")]
    since = process.unrouted_at
    if since is not None and world.now - since < config.drain_seconds:
        return []
    return [Signal(process.process_id, "terminate", "no service needs it")]


def _is_spare(process: ProcessView, state: ServiceState, seen: Sequence[ProcessView]) -> bool:
    """Whether a process is one more than its revision has replicas, and those that stay are ready:
    it leaves the routes first, and is stopped when nobody is sent to it any more."""
    revision = state.revisions.get(process.slot.revision)
    if revision is None:
        return True
    replicas = max(1, revision.replicas_min)
    staying = sum(other.ready for other in seen if other.slot.index < replicas)
    return process.slot.index >= replicas and staying >= replicas


def _arms(
    state: ServiceState,
    wanted: Sequence[Share],
    processes: Mapping[tuple[str, str], list[ProcessView]],
) -> list[dict[str, Any]]:
    found = []
    for arm, name, percent in arms(wanted):
        revision = state.revisions[name]
        seen = processes.get((state.uid, name), [])
        endpoints = [
            {"url": process.url, "ready": process.ready}
            for process in sorted(seen, key=lambda process: process.slot.index)
            if process.url and process.terminated_at is None and not process.killed
            if not _is_spare(process, state, seen)
        ]
        found.append(
            {
                "arm": arm,
                "revision": name,
                "percent": percent,
                "model_version": revision.model_version,
                "bundle_digest": revision.bundle_digest,
                "endpoints": endpoints,
            }
        )
    return found


def _facts(
    found: Object,
    state: ServiceState,
    wanted: tuple[Share, ...],
    settled: bool,
    processes: Mapping[tuple[str, str], list[ProcessView]],
    world: World,
) -> ServiceFacts:
    revisions = {}
    for name in state.revisions:
        seen = processes.get((state.uid, name), [])
        exits = [
            slot.last_exit
            for key, slot in world.slots.items()
            if (key.uid, key.revision) == (state.uid, name)
        ]
        revisions[name] = RevisionFacts(
            ready=sum(process.ready for process in seen),
            running=len(seen),
            last_exit=max(exits, key=lambda failure: failure.time, default=None),
        )
    return ServiceFacts(
        wanted=wanted,
        settled=settled,
        revisions=revisions,
        stopped=_stopped(found),
        gateway_url=world.gateway_url,
        now=world.timestamp,
    )
