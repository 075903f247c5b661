"""`serin quarantine` and `serin gc`: what was refused, and what is no longer needed."""

from typing import Annotated

import msgspec
import typer

from core.settings import Settings

MIB = 1 << 20


def quarantine(
    day: Annotated[str | None, typer.Option(help="only this daily file")] = None,
    reason: Annotated[str | None, typer.Option(help="only reasons that hold this text")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many rows")] = 100,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON list")] = False,
) -> None:
    """List the rows that were refused, with the reason for each."""
    from lake.table import Lake

    rows = Lake(Settings.read().lake_uri).quarantined(day, reason, limit)
    if json_output:
        typer.echo(msgspec.json.format(msgspec.json.encode(rows, enc_hook=str)).decode())
        return
    if not rows:
        typer.echo("nothing is in quarantine")
    for row in rows:
        typer.echo(f"{row['day']}  {row['source']}:{row['row']}  {row['reason']}")


def gc(
    delete: Annotated[bool, typer.Option("--delete", help="act; without it nothing goes")] = False,
    keep: Annotated[
        int, typer.Option(min=0, help="newest bundles, adapters, snapshots and stories to keep")
    ] = 5,
    days: Annotated[float, typer.Option(min=0, help="age of reports, logs and runs")] = 30,
    audit_days: Annotated[float, typer.Option(min=0, help="age of the audit's segments")] = 365,
    hours_min: Annotated[
        float, typer.Option(min=0, help="nothing touched within so many hours goes")
    ] = 24,
) -> None:
    """List what nothing refers to any more, and delete it on demand.

    Stable, previous, lately stable versions and open releases are always kept.
    """
    from cli.retention import RetentionConfig, leftovers

    config = RetentionConfig(keep=keep, days=days, audit_days=audit_days, hours_min=hours_min)
    found = list(leftovers(Settings.read(), config))
    for item in found:
        size = "" if item.bytes is None else f"  {item.bytes / MIB:.1f} MiB"
        typer.echo(f"{'deleting' if delete else 'would delete'} {item.kind} {item.name}{size}")
        if delete:
            item.remove()
    total = sum(item.bytes or 0 for item in found) / MIB
    typer.echo(f"{len(found)} left-overs, {total:.1f} MiB{' deleted' if delete else ''}")
    if found and not delete:
        typer.echo("nothing was deleted; --delete does it")
