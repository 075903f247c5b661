"""`serin pii`: sensitive data in a file, span by span, and what is left of it in the lake.

Prints places, never the values: a terminal's history is a log like others.
"""

import csv
import io
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from core.errors import InputError, NotFoundError
from core.settings import Settings
from privacy.pii import TYPES, PiiConfig, Scanner, Span
from privacy.token_labels import TokenLabels, TokenLabelsConfig

ROWS_AT_ONCE = 2_000
CSV_FIELD_CHARACTERS_MAX = 64 << 20
TABLES = {".csv": ",", ".tsv": "\t"}
MODEL_HELP = "folder of a token-classification model that finds more names and addresses"

pii = typer.Typer(add_completion=False, no_args_is_help=True)


@pii.callback()
def _group() -> None:
    """Find sensitive data in files, and check what the lake holds."""


@pii.command()
def scan(
    file: Annotated[Path, typer.Argument(help="text lines, CSV, TSV or JSON lines")],
    text_field: Annotated[
        str | None, typer.Option(help="column or key of the text; a JSON line may be a string")
    ] = None,
    types: Annotated[str, typer.Option(help="only these entity types, comma-separated")] = "",
    score_min: Annotated[float, typer.Option(min=0, max=1, help="least certainty")] = 0.5,
    model: Annotated[Path | None, typer.Option(help=MODEL_HELP)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Say where sensitive data stands, row by row: type, characters and certainty."""
    scanner = _scanner(types, score_min, model)
    totals: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for number, spans in enumerate(_scanned(scanner, read_texts(file, text_field)), 1):
        totals.update(span.type for span in spans)
        if json_output:
            rows.append({"spans": spans})
            continue
        for span in spans:
            typer.echo(f"{number}: {span.type} {span.start}..{span.end} {span.score:.2f}")
    if json_output:
        found = {"rows": rows, "totals": dict(sorted(totals.items()))}
        typer.echo(msgspec.json.encode(found).decode())
    else:
        typer.echo(_told(totals) or "nothing was found")


@pii.command()
def report(
    file: Annotated[
        Path | None, typer.Argument(help="a file as for `scan`; without one, the lake")
    ] = None,
    text_field: Annotated[str | None, typer.Option(help="column or key of the text")] = None,
    model: Annotated[Path | None, typer.Option(help=MODEL_HELP)] = None,
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Count findings by type and rows with any: in a file, or in all that the lake stores."""
    scanner = _scanner("", PiiConfig().score_min, model)
    if file is not None:
        parts = {file.name: _counted(scanner, read_texts(file, text_field))}
    else:
        parts = {name: _counted(scanner, texts) for name, texts in _lake_texts().items()}
    if json_output:
        typer.echo(msgspec.json.encode(parts).decode())
        return
    for name, part in parts.items():
        typer.echo(f"{name}: {part['rows']} texts, {part['rows_with_findings']} with findings")
        if part["totals"]:
            typer.echo(f"  {_told(part['totals'])}")


def read_texts(file: Path, text_field: str | None) -> Iterator[str]:
    """Yield a file's texts in order: lines, or the text of each CSV row or JSON line.

    Undecodable bytes become U+FFFD. Raises NotFoundError without the file, InputError where a row
    lacks the field.
    """
    if not file.is_file():
        raise NotFoundError(f"{file} does not exist or is no file")
    with file.open(encoding="utf-8-sig", errors="replace", newline="") as stream:
        suffix = file.suffix.lower()
        if suffix in TABLES:
            yield from _table_texts(stream, TABLES[suffix], text_field, file.name)
        elif suffix in {".jsonl", ".ndjson", ".json"}:
            yield from _json_texts(stream, text_field, file.name)
        else:
            for line in stream:
                yield line.rstrip("\r\n")


def _table_texts(
    stream: io.TextIOBase, delimiter: str, text_field: str | None, name: str
) -> Iterator[str]:
    csv.field_size_limit(CSV_FIELD_CHARACTERS_MAX)
    reader = csv.DictReader((line.replace("\0", "") for line in stream), delimiter=delimiter)
    header = list(reader.fieldnames or [])
    if text_field is None and len(header) == 1:
        text_field = header[0]
    if text_field is None or text_field not in header:
        raise InputError(f"{name} has the columns {header}: name one with --text-field")
    try:
        for row in reader:
            yield row[text_field] or ""
    except csv.Error as error:
        raise InputError(f"{name}, line {reader.line_num}: {error}") from error


def _json_texts(stream: Iterable[str], text_field: str | None, name: str) -> Iterator[str]:
    for number, line in enumerate(stream, 1):
        if not line.strip():
            continue
        try:
            value = msgspec.json.decode(line.encode("utf-8", "replace"))
        except (msgspec.MsgspecError, RecursionError) as error:
            raise InputError(f"{name}, line {number} is no JSON: {error}") from error
        if isinstance(value, dict):
            field = text_field or "text"
            if field not in value:
                keys = sorted(str(key) for key in value)
                raise InputError(
                    f"{name}, line {number} has the keys {keys}: name one with --text-field"
                )
            value = value[field]
        yield value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _scanner(types: str, score_min: float, model: Path | None) -> Scanner:
    wanted = tuple(name.strip().upper() for name in types.split(",") if name.strip())
    unknown = sorted(set(wanted) - set(TYPES))
    if unknown:
        raise InputError(f"unknown types {', '.join(unknown)}; known are {', '.join(TYPES)}")
    recognisers = [] if model is None else [TokenLabels(TokenLabelsConfig(folder=model))]
    return Scanner(PiiConfig(types=wanted, score_min=score_min), recognisers)


def _scanned(scanner: Scanner, texts: Iterable[str]) -> Iterator[list[Span]]:
    batch: list[str] = []
    for text in texts:
        batch.append(text)
        if len(batch) >= ROWS_AT_ONCE:
            yield from scanner.scan_many(batch)
            batch = []
    yield from scanner.scan_many(batch)


def _counted(scanner: Scanner, texts: Iterable[str]) -> dict[str, Any]:
    rows = with_findings = 0
    totals: Counter[str] = Counter()
    for spans in _scanned(scanner, texts):
        rows += 1
        with_findings += bool(spans)
        totals.update(span.type for span in spans)
    return {
        "rows": rows,
        "rows_with_findings": with_findings,
        "totals": dict(sorted(totals.items())),
    }


def _lake_texts() -> dict[str, Iterator[str]]:
    from lake.schema import QUARANTINE, RECORDS
    from lake.table import Lake

    lake = Lake(Settings.read().lake_uri)
    stored = ("messages", "response", "record_id", "slice_name", "language", "source")
    columns = {RECORDS: stored, QUARANTINE: ("text", "reason", "source")}
    return {name: _stored(lake.table(name), chosen) for name, chosen in columns.items()}


def _stored(table: Any, columns: tuple[str, ...]) -> Iterator[str]:
    if table is None:
        return
    reader = table.to_pyarrow_dataset().to_batches(columns=list(columns), batch_size=ROWS_AT_ONCE)
    for batch in reader:
        for name in columns:
            yield from (value for value in batch.column(name).to_pylist() if value)


def _told(totals: "Counter[str] | dict[str, int]") -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(totals.items()))
