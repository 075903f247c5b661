"""Old segments go, and the audit is still whole: the index knows that they went on purpose."""

import os
import time
from pathlib import Path

import pytest

from core.errors import IntegrityError
from observability.audit import Audit, AuditConfig
from observability.audit_index import AuditIndex
from observability.audit_retention import OldSegments, old_segments, retire
from observability.audit_rows import AuditRow
from observability.audit_segments import find_rows, last_row, segments, verify_audit

KEY = b"k" * 32
SMALL = AuditConfig(segment_bytes_max=1024, sync_seconds=0.01, index_seconds=0.01)
NOW = time.time() + 3600
"""Later than anything that a test writes."""


def write(folder: Path, rows: int, closed: bool = True) -> Audit:
    audit = Audit(folder, "predictor", KEY, SMALL)
    for number in range(rows):
        audit.append(AuditRow(kind="answer", time_seconds=1.0, request_id=f"r-{number}"))
    if closed:
        audit.close()
    return audit


def age(paths: list[Path]) -> None:
    for path in paths:
        os.utime(path, (1.0, 1.0))


def only(folder: Path, before: float = NOW) -> OldSegments:
    (found,) = old_segments(folder, before)
    return found


def test_the_first_segments_of_a_chain_go_and_it_stays_whole(tmp_path: Path) -> None:
    process = write(tmp_path, 40).process
    paths = segments(tmp_path / process)
    assert len(paths) > 4
    age(paths[:3])
    old = only(tmp_path, 10.0)
    assert (old.process, old.first, old.last) == (process, 1, 3)
    retire(tmp_path, KEY, old)
    assert segments(tmp_path / process) == paths[3:]
    report = verify_audit(tmp_path, KEY)
    assert report.sound
    (chain,) = report.chains
    assert (chain.rows, 0 < chain.retired_rows < 40) == (40, True)
    assert list(find_rows(tmp_path, "r-39"))
    assert not list(find_rows(tmp_path, "r-0"))
    assert not list(old_segments(tmp_path, 10.0))


def test_a_whole_chain_goes_in_steps_and_is_remembered(tmp_path: Path) -> None:
    process = write(tmp_path, 40).process
    age(segments(tmp_path / process)[:2])
    retire(tmp_path, KEY, only(tmp_path, 10.0))
    retire(tmp_path, KEY, only(tmp_path))
    assert not (tmp_path / process).exists()
    report = verify_audit(tmp_path, KEY)
    assert report.sound
    assert [(chain.rows, chain.retired_rows) for chain in report.chains] == [(40, 40)]


def test_without_its_entry_a_missing_segment_is_a_gap(tmp_path: Path) -> None:
    process = write(tmp_path, 40).process
    segments(tmp_path / process)[0].unlink()
    assert not verify_audit(tmp_path, KEY).sound
    with pytest.raises(IntegrityError, match="is kept"):
        retire(tmp_path, KEY, OldSegments(process, 2, 3, 0))


def test_a_chain_that_was_changed_is_kept_as_evidence(tmp_path: Path) -> None:
    process = write(tmp_path, 3).process
    path = segments(tmp_path / process)[0]
    path.write_text(path.read_text().replace("r-1", "r-9"))
    with pytest.raises(IntegrityError, match="not whole"):
        retire(tmp_path, KEY, only(tmp_path))
    assert path.exists()


def test_what_a_living_process_writes_to_stays(tmp_path: Path) -> None:
    audit = write(tmp_path, 3, closed=False)
    assert not list(old_segments(tmp_path, NOW))
    audit.close()
    assert only(tmp_path).last == 1


def test_an_interrupted_retirement_is_whole_and_goes_on(tmp_path: Path) -> None:
    process = write(tmp_path, 40).process
    first = segments(tmp_path / process)[0]
    end = last_row(first)
    assert end is not None
    AuditIndex(tmp_path, KEY).retire(process, 1, *end)  # and then the process was killed
    assert verify_audit(tmp_path, KEY).sound
    age([first])
    retire(tmp_path, KEY, only(tmp_path, 10.0))
    assert not first.exists()
    assert verify_audit(tmp_path, KEY).sound


def test_an_empty_segment_goes_too(tmp_path: Path) -> None:
    process = write(tmp_path, 0).process
    retire(tmp_path, KEY, only(tmp_path))
    assert not (tmp_path / process).exists()
    assert verify_audit(tmp_path, KEY).sound


def test_nobody_without_the_key_can_say_that_segments_were_retired(tmp_path: Path) -> None:
    process = write(tmp_path, 40).process
    first = segments(tmp_path / process)[0]
    end = last_row(first)
    assert end is not None
    AuditIndex(tmp_path, b"x" * 32).retire(process, 1, *end)
    first.unlink()
    assert not verify_audit(tmp_path, KEY).sound
