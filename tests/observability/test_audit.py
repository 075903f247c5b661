"""The audit: nothing lost on a kill, no edit or gap unseen, refused when it cannot be written."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from core.errors import UnavailableError
from observability.audit import Audit, AuditConfig
from observability.audit_index import AuditIndex
from observability.audit_rows import AuditRow, FilterDecision
from observability.audit_segments import find_rows, verify_audit

KEY = b"k" * 32
SMALL = AuditConfig(segment_bytes_max=2048, sync_seconds=0.01, index_seconds=0.01)
ROOT = Path(__file__).resolve().parents[2]


def row(number: int, kind: str = "answer") -> AuditRow:
    return AuditRow(
        kind=kind,
        time_seconds=1.5,
        request_id=f"request-{number}",
        response_id=f"chatcmpl-{number}",
        decisions=(FilterDecision("lexicon", "user", "allow"),),
        output_digests=("a" * 64,),
        bytes_sent=5,
        bytes_scanned=5,
    )


def written(folder: Path, rows: int, config: AuditConfig = SMALL) -> str:
    audit = Audit(folder, "predictor", KEY, config)
    for number in range(rows):
        audit.append(row(number))
    audit.close()
    return audit.process


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def problems(folder: Path, key: bytes = KEY) -> list[str]:
    report = verify_audit(folder, key)
    assert report.sound == (not (found := [*report.problems, *sum_problems(report.chains)]))
    return found


def sum_problems(chains: tuple[object, ...]) -> list[str]:
    return [text for chain in chains for text in getattr(chain, "problems", ())]


def test_rows_are_kept_checked_and_found_also_when_packed(tmp_path: Path) -> None:
    first, second = written(tmp_path, 30), written(tmp_path, 3)
    packed = list((tmp_path / first).glob("*.parquet"))
    assert len(packed) > 2
    assert len(list((tmp_path / first).glob("*.jsonl"))) == 1
    report = verify_audit(tmp_path, KEY)
    assert report.sound
    assert {(chain.process, chain.rows) for chain in report.chains} == {(first, 30), (second, 3)}
    assert [name for name, _ in find_rows(tmp_path, "chatcmpl-2")].count(first) == 1
    assert [(name, found) for name, found in find_rows(tmp_path, "request-20")] == [
        (first, row(20))
    ]
    assert list(find_rows(tmp_path, "request-")) == []


def test_threads_write_one_chain(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "gateway", KEY, SMALL)

    def work() -> None:
        for number in range(50):
            audit.append(row(number))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.close()
    (chain,) = verify_audit(tmp_path, KEY).chains
    assert (chain.rows, chain.problems) == (200, ())


@pytest.mark.parametrize("changed", ["edited", "removed", "added", "swapped", "cut", "segment"])
def test_no_change_stays_unseen(tmp_path: Path, changed: str) -> None:
    name = written(tmp_path, 5, AuditConfig())
    path = tmp_path / name / "000001.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    if changed == "edited":
        lines[2] = lines[2].replace(b'"bytes_sent":5', b'"bytes_sent":6')
    elif changed == "removed":
        del lines[2]
    elif changed == "added":
        lines.insert(2, lines[2])
    elif changed == "swapped":
        lines[2], lines[3] = lines[3], lines[2]
    elif changed == "cut":
        del lines[3:]
    path.write_bytes(b"".join(lines))
    if changed == "segment":
        path.unlink()
    assert problems(tmp_path)


def test_a_chain_made_anew_without_the_key_is_seen(tmp_path: Path) -> None:
    written(tmp_path / "ours", 5)
    written(tmp_path / "theirs", 5)
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    forged = Audit(ours, "predictor", b"x" * 32, SMALL)
    forged.append(row(1))
    forged.close()
    assert problems(ours)
    (theirs / "index.jsonl").unlink()
    assert "is not in the index" in problems(theirs)[0]
    assert problems(tmp_path / "nothing") == []


def test_a_hole_in_the_index_is_seen(tmp_path: Path) -> None:
    written(tmp_path, 5)
    written(tmp_path, 5)
    path = tmp_path / "index.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:1] + lines[2:]))
    assert "lost" in problems(tmp_path)[0]


def test_a_torn_last_row_is_reported_as_such(tmp_path: Path) -> None:
    name = written(tmp_path, 5, AuditConfig())
    path = tmp_path / name / "000001.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq":6,"prev')
    (chain,) = verify_audit(tmp_path, KEY).chains
    assert (chain.rows, chain.torn, chain.problems) == (5, True, ())


def test_a_torn_entry_of_the_index_is_cut_off_by_the_next_writer(tmp_path: Path) -> None:
    written(tmp_path, 2)
    with (tmp_path / "index.jsonl").open("ab") as file:
        file.write(b'{"time')
    assert problems(tmp_path) == []
    written(tmp_path, 2)
    assert problems(tmp_path) == []
    assert len(list(AuditIndex(tmp_path, KEY).heads())) >= 4


WRITER = """
import sys
from pathlib import Path
from observability.audit import Audit, AuditConfig
from observability.audit_rows import AuditRow
audit = Audit(Path(sys.argv[1]), "killed", b"k" * 32, AuditConfig())
number = 0
while True:
    number += 1
    audit.append(AuditRow(kind="answer", time_seconds=0.0, request_id=str(number)))
    print(number, flush=True)
"""


def test_a_killed_process_loses_no_row_that_it_said_was_kept(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(200):
        said = process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    said = (process.stdout.read().split() or [said])[-1]
    process.wait()
    (chain,) = verify_audit(tmp_path, KEY).chains
    assert chain.problems == ()
    assert chain.rows >= int(said)


def test_what_cannot_be_kept_is_refused_and_the_chain_stays_whole(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "predictor", KEY, AuditConfig())
    audit.append(row(1))
    size = (tmp_path / audit.process / "000001.jsonl").stat().st_size
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 50, limits[1]))
        for _ in range(3):
            with pytest.raises(UnavailableError, match="audit cannot be written"):
                audit.append(row(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    audit.append(row(3))
    audit.close()
    (chain,) = verify_audit(tmp_path, KEY).chains
    assert (chain.rows, chain.torn, chain.problems) == (2, False, ())


def test_the_index_knows_new_rows_soon(tmp_path: Path) -> None:
    audit = Audit(tmp_path, "predictor", KEY, SMALL)
    audit.append(row(1))
    until(lambda: [head.seq for head in AuditIndex(tmp_path, KEY).heads()] == [0, 1])
    audit.close()


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("a file")
    with pytest.raises(UnavailableError, match="audit"):
        Audit(tmp_path / "audit", "predictor", KEY, SMALL)


def test_rows_are_private(tmp_path: Path) -> None:
    name = written(tmp_path, 1, AuditConfig())
    assert os.stat(tmp_path / name / "000001.jsonl").st_mode & 0o077 == 0
    assert msgspec.json.decode((tmp_path / "index.jsonl").read_bytes().splitlines()[0])
