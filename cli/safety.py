"""`serin safety check`: runs the safety chain over a file of texts and prints what it decides."""

import csv
import json
from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from core.errors import InputError
from core.settings import Settings

TEXT_FIELDS = ("text", "TEXT", "content", "prompt", "comment", "message", "query")
"""Column or field that holds the text where --text-field does not name it: the first of these."""
SHOWN_CHARACTERS = 60
FIELD_BYTES_MAX = 1 << 24

safety = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Try the safety chain on texts."
)


class Speaker(StrEnum):
    """Who said the texts."""

    USER = "user"
    ASSISTANT = "assistant"


@safety.callback()
def overview() -> None:
    """Try the safety chain on texts."""


@safety.command()
def check(
    file: Annotated[Path, typer.Argument(help="lines of text, .csv or .jsonl; - is stdin")],
    text_field: Annotated[
        str | None, typer.Option(help="column or field with the text; default: text and its like")
    ] = None,
    role: Annotated[
        Speaker, typer.Option(help="as input of a user or as output of the assistant")
    ] = Speaker.USER,
    policy: Annotated[
        Path | None, typer.Option(help="policy as YAML; default: the one in force")
    ] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Print decision, category and score of each text, and totals."""
    from serving.safety.active import active_policy
    from serving.safety.chain import build_chain
    from serving.safety.decisions import Context
    from serving.safety.policy import read_policy

    found = read_policy(policy) if policy else active_policy(Settings.read().home)[0]
    chain = build_chain(found)
    context = Context("input" if role is Speaker.USER else "output")
    rows, totals = [], Counter({"rows": 0, "allow": 0, "redact": 0, "block": 0})
    for text in read_texts(file, text_field):
        decision = chain.check(role.value, text, context).decision
        totals.update(["rows", decision.action])
        row: dict[str, Any] = {
            "decision": decision.action,
            "category": decision.category,
            "score": round(decision.score, 4),
            "reason": decision.reason,
        }
        if json_output:
            rows.append(row)
        else:
            typer.echo(_line(row, text))
    chain.close()
    if json_output:
        told = {"rows": rows, "totals": dict(totals), "policy": chain.policy_hash}
        typer.echo(json.dumps(told, ensure_ascii=False))
        return
    counts = ", ".join(f"{totals[name]} {name}" for name in ("allow", "redact", "block"))
    typer.echo(f"{totals['rows']} texts: {counts}; policy {chain.policy_hash[:12]}")


def read_texts(file: Path, field: str | None) -> Iterator[str]:
    """Yield the texts of a file in order. Raises InputError naming the line that is wrong.

    Empty lines of text files and of JSONL are no rows; an empty CSV field is an empty text.
    """
    if str(file) == "-":
        yield from _lines(typer.get_text_stream("stdin"))
        return
    kind = file.suffix.lower()
    read = {".csv": _csv, ".tsv": _csv, ".jsonl": _json_lines, ".ndjson": _json_lines}.get(kind)
    try:
        with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
            if read is not None:
                yield from read(stream, field, file)
            elif field is not None:
                yield from _csv(stream, field, file)
            else:
                yield from _lines(stream)
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def _lines(stream: TextIO) -> Iterator[str]:
    for line in stream:
        text = line.rstrip("\r\n")
        if text.strip():
            yield text


def _csv(stream: TextIO, field: str | None, file: Path) -> Iterator[str]:
    csv.field_size_limit(FIELD_BYTES_MAX)
    reader = csv.DictReader(stream, delimiter="\t" if file.suffix == ".tsv" else ",")
    name = _field(list(reader.fieldnames or []), field, file)
    try:
        for row in reader:
            yield row[name] or ""
    except csv.Error as error:
        raise InputError(f"{file}, line {reader.line_num}: {error}") from error


def _json_lines(stream: TextIO, field: str | None, file: Path) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise InputError(f"{file}, line {number} is not JSON: {error}") from error
        if isinstance(row, str) and field is None:
            yield row
            continue
        if not isinstance(row, dict):
            raise InputError(f"{file}, line {number} must be an object with a field of text")
        value = row[_field(list(row), field, file)]
        if not isinstance(value, str):
            raise InputError(f"{file}, line {number}: the text is {type(value).__name__}")
        yield value


def _field(names: list[str], wanted: str | None, file: Path) -> str:
    if wanted is not None and wanted in names:
        return wanted
    known = [name for name in TEXT_FIELDS if name in names]
    if wanted is None and known:
        return known[0]
    if wanted is None and len(names) == 1:
        return names[0]
    missing = wanted or "text"
    raise InputError(f"{file} has no field {missing}; name one with --text-field: {names}")


def _line(row: dict[str, Any], text: str) -> str:
    shown = " ".join(text.split())
    shown = shown if len(shown) <= SHOWN_CHARACTERS else shown[: SHOWN_CHARACTERS - 3] + "..."
    return f"{row['decision']:<7}{row['category']:<24}{row['score']:<8.4f}{shown}"
