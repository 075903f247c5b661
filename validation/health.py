"""Decides what the health matrix does: a row's state and its figures in, the next steps out. Pure.

Knows no clock, file or server. Unknown is a value: it neither starts a recovery nor ends one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from core.contracts import Figure
from validation.health_config import MOVES_SERVICE, Mode, Row

Level = Literal["clear", "between", "breached", "unknown", "absent"]
StepKind = Literal[
    "act", "escalate", "undo", "helped", "not_helped", "deferred", "no_data", "data_again"
]
RELAPSES_MAX = 5
RELAPSE_FACTOR = 4.0
"""A breach within this many clear times after an undo is a relapse: the next one waits longer."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric now: a value, or None with why; `absent`: there is nothing that could be measured.

    `detail` is evidence for people and for the recovery (which client, which version).
    """

    value: float | None = None
    why: str = ""
    absent: bool = False
    detail: Mapping[str, Figure] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RowState:
    """What is remembered of a row between two looks. Times are seconds since the epoch.

    `active`: its recovery is in force (only pretended while `dry`). `confirmed`: carried out, as
    far as known; what is active and not confirmed is carried out again.
    """

    breached_since: float | None = None
    clear_since: float | None = None
    unknown_since: float | None = None
    active: bool = False
    dry: bool = False
    confirmed: bool = True
    escalated: bool = False
    deferred: bool = False
    no_data: bool = False
    acted_at: float | None = None
    undone_at: float | None = None
    attempts: int = 0
    relapses: int = 0
    helped: bool | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to do or to tell. `dry`: only tell."""

    kind: StepKind
    reason: str
    attempt: int = 0
    dry: bool = False


def level(row: Row, readings: Mapping[str, Reading]) -> tuple[Level, str]:
    """Return how a row stands, and the words for it."""
    found: list[Level] = []
    said = []
    for condition in row.conditions:
        reading = readings.get(condition.metric, Reading(why="nobody measures it"))
        if reading.absent:
            return "absent", reading.why
        if reading.value is None:
            found.append("unknown")
            said.append(f"{condition.metric} unknown: {reading.why}")
            continue
        shown = f"{condition.metric} {reading.value:.4g}"
        if reading.value > condition.above:
            found.append("breached")
            said.append(f"{shown} > {condition.above:g}")
        else:
            found.append("clear" if reading.value <= condition.clear else "between")
            said.append(shown)
    words = " and ".join(said)
    for one in ("clear", "unknown", "between"):
        if one in found:
            return one, words
    return "breached", words


def decide(
    row: Row,
    state: RowState,
    readings: Mapping[str, Reading],
    now: float,
    mode: Mode = "act",
    release_runs: bool = False,
) -> tuple[RowState, tuple[Step, ...]]:
    """Return the row's next state and what is to be done, in order.

    `mode` is the stricter of the row's, the configuration's and a person's override. While
    `release_runs`, recoveries that would change the service wait.
    """
    if mode == "off":
        return replace(state, breached_since=None, clear_since=None, unknown_since=None), ()
    seen, words = level(row, readings)
    state = _streaks(state, seen, now)
    state, told = _data(row, state, seen, words, now)
    if state.active:
        state, steps = _active(row, state, seen, words, now, mode, release_runs)
    else:
        state, steps = _idle(row, state, words, now, mode, release_runs)
    return state, (*told, *steps)


def clear_time(row: Row, state: RowState) -> float:
    """How long a row must be clear before its recovery is undone."""
    return float(row.clear_seconds * 2 ** min(state.relapses, RELAPSES_MAX))


def stricter(modes: Sequence[Mode]) -> Mode:
    """Return the mode that does least."""
    order: tuple[Mode, ...] = ("off", "dry_run", "act")
    return min(modes, key=order.index)


def _streaks(state: RowState, seen: Level, now: float) -> RowState:
    """A gap ends a streak: what was not seen is neither breached nor clear."""

    def since(before: float | None, wanted: tuple[Level, ...]) -> float | None:
        if seen not in wanted:
            return None
        return now if before is None else before

    return replace(
        state,
        breached_since=since(state.breached_since, ("breached",)),
        clear_since=since(state.clear_since, ("clear", "absent")),
        unknown_since=since(state.unknown_since, ("unknown",)),
    )


def _data(
    row: Row, state: RowState, seen: Level, words: str, now: float
) -> tuple[RowState, tuple[Step, ...]]:
    if seen != "unknown" and state.no_data:
        return replace(state, no_data=False), (Step("data_again", words),)
    silent = state.unknown_since is not None and row.unknown_seconds is not None
    if silent and not state.no_data and _over(state.unknown_since, now, row.unknown_seconds):
        return replace(state, no_data=True), (Step("no_data", words),)
    return state, ()


def _idle(
    row: Row, state: RowState, words: str, now: float, mode: Mode, release_runs: bool
) -> tuple[RowState, tuple[Step, ...]]:
    if not _over(state.breached_since, now, row.for_seconds):
        return replace(state, deferred=False), ()
    if state.acted_at is not None and not _over(state.acted_at, now, row.cooldown_seconds):
        return state, ()
    if state.undone_at is not None and not _over(state.undone_at, now, row.cooldown_seconds):
        return state, ()
    if release_runs and row.recovery in MOVES_SERVICE:
        return _defer(state, words)
    calm = RELAPSE_FACTOR * clear_time(row, state)
    relapsed = state.undone_at is not None and now - state.undone_at < calm
    relapses = min(state.relapses + 1, RELAPSES_MAX) if relapsed else 0
    return _act(replace(state, relapses=relapses, attempts=0, escalated=False), words, now, mode)


def _active(
    row: Row,
    state: RowState,
    seen: Level,
    words: str,
    now: float,
    mode: Mode,
    release_runs: bool,
) -> tuple[RowState, tuple[Step, ...]]:
    told: tuple[Step, ...] = ()
    if seen in ("clear", "absent") and state.helped is not True:
        state, told = replace(state, helped=True), (Step("helped", words, state.attempts),)
    waits = release_runs and row.recovery in MOVES_SERVICE
    if _over(state.clear_since, now, clear_time(row, state)):
        if waits or (mode == "dry_run" and not state.dry):
            return state, told  # what is really in force is left to whoever asked for a dry run
        ended = replace(
            state, active=False, undone_at=now, confirmed=state.dry, deferred=False, helped=None
        )
        return ended, (*told, Step("undo", words, state.attempts, dry=state.dry))
    if state.dry and mode == "act" and seen == "breached" and not waits:
        return _act(replace(state, attempts=0), words, now, mode)
    if seen != "breached" or not _over(state.acted_at, now, row.verify_seconds):
        return state, told
    if state.helped is not False:
        state, told = replace(state, helped=False), (Step("not_helped", words, state.attempts),)
    if state.attempts < row.attempts_max:
        if not _over(state.acted_at, now, row.cooldown_seconds):
            return state, told
        if waits:
            state, steps = _defer(state, words)
        else:
            state, steps = _act(state, words, now, mode)
        return state, (*told, *steps)
    if state.escalated:
        return state, told
    if release_runs and row.escalation in MOVES_SERVICE:
        state, steps = _defer(state, words)
        return state, (*told, *steps)
    dry = mode == "dry_run"
    escalated = replace(state, escalated=True, acted_at=now, confirmed=dry or state.dry)
    return escalated, (*told, Step("escalate", words, state.attempts, dry=dry))


def _act(state: RowState, words: str, now: float, mode: Mode) -> tuple[RowState, tuple[Step, ...]]:
    dry = mode == "dry_run"
    acted = replace(
        state,
        active=True,
        dry=dry,
        confirmed=dry,
        deferred=False,
        acted_at=now,
        attempts=state.attempts + 1,
        helped=None,
    )
    return acted, (Step("act", words, acted.attempts, dry=dry),)


def _defer(state: RowState, words: str) -> tuple[RowState, tuple[Step, ...]]:
    """Wait for the running release, and say so once."""
    if state.deferred:
        return state, ()
    return replace(state, deferred=True), (Step("deferred", f"a release runs; {words}"),)


def _over(since: float | None, now: float, seconds: float | None) -> bool:
    return since is not None and seconds is not None and now - since >= seconds
