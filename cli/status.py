"""`serin status`: what serves, the running release, the last runs; once, live, or as JSON."""

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from cli.costs import UsageView
from cli.evidence import evidence_table
from cli.overview import ArmView, Overview, PartView, Reader, ReleaseView, RunView
from core.settings import Settings

if TYPE_CHECKING:
    from rich.console import RenderableType

REFRESH_SECONDS = 2.0
PIPE_WIDTH = 200
UNKNOWN = "unknown"


def status(
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    watch: Annotated[bool, typer.Option(help="stay and show it live until Ctrl-C")] = False,
) -> None:
    """Show what serves, the running release and the last runs; unknown where nobody answers."""
    reader = Reader(Settings.read())
    if json_output:
        typer.echo(msgspec.json.format(msgspec.json.encode(reader.read())).decode())
    elif watch:
        _watch(reader)
    else:
        from rich.console import Console

        console = Console()
        # A file or pipe has no width to fit into: nothing is cut there.
        console = console if console.is_terminal else Console(width=PIPE_WIDTH)
        console.print(render(reader.read()))


def _watch(reader: Reader) -> None:
    from rich.live import Live

    with Live(render(reader.read()), screen=False, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(REFRESH_SECONDS)
                reader.settings = Settings.read()
                live.update(render(reader.read()), refresh=True)
        except KeyboardInterrupt:
            return


def render(seen: Overview) -> "RenderableType":
    """Return an overview as tables for a terminal."""
    from rich.console import Group
    from rich.text import Text

    when = datetime.fromtimestamp(seen.time_seconds).strftime("%H:%M:%S")
    lines = [
        Text(f"{seen.service}  {when}  {seen.home}", style="bold"),
        _parts(seen.parts),
        _serving(seen),
        *_usage(seen.usage),
        _release(seen.active, seen.waiting, seen.last),
        _runs(seen.runs),
        *(Text(note, style="yellow") for note in seen.notes),
    ]
    return Group(*lines)


def _parts(parts: dict[str, PartView]) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if not parts:
        return Text("nothing runs here; `serin up` starts everything", style="yellow")
    table = Table("part", "state", "address", "pid", "restarts", box=None, header_style="dim")
    colour = {"ready": "green", "starting": "yellow", "down": "red"}
    for name, part in parts.items():
        shown = Text(part.state, style=colour.get(part.state, ""))
        table.add_row(name, shown, part.address or "", str(part.pid or ""), str(part.restarts))
    return table


def _serving(seen: Overview) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if seen.serving is None:
        return Text(f"serving: {UNKNOWN} (the control plane does not answer)", style="yellow")
    if not seen.serving:
        return Text("serving: nothing yet")
    span = f"last {seen.counted_seconds:.0f} s" if seen.counted_seconds else "since gateway start"
    columns = ("arm", "version", "share", f"requests {span}", "errors", "p50", "p95", "revision")
    table = Table(*columns, box=None, header_style="dim")
    for name, arm in seen.serving.items():
        table.add_row(name, *_arm(arm))
    return table


def _arm(arm: ArmView) -> tuple[str, ...]:
    return (
        arm.model_version or UNKNOWN,
        f"{arm.share_percent} %",
        UNKNOWN if arm.requests is None else str(arm.requests),
        "-" if arm.error_share is None else f"{100 * arm.error_share:.2f} %",
        "-" if arm.p50_seconds is None else f"{1000 * arm.p50_seconds:.0f} ms",
        "-" if arm.p95_seconds is None else f"{1000 * arm.p95_seconds:.0f} ms",
        arm.revision,
    )


def _usage(usage: tuple[UsageView, ...] | None) -> Iterator["RenderableType"]:
    """What the predictors have used since they started, with its price where one is configured."""
    from rich.table import Table

    if not usage:
        return
    columns = ("used by", "tokens in", "tokens out", "CPU s", "GPU s", "cost")
    table = Table(*columns, box=None, header_style="dim")
    for view in usage:
        table.add_row(
            view.revision,
            f"{view.prompt_tokens:.0f}",
            f"{view.generated_tokens:.0f}",
            f"{view.cpu_seconds:.0f}",
            "-" if view.gpu_seconds is None else f"{view.gpu_seconds:.0f}",
            "-" if view.cost is None else f"{view.cost:.4f}",
        )
    yield table


def _release(
    active: ReleaseView | None,
    waiting: tuple[ReleaseView, ...] | None,
    last: tuple[ReleaseView, ...] | None,
) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    if waiting is None or last is None:
        return Text(f"releases: {UNKNOWN} (the ledger does not answer)", style="yellow")
    shown = [*([active] if active else []), *waiting, *last]
    if not shown:
        return Text("releases: none yet")
    columns = ("release", "version", "state", "step", "approvals", "reason")
    table = Table(*columns, box=None, header_style="dim")
    for release in shown:
        state = release.state if release.state != "PROPOSED" else "WAITING"
        step = f"{release.step}/{release.steps} {release.share_percent} %" if release.step else ""
        version = release.model_version
        said = (release.approvals, release.reason)
        table.add_row(release.release_id, version, state, step, *said)
    if active is None or active.evidence is None:
        return table
    return Group(table, evidence_table(active.evidence))


def _runs(runs: tuple[RunView, ...] | None) -> "RenderableType":
    from rich.table import Table
    from rich.text import Text

    if runs is None:
        return Text(f"runs: {UNKNOWN} (Prefect does not answer)", style="yellow")
    if not runs:
        return Text("runs: none yet")
    table = Table("flow", "run", "state", "started", "seconds", box=None, header_style="dim")
    for run in runs:
        seconds = "" if run.seconds is None else f"{run.seconds:.0f}"
        table.add_row(run.flow, run.name, run.state, _local(run.started_at), seconds)
    return table


def _local(text: str | None) -> str:
    if text is None:
        return ""
    moment = datetime.fromisoformat(text)
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone().strftime("%m-%d %H:%M:%S")
