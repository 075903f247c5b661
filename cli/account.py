"""One release told from its events: what was proposed, who agreed, each step's evidence, the end.

A value and its lines of text; reads nothing itself.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rollout.events import Event
    from rollout.release import Release, ServiceState

DIGEST_SHOWN = 12
STEPS = ("CreateService", "StartCanary", "RaiseShare", "Promote")
ANSWERS = ("approval_asked", "approved", "approval_void", "rejected", "superseded", "judged_again")
TURNS = ("rolling_back", "taken_over", "returning")


@dataclass(frozen=True, slots=True)
class Step:
    """One share: when it was asked for, when seen live, and the decision that led to it."""

    action: str
    percent: int
    asked_at: str
    live_at: str | None
    decision: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True)
class Told:
    """An answer of a person or a turn of the release, with what was written about it."""

    event: str
    time: str
    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Account:
    """A release for people and programs. Times are UTC ISO, None where not reached.

    `seconds_safe` and `seconds_restored` count from the decision to roll back; `as_before` says
    whether the state after equals the one that the rollback had to reach.
    """

    release_id: str
    kind: str
    service: str
    state: str
    reason: str
    candidate: Mapping[str, Any]
    requested_by: str
    proposed_at: str
    started_at: str | None
    finished_at: str | None
    answers: tuple[Told, ...]
    steps: tuple[Step, ...]
    turns: tuple[Told, ...]
    seconds_safe: float | None
    seconds_restored: float | None
    before_digest: str | None
    goal_digest: str | None
    after_digest: str | None
    as_before: bool | None
    alarms: tuple[str, ...]


def account_of(release: "Release", events: "Sequence[Event]") -> Account:
    """Return the account of a release from its events, oldest first."""
    import msgspec

    start, rolled_back = release.rolling_back_at, str(release.state) == "ROLLED_BACK"
    goal, after = release.goal, release.after
    return Account(
        release_id=release.release_id,
        kind=release.kind,
        service=release.service,
        state=str(release.state),
        reason=release.reason,
        candidate=msgspec.to_builtins(release.candidate),
        requested_by=release.requested_by,
        proposed_at=release.created_at,
        started_at=release.started_at,
        finished_at=release.finished_at,
        answers=_told(events, ANSWERS),
        steps=tuple(_steps(events)),
        turns=_told(events, TURNS),
        seconds_safe=_seconds(start, release.safe_at),
        seconds_restored=_seconds(start, release.finished_at if rolled_back else None),
        before_digest=release.before.digest if release.before else None,
        goal_digest=goal.digest if goal else None,
        after_digest=after.digest if after else None,
        as_before=_same(goal, after) if rolled_back else None,
        alarms=release.alarms,
    )


def account_lines(account: Account) -> Iterator[str]:
    """Return the account as lines for a terminal."""
    candidate = account.candidate
    end = f": {account.reason}" if account.reason else ""
    yield f"{account.release_id}  {account.kind} of {account.service}  {account.state}{end}"
    yield f"  proposed   {_at(account.proposed_at)} version {candidate['model_version']}" + (
        f", asked for by {account.requested_by}" if account.requested_by else ""
    )
    yield f"    verdict  {candidate['verdict_digest'] or 'none'}"
    yield f"    bundle   {candidate['bundle_digest']}"
    yield (
        f"    snapshot {candidate['snapshot_id'] or 'unknown'}, judged against stable version "
        f"{candidate['stable_version'] or 'none'}"
    )
    for told in account.answers:
        yield f"  {told.event:<10} {_at(told.time)} {_words(told.body)}".rstrip()
    if account.started_at:
        yield f"  started    {_at(account.started_at)} state before {_short(account.before_digest)}"
    for step in account.steps:
        live = f"live {_at(step.live_at)}" if step.live_at else "never seen live"
        yield f"  {step.percent:3} %      {_at(step.asked_at)} {step.action}, {live}"
        if step.decision:
            yield f"             {_decision(step.decision)}"
    for told in account.turns:
        yield f"  {told.event:<10} {_at(told.time)} {_words(told.body)}".rstrip()
        if told.body.get("decision"):
            yield f"             {_decision(told.body['decision'])}"
    yield from _ending(account)


def _ending(account: Account) -> Iterator[str]:
    if account.seconds_safe is not None:
        yield f"  safe       after {account.seconds_safe:.2f} s: no traffic on the candidate"
    if account.seconds_restored is not None:
        proof = {True: "as it has to be", False: "NOT as it has to be", None: "unknown"}
        yield (
            f"  restored   after {account.seconds_restored:.2f} s: state "
            f"{_short(account.after_digest)} is {proof[account.as_before]}"
        )
    if account.finished_at:
        yield f"  ended      {_at(account.finished_at)} {account.state}"
    for alarm in account.alarms:
        yield f"  ALARM      {alarm}"


def _steps(events: "Sequence[Event]") -> Iterator[Step]:
    """Each share that was asked for; the same one again after a lost write is not a new step."""
    asked: Step | None = None
    for event in events:
        if event.kind == "intent" and event.body.get("action") in STEPS:
            percent = event.body.get("percent")
            share = 100 if percent is None else int(percent)
            if asked is not None and (asked.action, asked.percent) == (event.body["action"], share):
                continue
            if asked is not None:
                yield asked
            decision = event.body.get("decision")
            asked = Step(event.body["action"], share, event.time, None, decision)
        elif asked is not None and event.kind in ("share_live", "promoted"):
            yield Step(asked.action, asked.percent, asked.asked_at, event.time, asked.decision)
            asked = None
    if asked is not None:
        yield asked


def _told(events: "Sequence[Event]", kinds: Sequence[str]) -> tuple[Told, ...]:
    return tuple(Told(e.kind, e.time, e.body) for e in events if e.kind in kinds)


def _words(body: Mapping[str, Any]) -> str:
    """Who and why first, then what it was bound to."""
    names = ("who", "by", "reason", "note", "from_holder", "candidate_digest", "verdict_digest")
    parts = []
    for name in names:
        value = body.get(name)
        if isinstance(value, str) and value:
            shown = _short(value) if name.endswith("digest") else value
            parts.append(f"{name.removesuffix('_digest').replace('_', ' ')} {shown}")
    return ", ".join(parts)


def _decision(decision: Mapping[str, Any]) -> str:
    requests = decision.get("canary_requests", 0)
    said = f"judge: {decision.get('decision')}, {decision.get('reason')} ({requests} requests)"
    figures = decision.get("figures") or {}
    shown = ", ".join(f"{name} {value}" for name, value in figures.items())
    return f"{said}; {shown}" if shown else said


def _same(goal: "ServiceState | None", after: "ServiceState | None") -> bool:
    if goal is None or after is None:
        return goal is after
    return not goal.differences(after)


def _seconds(start: str | None, end: str | None) -> float | None:
    if start is None or end is None:
        return None
    return (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds()


def _at(text: str | None) -> str:
    return f"{text[:19]}Z" if text else "-"


def _short(digest: str | None) -> str:
    return digest[:DIGEST_SHOWN] if digest else "none"
