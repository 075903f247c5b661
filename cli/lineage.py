"""`serin lineage` and `serin forget`: where a record went, and how it is taken out again."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from core.errors import InputError

IDS_MAX = 100_000


def lineage(
    record_id: Annotated[str, typer.Argument(help="id of a record")],
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Tell which snapshots and model versions hold a record."""
    from tasks.lineage import trace_record

    found = trace_record(record_id)
    if json_output:
        typer.echo(msgspec.json.format(msgspec.json.encode(found)).decode())
        return
    state = "erased" if found.erased else "in the lake" if found.in_lake else "not in the lake"
    typer.echo(f"{record_id}: {state}")
    for name, role in found.snapshots.items():
        typer.echo(f"  snapshot {name[:12]}  as {role.replace('_', '-')}")
    for version, role in found.trained_on.items():
        typer.echo(f"  version {version}  was trained on it ({role})")
    for version in found.descends_from:
        typer.echo(f"  version {version}  descends from such a version")


def forget(
    record_ids: Annotated[list[str] | None, typer.Argument(help="ids of records")] = None,
    file: Annotated[Path | None, typer.Option(help="a file of ids, one a line")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="act; without it nothing is changed")] = False,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Erase records from the lake, snapshots, reports and caches, and keep them out."""
    from tasks.erasing import erase, plan_erasure

    plan = plan_erasure(_ids(record_ids or [], file))
    told = {
        "records": len(plan.found),
        "unknown": list(plan.unknown),
        "quarantined": plan.quarantined,
        "snapshots": list(plan.snapshots),
        "trained_on": list(plan.trained_on),
        "descends_from": list(plan.descends_from),
        "files": [{"path": str(item.path), "action": item.action} for item in plan.traces],
        "done": yes,
    }
    if yes:
        done = erase(plan)
        told["tombstones"] = dict(done.tombstones)
        told["unmarked"] = done.unmarked
    if json_output:
        typer.echo(msgspec.json.format(msgspec.json.encode(told)).decode())
        return
    verb = "erased" if yes else "would erase"
    typer.echo(f"{verb} {len(plan.found)} rows, {plan.quarantined} quarantined texts")
    for item in plan.traces:
        typer.echo(f"  {item.action if yes else 'would ' + item.action} {item.path}")
    for name in plan.snapshots:
        typer.echo(f"  snapshot {name[:12]} loses records; its id stays")
    for record_id in plan.unknown:
        typer.echo(f"  {record_id} is not here; it will not be let in")
    _tell_versions(plan.trained_on, plan.descends_from)
    if not yes:
        typer.echo("nothing was changed; --yes does it")
    elif told["unmarked"]:
        typer.echo(f"versions are not marked in the registry: {told['unmarked']}; run it again")


def _tell_versions(trained_on: tuple[str, ...], descends_from: tuple[str, ...]) -> None:
    if trained_on:
        carry = ", ".join((*trained_on, *descends_from))
        typer.echo(
            f"versions {carry} were trained on them, or continue such a version: their weights may "
            "still carry what they learnt, until a base and adapter are trained without it"
        )


def _ids(given: list[str], file: Path | None) -> list[str]:
    """Return the ids to erase. Raises InputError without any, or for a file that is none."""
    lines: list[str] = []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{file} cannot be read: {error}") from error
    found = [record_id for record_id in (*given, *(line.strip() for line in lines)) if record_id]
    if not found or len(found) > IDS_MAX:
        raise InputError(f"{len(found)} ids; give 1 to {IDS_MAX}, as arguments or with --file")
    return found
