"""`serin audit verify` and `serin audit find ID`: is the record whole, and what does it say."""

from typing import Annotated

import msgspec
import typer

from core.errors import IntegrityError, NotFoundError
from core.settings import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]

audit = typer.Typer(no_args_is_help=True, help="The record of every request and its answer.")


@audit.command()
def verify(as_json: JsonOption = False) -> None:
    """Check every row against its chain and the signed index; exit code 1 for any edit or gap."""
    from core.keys import read_key
    from observability.audit_segments import verify_audit

    home = Settings.read().home
    report = verify_audit(home / "audit", read_key(home / "control" / "audit.key"))
    if as_json:
        typer.echo(msgspec.json.encode(report).decode())
    else:
        for chain in report.chains:
            torn = "; its last row is torn: the process was killed" if chain.torn else ""
            typer.echo(f"{chain.process}: {chain.rows} rows{torn}")
            for problem in chain.problems:
                typer.echo(f"  WRONG: {problem}")
        for problem in report.problems:
            typer.echo(f"WRONG: {problem}")
        if not report.chains:
            typer.echo("nothing was audited yet")
    if not report.sound:
        raise IntegrityError("the audit is not what was written; keep a copy and find out why")


@audit.command()
def find(
    name: Annotated[str, typer.Argument(metavar="ID", help="id of a request or of an answer")],
) -> None:
    """Print every row about a request or an answer, one JSON object per line."""
    from observability.audit_segments import find_rows

    found = list(find_rows(Settings.read().home / "audit", name))
    for process, row in found:
        typer.echo(msgspec.json.encode({"process": process, **msgspec.to_builtins(row)}).decode())
    if not found:
        raise NotFoundError(f"no row names {name}; ids are in x-request-id and in the answer's id")
