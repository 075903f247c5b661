"""`serin pii`: files in, places out; the values themselves are never printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.pii import pii
from core.errors import ConfigurationError, InputError, NotFoundError
from tests.token_model import make_token_model

LINE = "call +1 202-555-0143 or jo@example.com"
SPANS = [
    {"type": "PHONE_NUMBER", "start": 5, "end": 20, "score": 0.95},
    {"type": "EMAIL_ADDRESS", "start": 24, "end": 38, "score": 1.0},
]


def run(*arguments: str) -> str:
    result = CliRunner().invoke(pii, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def scan(path: Path, *arguments: str) -> dict[str, Any]:
    return dict(json.loads(run("scan", str(path), "--json", *arguments)))


def test_lines_csv_and_json_lines_give_the_same_rows_in_order(tmp_path: Path) -> None:
    lines, table, objects = tmp_path / "x.txt", tmp_path / "x.csv", tmp_path / "x.jsonl"
    lines.write_text(f"nothing\n{LINE}\n\n{LINE}\n")
    table.write_text(f'id,body\n1,nothing\n2,"{LINE}"\n3,\n4,{LINE}\n', encoding="utf-8-sig")
    rows = [{"body": text} for text in ("nothing", LINE, "", LINE)]
    objects.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    expected = {
        "rows": [{"spans": spans} for spans in ([], SPANS, [], SPANS)],
        "totals": {"EMAIL_ADDRESS": 2, "PHONE_NUMBER": 2},
    }
    assert scan(lines) == expected
    assert scan(table, "--text-field", "body") == expected
    assert scan(objects, "--text-field", "body") == expected


def test_offsets_count_characters_of_the_original(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    text = "邮箱a\u200bb@exam\u200bple.com，手机１３８００１３８０００"
    path.write_text(text)
    spans = scan(path)["rows"][0]["spans"]
    assert [text[span["start"] : span["end"]] for span in spans] == [
        "a\u200bb@exam\u200bple.com",
        "１３８００１３８０００",
    ]


def test_plain_output_names_places_and_no_values(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text(LINE)
    output = run("scan", str(path)) + run("report", str(path))
    assert "1: PHONE_NUMBER 5..20 0.95" in output
    assert "x.txt: 1 texts, 1 with findings" in output
    assert "jo@" not in output
    assert scan(path, "--types", "email_address")["totals"] == {"EMAIL_ADDRESS": 1}


def test_an_empty_file_has_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("")
    assert scan(path) == {"rows": [], "totals": {}}
    assert "nothing was found" in run("scan", str(path))


def test_wrong_files_fields_and_types_are_named(tmp_path: Path) -> None:
    table, lines = tmp_path / "x.csv", tmp_path / "x.jsonl"
    table.write_text("a,b\n1,2\n")
    lines.write_text('{"a": 1}\n')
    with pytest.raises(InputError, match="--text-field"):
        run("scan", str(table))
    with pytest.raises(InputError, match="line 1 has the keys"):
        run("scan", str(lines))
    with pytest.raises(InputError, match="unknown types"):
        run("scan", str(table), "--types", "SHOE_SIZE", "--text-field", "a")
    with pytest.raises(NotFoundError):
        run("scan", str(tmp_path / "none.txt"))


def test_a_model_finds_more_names(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("zorblax quint lives in mossgard\n")
    model = make_token_model(tmp_path / "model")
    assert scan(path)["totals"] == {}
    found = scan(path, "--model", str(model))
    assert found["totals"] == {"LOCATION": 1, "PERSON": 1}
    assert [(span["start"], span["end"]) for span in found["rows"][0]["spans"]] == [
        (0, 13),
        (23, 31),
    ]
    assert "1 with findings" in run("report", str(path), "--model", str(model))
    with pytest.raises(ConfigurationError, match="holds no model"):
        run("scan", str(path), "--model", str(tmp_path))


def test_the_lake_is_reported_by_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    found = json.loads(run("report", "--json"))
    assert found == {
        name: {"rows": 0, "rows_with_findings": 0, "totals": {}}
        for name in ("records", "quarantine")
    }
