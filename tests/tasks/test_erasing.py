"""A record is traced through snapshots and versions, and erased wherever the home has its text."""

import json
import zlib
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from cli.main import app
from core.backup_place import BackupPlace
from core.contracts import Candidate, Message, Record, SnapshotRef
from core.digests import digest_json
from core.settings import Settings
from lake.config import FieldMapping, IngestConfig, ScaleConfig
from lake.erasure import quarantined_with
from lake.snapshots import (
    create_snapshot,
    find_snapshot,
    load_held_out,
    load_rows,
    materialised,
)
from lake.sources import list_days
from lake.table import Lake
from lake.tombstones import read_tombstones
from rollout.ledger import Ledger
from rollout.ledger_copy import LedgerCopier
from tasks.backups import back_up
from tasks.erasing import ERASED, erase, erase_again, plan_erasure
from tasks.lineage import note_training, note_version, trace_record
from tests.spread import in_order
from validation.records import check_rows

SECRET = "my grandmother's cactus collection outgrew the balcony"
TARGET = "row-7"
CONFIG = IngestConfig(
    data="unused",
    mapping=FieldMapping(prompt="text", response="answer", slice_name="domain"),
    rows_min=1,
)
RUN = CliRunner()


def line(number: int, text: str) -> str:
    row = {"id": f"row-{number}", "text": text, "answer": f"answer number {number}", "domain": "d"}
    return json.dumps(row) + "\n"


def write_day(folder: Path, name: str, first: int = 0) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.jsonl"
    texts = [f"{name} asks question number {number}" for number in range(first, first + 40)]
    lines = [line(first + place, text) for place, text in enumerate(texts)]
    if first == 0:
        lines[7] = line(7, SECRET)
        lines.append(json.dumps({"id": "row-refused", "text": SECRET, "answer": 5}) + "\n")
    path.write_text("".join(lines))
    return path


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("SERIN_HOME", str(home))
    return home


@pytest.fixture
def lake(home: Path) -> Lake:
    return Lake(str(home / "lake"), index_folder=home / "duplicates")


@pytest.fixture
def snapshot(lake: Lake, home: Path, tmp_path: Path) -> SnapshotRef:
    """The first day, in the lake and cut."""
    day = list_days(str(write_day(tmp_path / "data", "day-1"))).days[0]
    lake.ingest_day(day, CONFIG, check_rows)
    ref = create_snapshot(lake, None, (), home / "snapshots", 1)
    assert ref is not None
    return ref


def candidate(version: str, snapshot: SnapshotRef, parent: str | None) -> Candidate:
    return Candidate(
        service="assistant", model_version=version, bundle_digest="b", bundle_uri="file:///b",
        adapter_digest=f"adapter-{version}", snapshot_id=snapshot.snapshot_id,
        verdict_digest="v", stable_version=parent,
    )  # fmt: skip


def target_of(snapshot: SnapshotRef) -> Record:
    rows = [*load_rows(snapshot), *load_held_out(snapshot)]
    return next(row for row in rows if row.record_id == TARGET)


def leave_traces(home: Path, record: Record, others: list[Record]) -> None:
    """Write what a run leaves: evaluation rows, a job's rows, answers, a report, a log."""
    report = home / "reports" / "day-1-run"
    report.mkdir(parents=True)
    (report / "evaluation.json").write_bytes(msgspec.json.encode([record, *others]))
    (report / "job.rows.jsonl").write_bytes(msgspec.json.Encoder().encode_lines([record, *others]))
    (report / "drift.html").write_text(f"<td>{SECRET.replace(chr(39), '&#x27;')}</td>")
    answers = home / "answers"
    answers.mkdir()
    key = digest_json(msgspec.to_builtins(record.messages))
    kept = {key: "what the model said", "other": "kept", "third": f"you said: {SECRET}"}
    (answers / "bundle.json").write_text(json.dumps(kept))
    logs = home / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "worker.log").write_text(f"before\nrow {json.dumps(SECRET)}\nafter\n")


def holders(folder: Path, text: str) -> list[str]:
    """Every file that holds a text: as it lies there, unpacked, or inside Parquet."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content = path.read_bytes()
        if path.suffix == ".parquet":
            content += repr(pq.ParquetFile(path).read().to_pylist()).replace("\\'", "'").encode()
        if content[:2] == b"\x1f\x8b":
            content += zlib.decompress(content, wbits=31)
        plain = content.replace(b"&#x27;", b"'").replace(b"\\u0027", b"'")
        if text.encode() in plain:
            found.append(path.relative_to(folder).as_posix())
    return found


def test_a_record_is_traced_to_snapshots_versions_and_their_descendants(
    snapshot: SnapshotRef,
) -> None:
    note_training("adapter-1", load_rows(snapshot), [])
    note_version(candidate("1", snapshot, None), snapshot)
    note_training("adapter-2", [], load_rows(snapshot)[:3])
    note_version(candidate("2", snapshot, "1"), snapshot)
    note_training("adapter-3", [], [])
    note_version(candidate("3", snapshot, "2"), snapshot)
    first = load_rows(snapshot)[0].record_id
    found = trace_record(first)
    assert found.snapshots == {snapshot.snapshot_id: "training"}
    assert found.trained_on == {"1": "new", "2": "replayed"}
    assert found.descends_from == ("3",)
    held_out = load_held_out(snapshot)[0].record_id
    assert trace_record(held_out).trained_on == {}
    shown = RUN.invoke(app, ["lineage", first])
    assert shown.exit_code == 0
    assert "version 2  was trained on it (replayed)" in shown.output
    missing = RUN.invoke(app, ["lineage", "row-none"])
    assert missing.exit_code == 1
    assert "row-none" in str(missing.exception)


def test_a_dry_run_tells_everything_and_changes_nothing(home: Path, snapshot: SnapshotRef) -> None:
    leave_traces(home, target_of(snapshot), load_rows(snapshot)[:2])
    before = holders(home, SECRET)
    shown = RUN.invoke(app, ["forget", TARGET, "--json"])
    told = json.loads(shown.output)
    assert (told["records"], told["quarantined"], told["done"]) == (1, 1, False)
    assert told["snapshots"] == [snapshot.snapshot_id]
    assert {Path(item["path"]).name for item in told["files"]} == {
        "evaluation.json", "job.rows.jsonl", "drift.html", "bundle.json", "worker.log",
    }  # fmt: skip
    assert holders(home, SECRET) == before
    assert not (home / "ledger.db").exists()


def test_an_erased_record_is_nowhere_in_the_home_and_everything_else_stays(
    home: Path, lake: Lake, snapshot: SnapshotRef
) -> None:
    record, others = target_of(snapshot), load_rows(snapshot)[:2]
    leave_traces(home, record, others)
    rows = snapshot.rows + snapshot.held_out_rows
    shown = RUN.invoke(app, ["forget", TARGET, "--yes"])
    assert shown.exit_code == 0, shown.output
    assert holders(home, SECRET) == []
    assert len(load_rows(snapshot)) + len(load_held_out(snapshot)) == rows - 1
    assert materialised(snapshot).tombstones == (TARGET,)
    assert find_snapshot(home / "snapshots", snapshot.snapshot_id) == snapshot
    report = home / "reports" / "day-1-run"
    left = msgspec.json.decode((report / "evaluation.json").read_bytes(), type=list[Record])
    assert left == [row for row in others if row.record_id != TARGET]
    assert json.loads((home / "answers" / "bundle.json").read_text()) == {"other": "kept"}
    log = (home / "logs" / "worker.log").read_text()
    assert log.startswith("before\n")
    assert log.endswith("after\n")
    assert len(lake.quarantined()) == 1
    ledger = Ledger(f"sqlite:///{home / 'ledger.db'}")
    assert [event.kind for event in ledger.events()] == ["erasure begun", ERASED]
    assert ledger.verify() == []
    assert trace_record(TARGET).erased
    ledger.close()


@pytest.mark.parametrize("parts", [1, 3])
def test_it_does_not_come_in_again_and_the_next_snapshot_is_without_it(
    home: Path, lake: Lake, snapshot: SnapshotRef, tmp_path: Path, parts: int
) -> None:
    erase(plan_erasure([TARGET]))
    again = write_day(tmp_path / "again", "day-2")
    changed = line(7, SECRET).replace("answer number 7", "another answer")
    wrong = json.dumps({"id": TARGET, "text": SECRET, "answer": 5, "domain": "d"}) + "\n"
    same = line(90, SECRET).replace("answer number 90", "answer number 7")
    again.write_text("".join([changed, wrong, same, *(line(n, f"new {n}") for n in range(50, 80))]))
    config = CONFIG.model_copy(update={"scale": ScaleConfig(parts=parts)})
    report = lake.ingest_day(
        list_days(str(again)).days[0], config, check_rows, spread=in_order if parts > 1 else None
    )
    assert report.rows_in == report.kept + report.duplicates + report.quarantined
    assert holders(home, SECRET) == []
    refused = [row["reason"] for row in lake.quarantined(day="day-2")]
    assert sum("erased on request" in reason for reason in refused) == 2
    assert len(refused) == 3
    new = create_snapshot(lake, None, (), home / "snapshots", 1)
    assert new is not None
    ids = {row.record_id for row in (*load_rows(new), *load_held_out(new))}
    assert not {TARGET, "row-90"} & ids
    assert {"row-8", "row-60"} <= ids


def test_an_erasure_that_was_interrupted_is_finished_by_the_next_call(
    home: Path, snapshot: SnapshotRef
) -> None:
    leave_traces(home, target_of(snapshot), [])
    plan = plan_erasure([TARGET])
    for trace in plan.traces:  # killed after some of the files
        if trace.path.name == "drift.html":
            trace.path.unlink()
    erase(plan_erasure([TARGET]))
    erase(plan_erasure([TARGET]))
    assert holders(home, SECRET) == []
    assert materialised(snapshot).tombstones == (TARGET,)


@pytest.mark.parametrize("more", [False, True])
def test_the_quarantine_is_searched_again_only_when_it_changed_since_the_plan(
    home: Path, lake: Lake, snapshot: SnapshotRef, tmp_path: Path, more: bool
) -> None:
    plan = plan_erasure([TARGET])
    if more:
        late = write_day(tmp_path / "late", "day-2", first=100)
        late.write_text(late.read_text() + json.dumps({"id": "late", "text": SECRET}) + "\n")
        lake.ingest_day(list_days(str(late)).days[0], CONFIG, check_rows)
    assert quarantined_with(lake, plan.found, plan.refused) is plan.refused or more
    assert erase(plan).rows.quarantined == plan.quarantined + more == 1 + more
    assert holders(home, SECRET) == []


def test_other_records_of_the_same_text_form_are_left_alone(
    home: Path, lake: Lake, snapshot: SnapshotRef
) -> None:
    erase(plan_erasure(["row-1"]))
    ids = {row.record_id for row in (*load_rows(snapshot), *load_held_out(snapshot))}
    assert "row-1" not in ids
    assert {"row-10", "row-11", TARGET} <= ids


def test_a_snapshot_whose_rows_are_gone_is_made_anew(home: Path, snapshot: SnapshotRef) -> None:
    before = load_rows(snapshot), load_held_out(snapshot)
    for path in Path(snapshot.uri).glob("*.parquet"):
        path.unlink()
    assert (load_rows(snapshot), load_held_out(snapshot)) == before
    assert before[0][0].messages[0] == Message("user", before[0][0].prompt)


def test_an_erasure_is_applied_again_to_a_home_from_an_older_backup(
    snapshot: SnapshotRef, home: Path, lake: Lake, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    back_up(Settings.read(), place)
    erase(plan_erasure([TARGET, "row-that-came-later"]))
    copier = LedgerCopier(Settings.read().ledger_url, place)
    copier.tick()
    new = tmp_path / "new"
    told = RUN.invoke(app, ["restore", place.address, "--home", str(new)], catch_exceptions=False)
    assert "older than the erasure of 2 records: they were erased again" in told.output
    monkeypatch.setenv("SERIN_HOME", str(new))
    restored = Lake(str(new / "lake"))
    ids = [i for batch in restored.columns(["record_id"]) for i in batch.column(0).to_pylist()]
    assert TARGET not in ids
    assert len(ids) > 10
    assert read_tombstones(restored).among([TARGET, "row-that-came-later"]) == {
        TARGET,
        "row-that-came-later",
    }
    assert erase_again() == 0
    assert Ledger(Settings.read().ledger_url).verify() == []
