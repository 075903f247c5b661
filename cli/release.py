"""`serin history`, `approve`, `reject`, `rollback`: what people see and do about releases.

Everything is done by the conductor and written to the ledger; nothing here touches traffic.
"""

import getpass
import os
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from cli.overview import release_view
from cli.stack import sqlite_path
from core.contracts import ReleaseState
from core.errors import NotFoundError, RefusedError
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.conductor import Conductor
    from rollout.events import Event
    from rollout.ledger import Ledger
    from rollout.release import Release

ReleaseArgument = Annotated[str, typer.Argument(help="id of the release, see `serin status`")]
NameOption = Annotated[str, typer.Option("--as", help="your name, as the ledger records it")]
NoteOption = Annotated[str, typer.Option(help="kept in the ledger with the decision")]


def history(
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON list")] = False,
    release: Annotated[str | None, typer.Option(help="only this release's events")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, the newest")] = 50,
    verify: Annotated[bool, typer.Option(help="check the whole chain of events first")] = False,
) -> None:
    """List the ledger's events, oldest first."""
    ledger = open_ledger(Settings.read())
    problems = ledger.verify() if verify and ledger else []
    events = ledger.last_events(limit, release) if ledger else []
    if release is not None and not events:
        raise NotFoundError(f"there is no release {release}; `serin status` lists the last ones")
    if json_output:
        shown = [msgspec.to_builtins(event) for event in events]
        typer.echo(msgspec.json.format(msgspec.json.encode(shown)).decode())
    else:
        _print_events(events)
    for problem in problems:
        typer.echo(f"ledger: {problem}", err=True)
    if problems:
        raise typer.Exit(1)
    if verify:
        typer.echo("the chain of events is whole", err=True)


def approve(release: ReleaseArgument, name: NameOption, note: NoteOption = "") -> None:
    """Approve a release that waits for it; the approval binds to its candidate and verdict."""
    _announce(open_conductor(Settings.read()).approve(release, _name(name), note))


def reject(release: ReleaseArgument, name: NameOption, note: NoteOption = "") -> None:
    """Reject a release that waits for approval."""
    _announce(open_conductor(Settings.read()).reject(release, _name(name), note))


def rollback(
    reason: Annotated[str, typer.Option(help="kept in the ledger")] = "asked for by an operator",
    to: Annotated[
        str | None, typer.Option(help="version to return to (default: the one before)")
    ] = None,
    name: Annotated[str | None, typer.Option("--as", help="your name (default: login)")] = None,
) -> None:
    """Take traffic back: from the running canary, else from stable to the version before."""
    settings = Settings.read()
    who = _name(name or getpass.getuser())
    conductor = open_conductor(settings)
    ended = conductor.roll_back_service(settings.service, who, reason, to)
    _announce(ended)
    if ended.state is not ReleaseState.ROLLED_BACK:
        raise typer.Exit(1)


def open_ledger(settings: Settings) -> "Ledger | None":
    """Open the ledger; None where none was ever made. Raises UnavailableError."""
    from rollout.ledger import Ledger

    path = sqlite_path(settings.ledger_url)
    if path is not None and not path.exists():
        return None
    return Ledger(settings.ledger_url)


def open_conductor(settings: Settings) -> "Conductor":
    """Return a conductor that acts as this process. Raises RefusedError without a ledger."""
    from rollout.conductor import Conductor
    from rollout.identities import from_routes
    from rollout.kubernetes_client import KubernetesClient

    ledger = open_ledger(settings)
    if ledger is None:
        raise RefusedError(f"there are no releases in {settings.home} yet; `serin run` makes them")
    holder = f"cli-{socket.gethostname()}-{os.getpid()}"
    routes = from_routes(settings.home / "control" / "routes.json")
    client = KubernetesClient(settings.kube_url)
    return Conductor(ledger, client, holder, settings.namespace, routes)


def _name(name: str) -> str:
    if not name.strip():
        raise RefusedError("a decision needs a name: --as NAME")
    return name.strip()


def _announce(release: "Release") -> None:
    view = release_view(release)
    reason = f": {view.reason}" if view.reason else ""
    typer.echo(f"{view.release_id} (version {view.model_version}) {view.state}{reason}")


def _print_events(events: list["Event"]) -> None:
    if not events:
        typer.echo("no events yet")
    for event in events:
        serving = " ".join(f"{part.model_version}:{part.percent}%" for part in event.serving)
        typer.echo(
            f"{event.seq:5} {_local(event.time)}  {event.release_id}  {event.kind:<18} "
            f"{event.state:<17} {serving:<12} {_details(event.body)}".rstrip()
        )


def _details(body: Any) -> str:
    parts = [f"{name}={value}" for name, value in body.items() if isinstance(value, str | int)]
    text = ", ".join(parts)
    return text if len(text) <= 120 else text[:117] + "..."


def _local(text: str) -> str:
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%m-%d %H:%M:%S")
