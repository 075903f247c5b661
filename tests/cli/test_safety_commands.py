"""`serin safety check` and `serin policy`: every input form, every output form, errors told."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cli.policy import policy
from cli.safety import safety
from core.errors import ConfigurationError, InputError
from core.settings import Settings
from serving.safety.policy import SHIPPED_POLICY, read_policy

TEXTS = ["what is my balance", "f u c k you", "write to wei@example.com", "如何制作炸弹"]
DECISIONS = ["allow", "block", "redact", "block"]
RUN = CliRunner()


def check(*arguments: str) -> dict[str, Any]:
    done = RUN.invoke(safety, ["check", *arguments, "--json"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    told: dict[str, Any] = json.loads(done.output)
    return told


def written(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def test_every_form_of_file_gives_the_same_rows(settings: Settings, tmp_path: Path) -> None:
    files = [
        written(tmp_path, "a.txt", "\n".join(TEXTS)),
        written(tmp_path, "a.csv", "id,text\n" + "".join(f'1,"{text}"\n' for text in TEXTS)),
        written(tmp_path, "a.jsonl", "\n".join(json.dumps({"text": text}) for text in TEXTS)),
        written(tmp_path, "b.jsonl", "\n".join(map(json.dumps, TEXTS))),
    ]
    told = [check(file) for file in files]
    assert all(item == told[0] for item in told)
    assert [row["decision"] for row in told[0]["rows"]] == DECISIONS
    assert told[0]["totals"] == {"rows": 4, "allow": 1, "redact": 1, "block": 2}
    assert set(told[0]["rows"][0]) == {"decision", "category", "score", "reason"}
    assert told[0]["policy"] == read_policy(SHIPPED_POLICY).digest


def test_the_texts_field_can_be_named(settings: Settings, tmp_path: Path) -> None:
    file = written(tmp_path, "c.csv", "TEXT,other\nhello,fuck you\n")
    assert check(file)["totals"]["block"] == 0
    assert check(file, "--text-field", "other")["totals"]["block"] == 1
    with pytest.raises(InputError, match="has no field title"):
        check(file, "--text-field", "title")
    lines = written(tmp_path, "d.jsonl", '{"said": {"a": 1}}')
    with pytest.raises(InputError, match="line 1: the text is dict"):
        check(lines, "--text-field", "said")
    with pytest.raises(InputError, match="line 1 is not JSON"):
        check(written(tmp_path, "e.jsonl", "{"))
    with pytest.raises(InputError, match="cannot be read"):
        check(str(tmp_path / "missing.txt"))


def test_people_get_a_line_a_text_and_totals(settings: Settings, tmp_path: Path) -> None:
    done = RUN.invoke(safety, ["check", written(tmp_path, "a.txt", "\n".join(TEXTS) + "\n\n")])
    lines = done.output.splitlines()
    assert [line.split()[0] for line in lines[:4]] == DECISIONS
    assert lines[4].startswith("4 texts: 1 allow, 1 redact, 2 block; policy ")


def test_answers_are_checked_as_answers(settings: Settings, tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", "the key is AKIAIOSFODNN7EXAMPLA")
    assert check(file)["rows"][0]["decision"] == "redact"
    assert check(file, "--role", "assistant")["rows"][0]["category"] == "secret"


def test_the_policy_in_force_is_the_homes(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    own = written(tmp_path / "policy", "policy.yaml", "name: own\nlexicon: {terms: {x: [acme]}}")
    file = written(tmp_path, "a.txt", "is acme better\n")
    assert check(file)["rows"][0]["category"] == "x"
    assert check(file, "--policy", str(SHIPPED_POLICY))["rows"][0]["decision"] == "allow"
    shown = json.loads(RUN.invoke(policy, ["show", "--json"]).output)
    assert (shown["file"], shown["policy"]["name"]) == (own, "own")


def test_a_policy_is_checked_shown_and_compared(settings: Settings, tmp_path: Path) -> None:
    text = SHIPPED_POLICY.read_text().replace("threshold: 0.7", "threshold: 0.8", 1)
    file = written(tmp_path, "next.yaml", text)
    valid = json.loads(RUN.invoke(policy, ["check", file, "--json"]).output)
    assert valid["valid"] is True
    assert valid["hash"] in RUN.invoke(policy, ["show", file]).output
    changed = RUN.invoke(policy, ["diff", file, "--json"])
    assert changed.exit_code == 1
    place = {"place": "toxicity.threshold", "from": 0.7, "to": 0.8}
    assert json.loads(changed.output)["changes"] == [place]
    assert "+  threshold: 0.8" in RUN.invoke(policy, ["diff", file]).output
    same = RUN.invoke(policy, ["diff", str(SHIPPED_POLICY)])
    assert (same.exit_code, same.output) == (0, "no difference\n")


def test_an_invalid_policy_is_refused_with_its_place(settings: Settings, tmp_path: Path) -> None:
    file = written(tmp_path, "bad.yaml", "name: x\ninjection: {threshold: 2}")
    with pytest.raises(ConfigurationError, match=r"injection\.threshold: Input should be less"):
        RUN.invoke(policy, ["check", file], catch_exceptions=False)
