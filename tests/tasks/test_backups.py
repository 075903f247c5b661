"""A home is backed up, lost, and made again: it serves, answers and remembers as before."""

import json
import shutil
from pathlib import Path

import msgspec
import pytest

from core.backup_place import BackupPlace
from core.contracts import ReleaseState
from core.errors import IntegrityError, RefusedError, UnavailableError
from core.settings import Settings
from registry.connection import Connection
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from tasks.backups import back_up
from tasks.fingerprint import PROMPTS
from tasks.restoring import DRILLED, RESTORED, drill, restore
from tests.object_store import object_store
from tests.one_machine import ANSWERING, SERVICE, OneMachine, until

PLAN = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0, lease_seconds=2)


def settings_of(home: Path) -> Settings:
    return Settings.read({"SERIN_HOME": str(home)})


@pytest.fixture
def small(tmp_path: Path) -> Settings:
    """A home whose version 1 is stable, without a model."""
    home = tmp_path / "home"
    (home / "bundles" / f"{1:064x}").mkdir(parents=True)
    (home / "bundles" / f"{1:064x}" / "weights").write_text("weights of version 1")
    (home / "control").mkdir()
    (home / "control" / "predictor.key").write_text("secret")
    (home / "control" / "processes.json").write_text("{}")
    (home / "policy").mkdir()
    (home / "policy" / "house.yaml").write_text("rules: []")
    (home / "lake" / "records" / "_delta_log").mkdir(parents=True)
    (home / "lake" / "records" / "_delta_log" / "0.json").write_text("{}")
    promote(home, "1", f"{1:064x}", None)
    return settings_of(home)


def promote(home: Path, version: str, digest: str, before: str | None) -> None:
    from core.contracts import CanaryDecision, Candidate

    ledger = Ledger(f"sqlite:///{home}/ledger.db")
    conductor = Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)
    candidate = Candidate(
        service=SERVICE,
        model_version=version,
        bundle_digest=digest,
        bundle_uri=f"file://{home}/bundles/{digest}",
        adapter_digest="a" * 64,
        snapshot_id="5" * 64,
        verdict_digest="d" * 64,
        stable_version=before,
    )
    release = conductor.start(conductor.propose(candidate, PLAN).release_id)
    decision = CanaryDecision("promote", "good", canary_requests=1000)
    until(lambda: conductor.advance(release.release_id, decision).final, "the promotion")
    assert ledger.release(release.release_id).state is ReleaseState.PROMOTED
    ledger.close()


def test_what_a_new_machine_needs_comes_back(small: Settings, tmp_path: Path) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    made = back_up(small, place)
    paths = {entry.path for entry in made.manifest.entries}
    assert paths == {
        f"bundles/{1:064x}/weights",
        "control/predictor.key",
        "lake/records/_delta_log/0.json",
        "policy/house.yaml",
    }
    assert "manifest" in made.manifest.facts["fingerprint_problem"]
    before = Ledger(small.ledger_url).events()
    shutil.rmtree(small.home)
    found = restore(place, tmp_path / "new")
    assert (found.stable_version, found.active_releases) == ("1", ())
    assert found.warnings == ()
    for path in paths:
        assert (tmp_path / "new" / path).stat().st_mode & 0o077 == 0
    ledger = Ledger(f"sqlite:///{tmp_path}/new/ledger.db")
    assert ledger.events()[:-1] == before
    assert ledger.last_events(1)[0].kind == RESTORED
    assert ledger.verify() == []


def test_a_daily_backup_is_cheap_and_a_harmed_place_is_healed(
    small: Settings, tmp_path: Path
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    first = back_up(small, place)
    assert back_up(small, place).sent == 0
    bundle = next(entry for entry in first.manifest.entries if entry.path.startswith("bundles"))
    blob = tmp_path / "place" / "blobs" / bundle.digest[:2] / bundle.digest
    blob.write_text(blob.read_text().upper())
    with pytest.raises(IntegrityError, match=bundle.path):
        restore(place, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    assert not [*tmp_path.glob(".new.restoring*")]
    healed = back_up(small, place, whole=True)
    assert place.problems(healed.manifest) == []
    restore(place, tmp_path / "new")
    with pytest.raises(RefusedError, match="is not empty"):
        restore(place, tmp_path / "new")


def test_a_failed_backup_leaves_nothing_to_be_told_as_partial(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    send, failures = place.send, [FileNotFoundError("gone meanwhile"), UnavailableError("full")]

    def fail(*arguments: object, **named: object) -> object:
        if failures:
            raise failures.pop(0)
        return send(*arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(place, "send", fail)
    with pytest.raises(UnavailableError, match="full"):  # the first one was tried again
        back_up(small, place)
    assert place.kept() == []
    made = back_up(small, place)
    assert [item.backup_id for item in place.kept()] == [made.manifest.backup_id]


def test_a_version_that_became_stable_after_the_backup_is_named(
    small: Settings, tmp_path: Path
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    back_up(small, place)
    promote(small.home, "2", f"{2:064x}", None)
    from rollout.ledger_copy import LedgerCopier

    LedgerCopier(small.ledger_url, place).tick()
    found = restore(place, tmp_path / "new")
    assert found.stable_version == "2"
    assert "version 2 became stable after this backup" in found.warnings[0]
    assert "version 1 serves" in found.warnings[0]


def test_the_registrys_versions_come_back_and_name_the_new_place(
    small: Settings, tmp_path: Path
) -> None:
    connection = Connection.local(small.home / "mlflow")
    client = connection.client()
    model = client.create_logged_model(connection.experiment_id(), name=SERVICE)
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_model.safetensors").write_text("adapter")
    client.log_model_artifacts(model.model_id, str(tmp_path / "adapter"), artifact_path="adapter")
    client.create_registered_model(SERVICE)
    version = client.create_model_version(SERVICE, source=f"models:/{model.model_id}")
    client.set_registered_model_alias(SERVICE, "stable", version.version)
    place = BackupPlace(str(tmp_path / "place"))
    back_up(small, place)
    shutil.rmtree(small.home)
    restore(place, tmp_path / "new")
    there = Connection.local(tmp_path / "new" / "mlflow").client()
    assert there.get_model_version_by_alias(SERVICE, "stable").version == version.version
    location = there.get_logged_model(model.model_id).artifact_location
    assert location.startswith(f"file://{tmp_path}/new/mlflow")
    path = Path(location.removeprefix("file://")) / "adapter" / "adapter_model.safetensors"
    assert path.read_text() == "adapter"


def test_a_bucket_is_a_place_as_a_folder_is(
    small: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with object_store("backups", monkeypatch) as bucket:
        place = BackupPlace(f"{bucket}/serin")
        first = back_up(small, place)
        assert first.sent == len({entry.digest for entry in first.manifest.entries})
        assert back_up(small, place).sent == 0
        assert place.problems(first.manifest) == []
        found = restore(place, tmp_path / "new")
        assert found.stable_version == "1"
        entry = first.manifest.entries[0]
        place.put_bytes(f"blobs/{entry.digest[:2]}/{entry.digest}", b"?")
        assert "recorded are" in place.problems(first.manifest)[0]
        place.remove(f"manifests/{first.manifest.backup_id}")
        assert place.prune(0.0, first.manifest.at_seconds + 1e6) == []


@pytest.fixture
def modelled(tmp_path: Path, bundle: Path) -> Settings:
    """A home whose stable version is a real bundle."""
    home = tmp_path / "home"
    shutil.copytree(bundle, home / "bundles" / bundle.name)
    promote(home, "1", bundle.name, None)
    return settings_of(home)


def test_a_drill_serves_what_was_restored_and_records_what_it_found(
    modelled: Settings, tmp_path: Path
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    made = back_up(modelled, place)
    assert set(made.manifest.facts["fingerprint"]) == set(PROMPTS)
    folder = tmp_path / "papers"
    folder.mkdir()
    done = drill(modelled, place, folder)
    assert done.passed, done
    assert (done.rpo_events, done.prompts, done.differing) == (0, len(PROMPTS), ())
    assert not [*folder.glob("drill-*")]
    ledger = Ledger(modelled.ledger_url)
    event = ledger.last_events(1)[0]
    assert (event.kind, event.body["passed"]) == (DRILLED, True)
    assert event.body["rto_seconds"] == done.rto_seconds
    lied = msgspec.structs.replace(
        made.manifest,
        backup_id=place.begin(made.manifest.at_seconds + 60),
        facts={**made.manifest.facts, "fingerprint": {PROMPTS[0]: "0" * 64}},
    )
    place.finish(lied)
    done = drill(modelled, place, folder)
    assert not done.passed
    assert done.differing == (PROMPTS[0],)
    assert done.rpo_events == 1  # the event of the first drill is in no copy
    assert ledger.last_events(1)[0].body["passed"] is False


@pytest.mark.slow
def test_a_lost_machine_in_the_midst_of_a_canary_comes_back_on_stable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = BackupPlace(str(tmp_path / "place"))
    (tmp_path / "old").mkdir()
    monkeypatch.setenv("SERIN_BACKUP_URI", place.address)
    machine = OneMachine(tmp_path / "old", ANSWERING)
    try:
        machine.start()
        ledger = Ledger(machine.ledger_url)
        conductor = machine.conductor(ledger, "flow")
        promote_for_real(machine, conductor, "1", None)
        release = conductor.start(conductor.propose(machine.candidate("2", "1"), PLAN).release_id)
        until(lambda: conductor.advance(release.release_id).step_started_at, "the canary")
        assert machine.routed() == {f"{1:064x}": 50, f"{2:064x}": 50}
        for number in (1, 2):
            (machine.home / "bundles" / f"{number:064x}" / "weights").write_text(str(number))
        made = back_up(settings_of(machine.home), place)
        assert made.manifest.facts["active_releases"] == [release.release_id]
        machine.start_keeper()
        until(lambda: place.names("ledger"), "the ledger's copy")
        written = len(ledger.events())
        ledger.close()
    finally:
        machine.stop()
    shutil.rmtree(machine.home)
    found = restore(place, tmp_path / "new")
    assert found.active_releases == (release.release_id,)
    assert found.ledger_seq >= written
    machine = OneMachine(tmp_path / "new", ANSWERING)
    ledger = Ledger(machine.ledger_url)
    try:
        machine.start()
        machine.start_keeper()
        until(lambda: ledger.release(release.release_id).final, "the rollback")
        assert ledger.release(release.release_id).state is ReleaseState.ROLLED_BACK
        assert ledger.verify() == []
        until(lambda: machine.routed() == {f"{1:064x}": 100}, "all traffic on stable")
        until(lambda: machine.ask() == (200, "1"), "an answer of stable")
        revisions = json.loads((machine.home / "control" / "revisions.json").read_text())
        assert str(tmp_path / "old") not in json.dumps(revisions)
    finally:
        ledger.close()
        machine.stop()


def promote_for_real(
    machine: OneMachine, conductor: Conductor, version: str, before: str | None
) -> None:
    from core.contracts import CanaryDecision

    decision = CanaryDecision("promote", "good", canary_requests=1000)
    proposed = conductor.propose(machine.candidate(version, before), PLAN)
    release = conductor.start(proposed.release_id)
    until(lambda: conductor.advance(release.release_id, decision).final, f"version {version}")
