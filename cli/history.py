"""`serin history`: what served at a time, one release's account, the events, and their check.

Reads the ledger only. Every time is UTC, and may be given back to `--at` as it is printed.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli.account import account_lines, account_of
from cli.release import open_ledger
from core.errors import InputError, NotFoundError
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.events import Event, ServingShare
    from rollout.ledger import Ledger

NOW = "now"
EVENTS_SHOWN = 50
ACCOUNT_EVENTS_MAX = 10_000
DETAILS_CHARACTERS_MAX = 120


@dataclass(frozen=True, slots=True)
class ServedAt:
    """What served at `time`, and the event that made it so; None before the service's first."""

    time: str
    service: str
    namespace: str
    serving: "tuple[ServingShare, ...]"
    release_id: str | None = None
    since: str | None = None
    event: str | None = None
    seq: int | None = None
    hash: str | None = None


def history(
    json_output: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
    at: Annotated[
        str | None,
        typer.Option(help="what served then: an ISO 8601 time (UTC without a zone), or `now`"),
    ] = None,
    release: Annotated[
        str | None, typer.Option(help="the whole account of this release: who, why, evidence")
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help=f"at most so many events, the newest [{EVENTS_SHOWN}]")
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="check the chain of events and derive decisions anew")
    ] = False,
) -> None:
    """List the ledger's events, oldest first; or what served at a time; or one release."""
    if at is not None and release is not None:
        raise InputError("--at and --release are two questions; ask one at a time")
    settings = Settings.read()
    moment = read_moment(at) if at is not None else None
    ledger = open_ledger(settings)
    problems = found_problems(ledger) if verify and ledger else []
    if moment is not None:
        _tell_served(served_at(ledger, settings, moment), json_output)
    elif release is not None:
        _tell_account(ledger, release, limit, json_output)
    else:
        _tell_events(ledger.last_events(limit or EVENTS_SHOWN) if ledger else [], json_output)
    for problem in problems:
        typer.echo(f"ledger: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    if verify:
        typer.echo(
            "the chain of events is whole, and every decision follows from its inputs", err=True
        )


def found_problems(ledger: "Ledger") -> list[str]:
    """Everything that is wrong with the ledger, one sentence each."""
    from cli.verification import decision_problems

    return [*ledger.verify(), *decision_problems(ledger)]


def read_moment(text: str, now_seconds: float | None = None) -> float:
    """Return seconds since the epoch of `now` or an ISO 8601 time, UTC where it names no zone.

    Raises InputError for anything else, and for a time that has not come yet.
    """
    from rollout.times import to_iso, to_seconds

    now_seconds = time.time() if now_seconds is None else now_seconds
    if text.strip().lower() == NOW:
        return now_seconds
    try:
        seconds = to_seconds(text.strip())
        shown = to_iso(seconds)
    except (InputError, ValueError, OverflowError, OSError) as error:
        raise InputError(
            f"--at {text!r} is no time: give ISO 8601 such as 2026-11-22T16:10:00Z, "
            "2026-11-22T17:10:00+01:00 or 2026-11-22 16:10 (UTC without a zone), or `now`"
        ) from error
    if seconds > now_seconds:
        raise InputError(f"--at {shown} has not come yet; it is {to_iso(now_seconds)}")
    return seconds


def served_at(ledger: "Ledger | None", settings: Settings, seconds: float) -> ServedAt:
    """Ask the ledger what served at a time, in seconds since the epoch."""
    from rollout.times import to_iso

    asked = (to_iso(seconds), settings.service, settings.namespace)
    found = ledger.serving_event(settings.service, seconds, settings.namespace) if ledger else None
    if found is None:
        return ServedAt(*asked, serving=())
    return ServedAt(
        *asked,
        serving=tuple(share for share in found.serving if share.percent),
        release_id=found.release_id,
        since=found.time,
        event=found.kind,
        seq=found.seq,
        hash=found.hash,
    )


def _tell_served(seen: ServedAt, json_output: bool) -> None:
    if json_output:
        typer.echo(_json(seen))
        return
    typer.echo(f"{seen.service} at {seen.time}")
    if seen.seq is None:
        typer.echo("  nothing: its first release came later, or never")
        return
    if not seen.serving:
        typer.echo("  nothing served")
    for share in seen.serving:
        typer.echo(
            f"  {share.percent:3} %  version {share.model_version or 'unknown'}  "
            f"bundle {share.bundle_digest}"
        )
    typer.echo(f"  since {seen.since}, release {seen.release_id}, event {seen.seq} {seen.event}")


def _tell_account(
    ledger: "Ledger | None", release_id: str, limit: int | None, json_output: bool
) -> None:
    if ledger is None:
        raise NotFoundError(f"there is no release {release_id}; no ledger was made yet")
    release = ledger.release(release_id)
    events = ledger.last_events(ACCOUNT_EVENTS_MAX, release_id)
    account = account_of(release, events)
    shown = events[-(limit or len(events)) :]
    if json_output:
        typer.echo(_json({**msgspec.to_builtins(account), "events": shown}))
        return
    for line in account_lines(account):
        typer.echo(line)
    if limit is not None:
        _tell_events(shown, json_output=False)


def _tell_events(events: "Iterable[Event]", json_output: bool) -> None:
    events = list(events)
    if json_output:
        typer.echo(_json(events))
        return
    if not events:
        typer.echo("no events yet")
    for event in events:
        serving = " ".join(f"{part.model_version}:{part.percent}%" for part in event.serving)
        typer.echo(
            f"{event.seq:5} {event.time}  {event.release_id}  {event.kind:<18} "
            f"{event.state:<17} {serving:<12} {_details(event.body)}".rstrip()
        )


def _details(body: Any) -> str:
    parts = [f"{name}={value}" for name, value in body.items() if isinstance(value, str | int)]
    text = ", ".join(parts)
    if len(text) <= DETAILS_CHARACTERS_MAX:
        return text
    return text[: DETAILS_CHARACTERS_MAX - 3] + "..."


def _json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value)).decode()
