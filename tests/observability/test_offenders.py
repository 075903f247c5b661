"""Malicious requests are counted per client from the audits of all gateway processes."""

import time
from pathlib import Path

from observability.audit import Audit, AuditConfig
from observability.audit_rows import AuditRow
from observability.offenders import strikes


def row(client: str, status: int, count: int = 1, ago: float = 0.0, **more: object) -> AuditRow:
    return AuditRow(
        kind="refusal", time_seconds=time.time() - ago, status=status, client=client, count=count,
        **more,  # type: ignore[arg-type]
    )  # fmt: skip


def test_strikes_of_all_processes_within_the_span_are_summed(tmp_path: Path) -> None:
    audits = [Audit(tmp_path, "gateway", b"k" * 32, AuditConfig()) for _ in range(2)]
    try:
        audits[0].append(row("203.0.113.7", 401, 1000, ago=120))
        for audit in audits:
            audit.append(row("203.0.113.7", 401, 40))
            audit.append(row("203.0.113.7", 429, 500))
            audit.append(row("many", 401, 500))
        audits[1].append(row("203.0.113.8", 400, 3, blocked=True))
        assert strikes(tmp_path, 60) == {"203.0.113.7": 80, "203.0.113.8": 3}
    finally:
        for audit in audits:
            audit.close()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "gateway", b"k" * 32, AuditConfig())
    audit.append(row("203.0.113.7", 401, 5))
    audit.close()
    segment = next((tmp_path / audit.process).glob("*.jsonl"))
    with segment.open("ab") as file:
        file.write(b'{"seq": 2, "prev')
    assert strikes(tmp_path, 60) == {"203.0.113.7": 5}


def test_no_audit_is_no_strike(tmp_path: Path) -> None:
    assert not strikes(tmp_path / "nothing", 60)
