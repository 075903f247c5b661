"""`serin audit`: what is whole is said to be, what is not ends with an error."""

import json

import pytest
from typer.testing import CliRunner

from cli.audit import audit
from core.errors import IntegrityError, NotFoundError
from core.keys import read_key
from core.settings import Settings
from observability.audit import Audit, AuditConfig
from observability.audit_rows import AuditRow


def run(*arguments: str) -> str:
    result = CliRunner().invoke(audit, arguments)
    if result.exception is not None:
        raise result.exception
    return result.output


def test_a_record_is_found_and_checked(settings: Settings) -> None:
    assert "nothing was audited" in run("verify")
    key = read_key(settings.home / "control" / "audit.key")
    written = Audit(settings.home / "audit", "gateway", key, AuditConfig())
    written.append(AuditRow(kind="answer", time_seconds=1.0, request_id="r", response_id="a"))
    written.close()
    assert f"{written.process}: 1 rows" in run("verify")
    report = json.loads(run("verify", "--json"))
    assert report["chains"][0]["rows"] == 1
    assert json.loads(run("find", "a", "--json"))["request_id"] == "r"
    assert run("find", "a").splitlines()[1:] == ["  request   r", "  answer    a"]
    with pytest.raises(NotFoundError, match="no row names b"):
        run("find", "b")
    path = settings.home / "audit" / written.process / "000001.jsonl"
    path.write_text(path.read_text().replace('"r"', '"s"'))
    with pytest.raises(IntegrityError):
        run("verify")
