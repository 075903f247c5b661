"""`serin gc`: what is protected stays, what is young stays, the rest goes only on demand."""

import os
import time
from pathlib import Path

import pytest

from cli.data import gc
from cli.retention import Leftover, RetentionConfig, leftovers
from core.contracts import CanaryDecision, Candidate
from core.keys import read_key
from core.settings import Settings
from observability.audit import Audit, AuditConfig
from observability.audit_rows import AuditRow
from observability.audit_segments import verify_audit
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan

PROMOTE = CanaryDecision("promote", "better", canary_requests=1000)
NOTHING_KEPT = RetentionConfig(keep=0, stable_keep=2, days=0, hours_min=0)
OLD_SECONDS = time.time() - 90 * 86_400


def digest(version: int) -> str:
    return f"{version:x}" * 64


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    settings = Settings.read()
    ledger = Ledger(settings.ledger_url)
    conductor = Conductor(ledger, FakeInferenceServices(), "flow")
    for version in (1, 2, 3):
        release(conductor, version)
    propose(conductor, 4)
    ledger.close()
    for version in range(1, 7):
        folder = settings.folder("bundles") / digest(version)
        folder.mkdir()
        (folder / "weights.bin").write_bytes(b"w" * 1000)
        settings.folder("adapters").joinpath(f"day-{digest(version)[:12]}").mkdir()
        old(folder)
    return settings


def propose(conductor: Conductor, version: int) -> str:
    candidate = Candidate(
        service="assistant",
        model_version=str(version),
        bundle_digest=digest(version),
        bundle_uri=f"file:///bundles/{digest(version)}",
        adapter_digest=digest(version),
        snapshot_id=digest(version),
        verdict_digest="verdict",
        stable_version=str(version - 1) if version > 1 else None,
    )
    plan = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0)
    return conductor.propose(candidate, plan).release_id


def release(conductor: Conductor, version: int) -> None:
    current = conductor.start(propose(conductor, version))
    for _ in range(50):
        if current.final:
            break
        current = conductor.advance(current.release_id, PROMOTE)
    assert str(current.state) == "PROMOTED"


def old(path: Path) -> None:
    os.utime(path, (OLD_SECONDS, OLD_SECONDS))


def named(found: list[Leftover], kind: str) -> set[str]:
    return {item.name for item in found if item.kind == kind}


def test_stable_previous_and_open_releases_are_kept(settings: Settings) -> None:
    found = list(leftovers(settings, NOTHING_KEPT))
    # 3 is stable, 2 previous, 4 is proposed.
    assert named(found, "bundle") == {digest(1), digest(5), digest(6)}
    assert named(found, "adapter") == {f"day-{digest(n)[:12]}" for n in (1, 5, 6)}


def test_the_newest_are_kept_beside_what_is_protected(settings: Settings) -> None:
    os.utime(settings.home / "bundles" / digest(6), (OLD_SECONDS + 60, OLD_SECONDS + 60))
    config = NOTHING_KEPT.model_copy(update={"keep": 1})
    assert named(list(leftovers(settings, config)), "bundle") == {digest(1), digest(5)}


def test_what_was_touched_lately_is_left_alone(settings: Settings) -> None:
    os.utime(settings.home / "bundles" / digest(5))
    partial = settings.home / "bundles" / ".building-abc"
    partial.mkdir()
    config = NOTHING_KEPT.model_copy(update={"hours_min": 1})
    found = list(leftovers(settings, config))
    assert named(found, "bundle") == {digest(1), digest(6)}
    assert named(found, "unfinished bundle") == set()
    old(partial)
    assert named(list(leftovers(settings, config)), "unfinished bundle") == {".building-abc"}


def test_what_the_control_plane_serves_is_kept(settings: Settings) -> None:
    path = settings.folder("control") / "services.json"
    path.write_text(f'{{"storageUri": "file:///x/bundles/{digest(5)}"}}')
    assert digest(5) not in named(list(leftovers(settings, NOTHING_KEPT)), "bundle")


def test_old_reports_and_stories_go_but_never_a_running_story(settings: Settings) -> None:
    from cli.processes import identify
    from cli.stack_file import ChildRecord, StackFile, write_stack

    for name in ("day-1-abc", "day-2-abc"):
        settings.folder("reports").joinpath(name).mkdir()
    old(settings.home / "reports" / "day-1-abc")
    for name in ("told", "running"):
        settings.folder("stories").joinpath(name).mkdir()
    record = ChildRecord((), identity=identify(os.getpid()))
    write_stack(settings.home / "stories" / "running", StackFile(processes={"gateway": record}))
    for name in ("told", "running"):
        old(settings.home / "stories" / name)
    config = NOTHING_KEPT.model_copy(update={"days": 30})
    found = list(leftovers(settings, config))
    assert named(found, "report") == {"day-1-abc"}
    assert named(found, "story") == {"told"}


def test_nothing_goes_without_being_told(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path for path in settings.home.rglob("*") if "ledger" not in path.name)
    gc(delete=False, keep=0, days=0, hours_min=0)
    after = sorted(path for path in settings.home.rglob("*") if "ledger" not in path.name)
    assert after == before
    assert "nothing was deleted" in capsys.readouterr().out


def test_delete_deletes_exactly_what_was_listed(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    gc(delete=True, keep=0, days=30, hours_min=0)
    left = {path.name for path in (settings.home / "bundles").iterdir()}
    # By default the three versions that were last stable are kept.
    assert left == {digest(version) for version in (1, 2, 3, 4)}
    assert "deleted" in capsys.readouterr().out
    gc(delete=True, keep=0, days=30, hours_min=0)
    assert "0 left-overs" in capsys.readouterr().out


def test_old_segments_of_the_audit_go_and_what_was_changed_is_kept(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, key = settings.home / "audit", read_key(settings.home / "control" / "audit.key")
    names = []
    for number in range(3):
        audit = Audit(folder, "predictor", key, AuditConfig())
        audit.append(AuditRow(kind="answer", time_seconds=1.0, request_id=f"r{number}"))
        audit.close()
        names.append(audit.process)
    changed = folder / names[0] / "000001.jsonl"
    changed.write_text(changed.read_text().replace("r0", "r9"))
    for name in names[:2]:
        old(folder / name / "000001.jsonl")
    config = NOTHING_KEPT.model_copy(update={"audit_days": 30})
    listed = named(list(leftovers(settings, config)), "audit")
    assert listed == {f"{name}, segments 1-1" for name in names[:2]}
    gc(delete=True, keep=100, days=999, audit_days=30, hours_min=0)
    assert f"kept: {names[0]} is kept, it is not whole" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(
        [names[0], names[2]]
    )
    report = verify_audit(folder, key)
    assert {chain.process for chain in report.chains if chain.problems} == {names[0]}
    assert {chain.process: chain.retired_rows for chain in report.chains}[names[1]] == 1


def test_an_empty_home_has_no_leftovers(tmp_path: Path) -> None:
    empty = Settings.read({"SERIN_HOME": str(tmp_path / "new")})
    assert list(leftovers(empty, NOTHING_KEPT)) == []
    assert not (tmp_path / "new").exists()
