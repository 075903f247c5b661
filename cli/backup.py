"""`serin backup` and `serin restore`: keep what a new machine needs, and make a home from it."""

import os
import time
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from core.backup_place import BackupPlace
from core.errors import InputError
from core.settings import Settings

ACTIONS = ("list", "verify", "drill")
MIB = 1 << 20


def backup(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[list|verify|drill] [TO]",
            help="a folder or s3://...; without it SERIN_BACKUP_URI",
        ),
    ] = None,
    days: Annotated[
        float, typer.Option(min=0.0, help="older backups go, never the last good one")
    ] = 30.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="send every file again: heals a damaged place")
    ] = False,
    backup_id: Annotated[str, typer.Option("--backup", help="verify this one only")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON value")] = False,
) -> None:
    """Back up the home; list the backups, check their files, or drill a restore.

    `verify` exits 1 when any backup is partial or damaged, `drill` when it cannot be restored.
    """
    given = list(words or [])
    action = given.pop(0) if given and given[0] in ACTIONS else "make"
    if len(given) > 1:
        raise InputError(f"one place at most, not {' '.join(given)}; a folder named list is ./list")
    settings = Settings.read()
    place = BackupPlace(given[0] if given else settings.backup_uri)
    if action == "list":
        _list(place, json_output)
    elif action == "verify":
        _verify(place, backup_id, json_output)
    elif action == "drill":
        _drill(settings, place, json_output)
    else:
        from tasks.backups import back_up

        made = back_up(settings, place, days, whole)
        typer.echo(
            _json(_row(made.manifest.backup_id, made.manifest, "")) if json_output else made.line
        )
        if problem := made.manifest.facts["fingerprint_problem"]:
            typer.echo(f"stable's answers could not be recorded: {problem}", err=True)


def restore(
    source: Annotated[str, typer.Argument(metavar="FROM", help="a folder or s3://...")],
    home: Annotated[Path, typer.Option(help="the new home: a folder that is empty or missing")],
    backup_id: Annotated[str, typer.Option("--backup", help="this one, not the newest")] = "",
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Make a home again from a backup. Then `SERIN_HOME=NEW serin up` serves what it holds."""
    from tasks.restoring import restore as restore_home

    settings = Settings.read({**os.environ, "SERIN_HOME": str(home)})
    elsewhere = "" if settings.ledger_url.startswith("sqlite") else settings.ledger_url
    found = restore_home(BackupPlace(source), settings.home, backup_id, elsewhere)
    os.environ["SERIN_HOME"] = str(settings.home)  # what follows acts in the restored home
    from tasks.erasing import erase_again

    erased = erase_again()
    if json_output:
        typer.echo(_json({**msgspec.to_builtins(found), "erased_again": erased}))
        return
    typer.echo(
        f"restored {found.backup_id} into {settings.home} in {found.seconds:.1f} s; the ledger "
        f"goes to event {found.ledger_seq} and verifies; stable is version "
        f"{found.stable_version or 'none'}"
    )
    for release_id in found.active_releases:
        typer.echo(f"release {release_id} was under way: the keeper takes it back after serin up")
    if erased:
        typer.echo(
            f"the backup is older than the erasure of {erased} records: they were erased again"
        )
    for warning in found.warnings:
        typer.echo(f"warning: {warning}", err=True)


def _list(place: BackupPlace, json_output: bool) -> None:
    kept = place.kept()
    if json_output:
        typer.echo(_json([_row(item.backup_id, item.manifest, item.problem) for item in kept]))
        return
    if not kept:
        typer.echo(f"{place.address} holds no backup")
    for item in kept:
        found = item.manifest
        if found is None:
            typer.echo(f"{item.backup_id}  not whole: {item.problem}")
            continue
        stable = found.facts.get("stable_version") or "none"
        when = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(found.at_seconds))
        typer.echo(
            f"{item.backup_id}  {when}  {found.bytes / MIB:.1f} MiB  {len(found.entries)} files  "
            f"stable {stable}  ledger to event {found.ledger_seq}"
        )


def _verify(place: BackupPlace, backup_id: str, json_output: bool) -> None:
    from tasks.restoring import copied_ledger

    kept = [item for item in place.kept() if backup_id in ("", item.backup_id)]
    if not kept:
        place.manifest(backup_id)
    found = {
        item.backup_id: place.problems(item.manifest) if item.manifest else [item.problem]
        for item in kept
    }
    segments, problems = copied_ledger(place)
    problems = [problem for problem in problems if not problem.startswith("backup ")]
    if json_output:
        typer.echo(_json({"backups": found, "ledger": problems}))
    else:
        for name, said in found.items():
            typer.echo(f"{name}  {'good' if not said else '; '.join(said)}")
        typer.echo(f"ledger to event {segments[-1].last_seq}: {'; '.join(problems) or 'good'}")
    if problems or any(found.values()):
        raise typer.Exit(1)


def _drill(settings: Settings, place: BackupPlace, json_output: bool) -> None:
    from tasks.restoring import drill

    place.manifest()  # where there is no backup, nothing is made
    folder = settings.folder("reports") / time.strftime("drill-%Y%m%dT%H%M%S", time.gmtime())
    folder.mkdir(parents=True, exist_ok=True)
    done = drill(settings, place, folder)
    typer.echo(_json(done) if json_output else done.line)
    if not done.passed:
        raise typer.Exit(1)


def _row(backup_id: str, manifest: object, problem: str) -> dict[str, object]:
    found = msgspec.to_builtins(manifest) or {}
    found.pop("entries", None)
    return {**found, "backup_id": backup_id, "problem": problem}


def _json(value: object) -> str:
    return msgspec.json.format(msgspec.json.encode(value), indent=1).decode()
