"""`serin health`: how every row of the health matrix stands, and a person's word over it.

Shows what the watch found last; judges nothing itself.
"""

import getpass
import json
import re
import time
from datetime import UTC, datetime
from enum import StrEnum
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any
from uuid import uuid4

import msgspec
import typer

from cli.readiness import fetch_status_and_json
from cli.release import open_ledger
from core.errors import InputError, NotFoundError, UnavailableError
from core.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tasks.remembering import Notes
    from validation.health_config import Mode

REFRESH_SECONDS = 2.0
PIPE_WIDTH = 200
STALE_SECONDS = 180.0
SPAN = re.compile(r"(\d+(?:\.\d+)?)([smhd])")
SPAN_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
SIGNAL_EVENT = "serin.health.signal"
SIGNAL_SECONDS_MAX = 30.0
COLOURS = {"ok": "green", "breached": "red", "acting": "red", "escalated": "red"}

health = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    help="How every row of the health matrix stands.",
)


class Said(StrEnum):
    """What a person may say of a row; `auto` lifts what was said before."""

    OFF = "off"
    DRY_RUN = "dry-run"
    AUTO = "auto"


@health.callback()
def show(
    context: typer.Context,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    watch: Annotated[bool, typer.Option(help="stay and show it live until Ctrl-C")] = False,
) -> None:
    """Show what the watch found last: values, thresholds, what was done, what people said."""
    if context.invoked_subcommand is not None:
        return
    from rich.console import Console

    notes = _notes()
    if json_output:
        typer.echo(json.dumps(view(notes, time.time()), indent=2))
    elif watch:
        _watch(notes)
    else:
        console = Console()
        console = console if console.is_terminal else Console(width=PIPE_WIDTH)
        console.print(render(view(notes, time.time())))


@health.command()
def override(
    row: Annotated[str, typer.Argument(help="a row's name, or `all`")],
    said: Annotated[Said, typer.Argument(help="off: do nothing; dry-run: only tell; auto: lift")],
    span: Annotated[str, typer.Option("--for", help="how long: 30m, 2h, 1d")] = "1h",
) -> None:
    """Keep the matrix from acting on a row for a while; what it has done stays as it is."""
    from tasks.remembering import ALL_ROWS, Override
    from validation.health_config import DEFAULT_ROWS

    notes, now = _notes(), time.time()
    known = {ALL_ROWS, *DEFAULT_ROWS, *notes.read().states}
    if row not in known:
        raise NotFoundError(f"there is no row {row!r}; rows are {', '.join(sorted(known))}")
    if said is Said.AUTO:
        notes.override(row, None, now)
        typer.echo(f"{row} is the watch's again")
        return
    seconds = read_span(span)
    mode: Mode = "off" if said is Said.OFF else "dry_run"
    notes.override(row, Override(mode, now + seconds, _login()), now)
    typer.echo(f"{row} is {said.value} for {span}")


@health.command()
def signal(reason: Annotated[str, typer.Argument(help="what was seen")]) -> None:
    """Let the watch look now instead of within a minute, through Prefect's automation."""
    settings = Settings.read()
    if not settings.prefect_url:
        raise NotFoundError("no Prefect server is known; `serin up` starts one")
    # Prefect's own `emit_event` tells nobody when it fails.
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(UTC),
        "event": SIGNAL_EVENT,
        "resource": {"prefect.resource.id": f"serin.service.{settings.service}"},
        "payload": {"reason": reason},
    }
    url = f"{settings.prefect_url}/events"
    status, _ = fetch_status_and_json(url, SIGNAL_SECONDS_MAX, [event])
    if status != HTTPStatus.NO_CONTENT:
        why = "it does not answer" if status is None else f"status {status}"
        raise UnavailableError(f"Prefect does not take the signal ({why})")
    typer.echo("the watch was asked to look")


def view(notes: "Notes", now: float) -> dict[str, Any]:
    """Return everything as JSON-safe values; `seconds_ago` is None before the first look."""
    remembered = notes.read()
    overrides = notes.overrides(now)
    rows = {}
    for name, row in remembered.config.get("rows", {}).items():
        state = msgspec.to_builtins(remembered.states.get(name)) or {}
        readings = {
            condition["metric"]: msgspec.to_builtins(remembered.readings.get(condition["metric"]))
            for condition in row["conditions"]
        }
        rows[name] = {
            "stands": stands(row, state, readings),
            "readings": readings,
            "conditions": row["conditions"],
            "recovery": row["recovery"],
            "mode": row["mode"],
            "state": state,
            "error": remembered.errors.get(name),
        }
    return {
        "time_seconds": remembered.time_seconds,
        "seconds_ago": now - remembered.time_seconds if remembered.time_seconds else None,
        "dry_run": remembered.config.get("dry_run"),
        "rows": rows,
        "held": msgspec.to_builtins(remembered.held),
        "overrides": msgspec.to_builtins(overrides),
        "errors": remembered.errors,
    }


def stands(row: dict[str, Any], state: dict[str, Any], readings: dict[str, Any]) -> str:
    """Return one word: ok, breached, acting, escalated, would act, waiting, unknown or absent."""
    if state.get("active"):
        word = "escalated" if state["escalated"] else "acting"
        return "would act" if state["dry"] else word
    if state.get("deferred"):
        return "waiting"
    found = [readings[condition["metric"]] for condition in row["conditions"]]
    if any(one and one["absent"] for one in found):
        return "absent"
    if any(one is None or one["value"] is None for one in found):
        return "unknown"
    return "breached" if state.get("breached_since") is not None else "ok"


def render(seen: dict[str, Any]) -> "RenderableType":
    """Return a view as a table for a terminal."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    ago = seen["seconds_ago"]
    if ago is None:
        return Text("the watch has not looked yet; it runs each minute once `serin up` runs")
    late = " (the watch does not run)" if ago > STALE_SECONDS else ""
    lines: list[Any] = [Text(f"looked {ago:.0f} s ago{late}", style="yellow" if late else "")]
    if seen["dry_run"]:
        lines.append(Text("dry run: nothing is done", style="yellow"))
    table = Table("row", "stands", "figures", "recovery", "done", box=None, header_style="dim")
    for name, row in seen["rows"].items():
        style = COLOURS.get(row["stands"], "yellow")
        table.add_row(
            name, Text(row["stands"], style=style), _figures(row), row["recovery"], _done(row)
        )
    lines.append(table)
    for name, one in seen["overrides"].items():
        left = (one["until_seconds"] - time.time()) / SPAN_SECONDS["m"]
        lines.append(Text(f"{name} is {one['mode']} by {one['who']}, {left:.0f} min left"))
    return Group(*lines)


def _figures(row: dict[str, Any]) -> str:
    said = []
    for condition in row["conditions"]:
        reading = row["readings"][condition["metric"]]
        if reading is None or reading["value"] is None:
            said.append(f"{condition['metric']}: {reading['why'] if reading else 'not yet'}")
        else:
            said.append(f"{condition['metric']} {reading['value']:.4g} of {condition['above']:g}")
    return ", ".join(said)


def _done(row: dict[str, Any]) -> str:
    if row["error"]:
        return str(row["error"])
    attempts = row["state"].get("attempts") or 0
    helped = {True: ", helped", False: ", did not help"}.get(row["state"].get("helped"), "")
    return f"{attempts} tries{helped}" if row["state"].get("active") else ""


def read_span(text: str) -> float:
    """Return `30m`, `2h` and the like in seconds. Raises InputError."""
    found = SPAN.fullmatch(text)
    if found is None or not float(found[1]):
        raise InputError(f"--for {text!r} is no span of time: write 30m, 2h or 1d")
    return float(found[1]) * SPAN_SECONDS[found[2]]


def _notes() -> "Notes":
    from tasks.remembering import Notes

    settings = Settings.read()
    ledger = open_ledger(settings)
    if ledger is None:
        raise NotFoundError("there is no ledger yet; `serin up` or `serin run` makes one")
    return Notes(ledger, settings.namespace, settings.service)


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _watch(notes: "Notes") -> None:
    from rich.live import Live

    with Live(render(view(notes, time.time())), auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REFRESH_SECONDS)
                live.update(render(view(notes, time.time())), refresh=True)
        except KeyboardInterrupt:
            return
