"""`serin audit verify` and `serin audit find ID`: is the record whole, and what does it say."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from core.errors import IntegrityError, NotFoundError
from core.settings import Settings

if TYPE_CHECKING:
    from observability.audit_rows import AuditRow

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]

audit = typer.Typer(
    add_completion=False, no_args_is_help=True, help="The record of every request and its answer."
)


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
            retired = f", the first {chain.retired_rows} retired" if chain.retired_rows else ""
            torn = "; its last row is torn: the process was killed" if chain.torn else ""
            typer.echo(f"{chain.process}: {chain.rows} rows{retired}{torn}")
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
    as_json: JsonOption = False,
) -> None:
    """Print every row about a request or an answer; as JSON one object per line."""
    from observability.audit_segments import find_rows

    found = list(find_rows(Settings.read().home / "audit", name))
    for process, row in found:
        if as_json:
            shown = {"process": process, **msgspec.to_builtins(row)}
            typer.echo(msgspec.json.encode(shown).decode())
        else:
            typer.echo("\n".join(_told(process, row)))
    if not found:
        raise NotFoundError(f"no row names {name}; ids are in x-request-id and in the answer's id")


def _told(process: str, row: "AuditRow") -> Iterator[str]:
    """Yield a row's lines for people: what happened, who asked, what answered, what was decided."""
    when = datetime.fromtimestamp(row.time_seconds, UTC).isoformat(" ", "seconds")
    marks = [row.kind, str(row.status), *(["blocked"] if row.blocked else []), row.reason]
    times = f" ({row.count} times)" if row.count > 1 else ""
    yield f"{when}  {' '.join(filter(None, marks))}{times}  [{process}]"
    named = {
        "request": row.request_id,
        "answer": row.response_id,
        "key": row.key,
        "client": row.client,
        "version": row.model_version,
        "revision": row.revision,
        "bundle": row.bundle_digest,
        "policy": row.policy,
        "input": row.input_digest,
    }
    for name, value in named.items():
        if value:
            yield f"  {name:9} {value}"
    if row.output_digests:
        scanned = f"{row.bytes_scanned} bytes scanned, {row.bytes_sent} sent"
        yield f"  {'output':9} segments: {len(row.output_digests)}, {scanned}"
        yield from (f"  {'':9} {digest}" for digest in row.output_digests)
    for made in row.decisions:
        why = f" {made.category}" if made.category else ""
        figures = f"score {made.score:.2f}, {1000 * made.seconds:.2f} ms"
        yield f"  {made.role:9} {made.filter}: {made.decision}{why} ({figures})"
    for name, text in (row.text or {}).items():
        yield f"  {name:9} {text!r}"
