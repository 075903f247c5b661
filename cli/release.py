"""`serin rollback`: an operator takes traffic back; opens ledger and conductor for commands.

Everything is done by the conductor and written to the ledger; nothing here touches traffic.
"""

import getpass
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import unquote, urlsplit

import typer

from cli.overview import release_view
from cli.stack import sqlite_path
from core.contracts import Candidate, ReleaseState
from core.errors import NotFoundError, RefusedError, UnavailableError
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.conductor import Conductor
    from rollout.ledger import Ledger
    from rollout.release import Release


def rollback(
    reason: Annotated[str, typer.Option(help="kept in the ledger")] = "asked for by an operator",
    to: Annotated[
        str | None, typer.Option(help="an earlier version, through a canary unless --now")
    ] = None,
    now: Annotated[bool, typer.Option("--now", help="all traffic at once, no canary")] = False,
    name: Annotated[str | None, typer.Option("--as", help="your name (default: login)")] = None,
) -> None:
    """Take traffic back at once: from the running canary, else from stable to the version before.

    With --to the earlier version is released like any candidate, through a judged canary; with
    --to and --now it gets all traffic as soon as it is loaded.
    """
    settings = Settings.read()
    who = _name(name or getpass.getuser())
    conductor = open_conductor(settings)
    if to is not None:
        require_bundle(conductor.earlier_version(settings.service, to))
    if to is not None and not now:
        proposed = conductor.propose_earlier(settings.service, who, reason, to)
        _announce(proposed)
        typer.echo(_start_release(settings, conductor, proposed))
        return
    ended = conductor.roll_back_service(settings.service, who, reason, to)
    _announce(ended)
    if to is not None and ended.final and ended.kind != "rollback":
        stable = conductor.ledger.stable(settings.service, settings.namespace)
        if stable is None or stable.candidate.model_version != to:  # only a canary was in the way
            ended = conductor.roll_back_service(settings.service, who, reason, to)
            _announce(ended)
    if ended.state is not ReleaseState.ROLLED_BACK:
        raise typer.Exit(1)


def require_bundle(candidate: Candidate) -> None:
    """Raise NotFoundError when a version's bundle lay on this machine and is gone."""
    address = urlsplit(candidate.bundle_uri)
    places = Path(unquote(address.path)), Settings.read().home / "bundles" / candidate.bundle_digest
    if address.scheme == "file" and not any(place.is_dir() for place in places):
        raise NotFoundError(
            f"the bundle of version {candidate.model_version} is gone from {address.path}: "
            "restore it from a backup, or release the version anew"
        )


def _start_release(settings: Settings, conductor: "Conductor", release: "Release") -> str:
    """Start the release flow as the watch does, once for both; say who carries it out."""
    waiting = conductor.next_waiting(settings.service)
    if waiting is None or waiting.release_id != release.release_id:
        return "another release is active; the watch starts this one when that has ended"
    later = "the watch starts its canary within a minute of Prefect's return"
    if not settings.prefect_url:
        return f"Prefect's address is unknown (`serin up` starts it); {later}"
    from cli.environment import stack_environment

    os.environ.update(stack_environment(settings))  # Prefect reads its address when imported
    import httpx
    from prefect.exceptions import PrefectException

    from tasks.recovering import start_next

    try:
        start_next.fn(release.release_id)
    except (httpx.HTTPError, PrefectException, RuntimeError, UnavailableError) as error:
        return f"Prefect does not start the release flow ({error}); {later}"
    return "its canary starts with the release flow; `serin status --watch` shows it"


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
    routes = from_routes(settings)
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
