"""`serin run`: takes each day through the daily loop under live traffic, and reports.

Knows options, expectations and the table; what happens to a day is the retrain flow's business.
"""

import json
import logging
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from cli.story import Story, read_story
from core.errors import ConfigurationError
from core.settings import Settings

STORIES_KEPT = 2
RESULT_NAME = "run.json"
PIPE_COLUMNS = 120
GOOD_ENDS = {"Promoted", "Rolled back", "Stopped by gates", "Not enough data", "Rejected"}
GOOD_ENDS |= {"Registered, waiting", "Awaiting approval", "Superseded"}


def run(
    data: Annotated[str, typer.Option(help="folder or URL of daily files, one file = one day")],
    story: Annotated[Path | None, typer.Option(help="YAML of expectations and faults")] = None,
    prompt_field: Annotated[str | None, typer.Option(help="column of the prompt")] = None,
    response_field: Annotated[str | None, typer.Option(help="column of the wanted answer")] = None,
    slice_field: Annotated[str | None, typer.Option(help="column of the slice")] = None,
    id_field: Annotated[str | None, typer.Option(help="column of the record id")] = None,
    evaluation: Annotated[str, typer.Option("--eval", help="file of evaluation records")] = "",
    base: Annotated[str | None, typer.Option(help="builtin:small, a folder or a hub id")] = None,
    traffic: Annotated[
        Literal["none", "replay"], typer.Option(help="live traffic while days are released")
    ] = "replay",
    rps: Annotated[float | None, typer.Option(help="live requests per second")] = None,
    days_max: Annotated[int | None, typer.Option(help="take at most this many days")] = None,
) -> None:
    """Take every day of DATA through ingestion, training, gates, registry and a canary release."""
    told = read_story(story) if story else Story()
    _choose_home(story)
    settings = Settings.read()
    fields = {
        "prompt": prompt_field,
        "response": response_field,
        "slice_name": slice_field,
        "id": id_field,
    }
    mapping = {name: field for name, field in fields.items() if field}
    ingest = {"data": _absolute(data), "mapping": mapping, "evaluation": {"uri": evaluation}}
    parameters = _parameters(told, ingest, base)
    console = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)
    _tell_plan(console, settings, told, parameters)
    from cli.telling import Telling

    telling = Telling(settings, told, parameters, console)
    rate = rps or told.rps
    started = time.monotonic()
    with telling.stack(), telling.traffic(rate if traffic == "replay" else 0.0):
        rows = telling.tell(days_max)
        served = telling.served()
    problems = _print_report(console, rows, told, served)
    kept = {"seconds": time.monotonic() - started, "days": rows, "traffic": served}
    path = settings.home / RESULT_NAME
    path.write_text(json.dumps({**kept, "problems": problems}, indent=1))
    console.print(f"{kept['seconds']:.0f} seconds; the same as JSON: {path}")
    for problem in problems:
        console.print(f"[red]{problem}[/red]")
    raise typer.Exit(1 if problems else 0)


def _choose_home(story: Path | None) -> None:
    """A story starts from nothing each time, in a home of its own; only the base model is kept."""
    home = Settings.read().home
    if story is None:
        return
    models = home / "models"
    models.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    own = home / "stories" / f"{story.stem}-{stamp}"
    own.mkdir(parents=True)
    (own / "models").symlink_to(models, target_is_directory=True)
    _forget_old_stories(home / "stories")
    os.environ["SERIN_HOME"] = str(own)


def _forget_old_stories(folder: Path) -> None:
    import shutil

    for old in sorted(folder.iterdir())[:-STORIES_KEPT]:
        if not (old / "stack.json").exists():
            shutil.rmtree(old)


def _absolute(uri: str) -> str:
    return uri if "://" in uri else str(Path(uri).absolute())


def _parameters(told: Story, ingest: dict[str, Any], base: str | None) -> dict[str, Any]:
    """Merge the story's settings under the options that a person gave."""
    parameters: dict[str, Any] = {name: dict(values) for name, values in told.settings.items()}
    own = dict(parameters.get("ingest", {}))
    own["mapping"] = {**own.get("mapping", {}), **ingest["mapping"]}
    evaluation = ingest["evaluation"]["uri"]
    if evaluation:
        own["evaluation"] = {**own.get("evaluation", {}), "uri": _absolute(evaluation)}
    parameters["ingest"] = {**own, "data": ingest["data"]}
    if base:
        parameters["base"] = {**parameters.get("base", {}), "source": base}
    return parameters


def _tell_plan(
    console: Console, settings: Settings, told: Story, parameters: dict[str, Any]
) -> None:
    console.print(f"[bold]{told.title or 'Daily loop'}[/bold]  data {parameters['ingest']['data']}")
    console.print(f"state   {settings.home}")
    if told.settings:
        changed = ", ".join(
            f"{step}.{name}={value}"
            for step, values in told.settings.items()
            for name, value in values.items()
        )
        console.print(f"[yellow]story profile, not the production defaults:[/yellow] {changed}")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    stages = logging.getLogger("serin.stages")
    stages.setLevel(logging.INFO)
    stages.propagate = False
    handler = logging.StreamHandler()
    handler.setFormatter(_Clock())
    stages.handlers = [handler]


class _Clock(logging.Formatter):
    """Puts the seconds since the start before each line."""

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()

    def format(self, record: logging.LogRecord) -> str:
        return f"{time.monotonic() - self._started:7.1f}  {record.getMessage()}"


def _print_report(
    console: Console, rows: list[dict[str, Any]], told: Story, served: dict[str, Any]
) -> list[str]:
    """Print the table of days; return what did not end as it should."""
    if not rows:
        raise ConfigurationError("there is no day in the data; see --data")
    days = Table(title=told.title or "Daily loop")
    for column in ("day", "rows", "quarantined", "before", "after", "verdict", "final state"):
        days.add_column(column, no_wrap=True)
    problems = []
    for row in rows:
        days.add_row(
            row["day"], str(row["rows_in"]), str(row["quarantined"]),
            _percent(row["quality_before"]), _percent(row["quality_after"]),
            row["verdict"] or "-", row["final_state"],
        )  # fmt: skip
        problems += _wrong(row, told)
    console.print(days)
    console.print(_seconds_table(rows))
    failed, sent = served["failed"], served["sent"]
    console.print(f"live traffic: {sent} requests, {failed} failed")
    if failed:
        problems.append(f"{failed} client requests failed: {served['causes']}")
    missing = [day for day in told.days if day not in {row["day"] for row in rows}]
    problems += [f"{day} is in the story but not in the data" for day in missing]
    return problems


def _seconds_table(rows: list[dict[str, Any]]) -> Table:
    """One line a stage, one column a day: that many stages are too wide the other way."""
    table = Table(title="seconds per stage")
    for column in ("stage", *(row["day"] for row in rows)):
        table.add_column(column, no_wrap=True, justify="left" if column == "stage" else "right")
    for stage in dict.fromkeys(name for row in rows for name in row["seconds"]):
        found = (row["seconds"].get(stage) for row in rows)
        table.add_row(stage, *("-" if value is None else f"{value:.1f}" for value in found))
    totals = (f"{sum(row['seconds'].values()):.1f}" for row in rows)
    table.add_row("all", *totals, style="bold")
    return table


def _wrong(row: dict[str, Any], told: Story) -> list[str]:
    day, ended = row["day"], row["final_state"]
    plan = told.days.get(day)
    if plan is None:
        return [] if ended in GOOD_ENDS else [f"{day} ended as {ended}: {row['reason']}"]
    found = []
    if ended != plan.ends:
        found.append(f"{day} ended as {ended}, not {plan.ends}: {row['reason']}")
    before, after = row["quality_before"], row["quality_after"]
    if plan.improves and not (before is not None and after is not None and after > before):
        found.append(f"{day} did not improve: {_percent(before)} to {_percent(after)}")
    return found


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
