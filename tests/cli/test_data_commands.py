"""`serin ingest` and `serin quarantine`, on a lake below SERIN_HOME."""

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from tokenizers import Tokenizer, models
from typer.testing import CliRunner

from cli.data import ingest, quarantine
from core.errors import InputError
from core.settings import Settings
from lake.sources import FieldMapping, IngestConfig, list_days
from lake.table import Lake
from validation.records import check_rows

GOOD = {"id": "a", "q": "where is it", "a": "here"}


def run(*arguments: str) -> str:
    result = CliRunner().invoke(quarantine, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def ingested(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path / "home"))
    path = tmp_path / "day-1.jsonl"
    bad: dict[str, Any] = {"id": "b", "q": 7, "a": "mail jo@example.com"}
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps(bad) + "\n")
    mapping = FieldMapping(prompt="q", response="a")
    lake = Lake(Settings.read().lake_uri)
    config = IngestConfig(data=str(path), mapping=mapping)
    lake.ingest_day(list_days(str(path)).days[0], config, check_rows)
    return tmp_path


def test_a_refused_row_is_listed_shown_and_readmitted(ingested: Path) -> None:
    listed = json.loads(run("--json"))
    assert [row["row"] for row in listed] == [2]
    name = listed[0]["id"]
    assert name in run()
    shown = run("show", name)
    assert "[EMAIL]" in shown
    assert "jo@" not in shown
    correction = ingested / "correction.jsonl"
    correction.write_text(json.dumps({"id": "b", "q": "seven", "a": "mail", "quarantine_id": name}))
    told = json.loads(run("readmit", str(correction), "--json"))
    assert told == {"readmitted": [name], "refused_again": 0, "kept": 1, "duplicates": 0}
    assert "(re-admitted)" in run()
    assert "re-admitted" in run("readmit", str(correction))
    assert "1 rows re-admitted" in run("readmit", str(correction), "--row", name)


def test_days_are_taken_in_with_a_report(ingested: Path) -> None:
    app = typer.Typer()
    app.command()(ingest)
    day = ingested / "day-2.jsonl"
    day.write_text(json.dumps({**GOOD, "q": "another"}) + "\nbroken\n")
    arguments = [f"{ingested}/day-*.jsonl", "--prompt-field", "q", "--response-field", "a"]
    arguments += ["--report", str(ingested / "report")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "day-1  2 rows: 1 kept, 0 duplicates, 1 quarantined  (known)" in result.output
    assert "day-2  2 rows: 1 kept, 0 duplicates, 1 quarantined\n" in result.output
    assert (ingested / "report" / "contract" / "index.html").is_file()


def test_token_ids_are_stored_with_a_tokenizer_only(ingested: Path) -> None:
    app = typer.Typer()
    app.command()(ingest)
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
    tokenizer.save(str(ingested / "tokenizer.json"))
    day = ingested / "day-2.jsonl"
    day.write_text(json.dumps({"id": "c", "q": "abba", "a": "b"}) + "\n")
    arguments = [str(day), "--prompt-field", "q", "--response-field", "a", "--store-tokens"]
    with pytest.raises(InputError, match="--tokenizer"):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    named = [*arguments, "--tokenizer", str(ingested / "tokenizer.json")]
    assert CliRunner().invoke(app, named, catch_exceptions=False).exit_code == 0
    lake = Lake(Settings.read().lake_uri)
    version = lake.versions()[-1].version
    stored = [row for batch in lake.stored_tokens([version]) for row in batch.to_pylist()]
    assert stored == [{"record_id": "c", "token_ids": [0, 1, 1, 0, 1]}]


def test_an_empty_quarantine_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    assert "nothing is in quarantine" in run()
