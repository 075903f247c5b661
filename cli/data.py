"""`serin ingest`, `serin quarantine`, `serin gc`: what comes in, what was refused, what can go."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from core.errors import InputError, SerinError
from core.settings import Settings

if TYPE_CHECKING:
    from lake.table import Lake

MIB = 1 << 20


def ingest(
    data: Annotated[str, typer.Argument(help="folder, glob or file of days (path or URL)")],
    prompt_field: Annotated[str, typer.Option(help="column of the user's text")] = "prompt",
    response_field: Annotated[str, typer.Option(help="column of the answer")] = "response",
    slice_field: Annotated[str | None, typer.Option(help="column of the slice")] = None,
    id_field: Annotated[str | None, typer.Option(help="column of the record id")] = None,
    processes: Annotated[int, typer.Option(min=1, help="processes for large files")] = 2,
    tokenizer: Annotated[str, typer.Option(help="count tokens with this tokenizer.json")] = "",
    store_tokens: Annotated[bool, typer.Option(help="store the rows' token ids as well")] = False,
    report: Annotated[
        Path | None, typer.Option(help="folder for the record contract's report")
    ] = None,
) -> None:
    """Take days into the lake without training on them; known files add nothing.

    A daily run does the same as its first step.
    """
    from core.contracts import IntakeEvidence
    from lake.config import FieldMapping, IngestConfig
    from lake.progress import telling
    from lake.snapshots import flagged_versions
    from lake.sources import list_days
    from validation.contract_report import write_contract_report
    from validation.records import check_rows, describe

    mapping = FieldMapping(
        prompt=prompt_field, response=response_field, slice_name=slice_field, id=id_field
    )
    if store_tokens and not tokenizer:
        raise InputError("--store-tokens needs --tokenizer")
    config = IngestConfig(
        data=data,
        mapping=mapping,
        processes=processes,
        tokenizer=tokenizer,
        tokens_stored=store_tokens,
    )
    lake, flagged = _lake(), flagged_versions(Settings.read().folder("snapshots"))
    evidence: list[IntakeEvidence] = []
    for day_file in list_days(data).days:
        with telling(say=typer.echo) as watch:
            done = lake.ingest_day(day_file, config, check_rows, flagged, watch, describe)
        evidence += [done.evidence] if done.evidence is not None else []
        known = "  (known)" if done.already_ingested else ""
        typer.echo(
            f"{done.day}  {done.rows_in} rows: {done.kept} kept, {done.duplicates} duplicates, "
            f"{done.quarantined} quarantined{known}"
        )
    if report is not None and evidence:
        written = write_contract_report(IntakeEvidence.joined(evidence), report)
        typer.echo(f"record contract: {written.path}")


quarantine = typer.Typer(add_completion=False, invoke_without_command=True)


@quarantine.callback()
def _list(
    context: typer.Context,
    day: Annotated[str | None, typer.Option(help="only this daily file")] = None,
    reason: Annotated[str | None, typer.Option(help="only reasons that hold this text")] = None,
    limit: Annotated[int, typer.Option(min=1, help="at most so many rows")] = 100,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON list")] = False,
) -> None:
    """List the rows that were refused, with the reason for each; show and re-admit them."""
    if context.invoked_subcommand is not None:
        return
    from lake.readmission import quarantined_rows

    rows = quarantined_rows(_lake(), day, reason, limit)
    if json_output:
        typer.echo(_json(rows))
        return
    if not rows:
        typer.echo("nothing is in quarantine")
    for row in rows:
        mark = "  (re-admitted)" if row["readmitted_at"] else ""
        typer.echo(
            f"{row['id']}  {row['day']}  {row['source']}:{row['row']}  {row['reason']}{mark}"
        )


@quarantine.command()
def show(
    row: Annotated[str, typer.Argument(help="id from the list")],
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show one refused row: where it stood, why it was refused, its text without personal data."""
    from lake.readmission import quarantined_row

    found = quarantined_row(_lake(), row)
    if json_output:
        typer.echo(_json(found))
        return
    for name, value in found.items():
        if value not in (None, ""):
            typer.echo(f"{name:15} {value}")


@quarantine.command()
def readmit(
    file: Annotated[str, typer.Argument(help="corrected rows (path or URL), as daily files are")],
    row: Annotated[
        str | None, typer.Option(help="the file's one row corrects this quarantined one")
    ] = None,
    day: Annotated[
        str | None, typer.Option(help="the file is this day's whole file, with the same rows")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Take corrected rows in by the same contract, and mark the refused ones as re-admitted.

    Without --row or --day each row names the quarantined one in a field `quarantine_id`.
    """
    from lake.readmission import readmit
    from lake.sources import list_days
    from validation.records import check_rows

    done = readmit(_lake(), list_days(file).days[0], check_rows, row=row, day=day)
    told = {
        "readmitted": done.readmitted,
        "refused_again": done.refused_again,
        "kept": done.report.kept,
        "duplicates": done.report.duplicates,
    }
    if json_output:
        typer.echo(_json(told))
        return
    typer.echo(
        f"{len(done.readmitted)} rows re-admitted ({done.report.kept} new, "
        f"{done.report.duplicates} duplicates), {done.refused_again} refused again"
    )


def _lake() -> "Lake":
    from lake.index import FOLDER as INDEX_FOLDER
    from lake.table import Lake

    settings = Settings.read()
    return Lake(settings.lake_uri, index_folder=settings.folder(INDEX_FOLDER))


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=str)).decode()


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
    from cli.retention import Leftover, RetentionConfig, leftovers

    config = RetentionConfig(keep=keep, days=days, audit_days=audit_days, hours_min=hours_min)
    found = list(leftovers(Settings.read(), config))
    kept: list[Leftover] = []
    for item in found:
        size = "" if item.bytes is None else f"  {item.bytes / MIB:.1f} MiB"
        typer.echo(f"{'deleting' if delete else 'would delete'} {item.kind} {item.name}{size}")
        if delete:
            try:
                item.remove()
            except SerinError as error:
                typer.echo(f"  kept: {error}")
                kept.append(item)
    found = [item for item in found if item not in kept]
    total = sum(item.bytes or 0 for item in found) / MIB
    typer.echo(f"{len(found)} left-overs, {total:.1f} MiB{' deleted' if delete else ''}")
    if found and not delete:
        typer.echo("nothing was deleted; --delete does it")
