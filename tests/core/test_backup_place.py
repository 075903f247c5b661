"""A place of backups tells what is whole, what is damaged, and keeps the last good one."""

import stat
from pathlib import Path

import msgspec
import pytest

from core.backup_place import BackupPlace, Manifest
from core.errors import IntegrityError, NotFoundError

DAY_SECONDS = 86_400.0
NOW = 1_800_000_000.0


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return BackupPlace(str(tmp_path / "place"))


def make(place: BackupPlace, folder: Path, at: float = NOW, **texts: str) -> Manifest:
    folder.mkdir(exist_ok=True)
    files = {}
    for name, text in texts.items():
        (folder / name).write_text(text)
        files[f"kept/{name}"] = folder / name
    backup_id = place.begin(at)
    entries = place.send(files, whole=False)
    ledger = place.put_content(b"ledger")
    manifest = Manifest(backup_id, at, "/old", entries, ledger, 1, {})
    place.finish(manifest)
    return manifest


def blob(tmp_path: Path, digest: str) -> Path:
    return tmp_path / "place" / "blobs" / digest[:2] / digest


def test_what_was_kept_comes_back_and_only_its_owner_can_read_it(
    place: BackupPlace, tmp_path: Path
) -> None:
    manifest = make(place, tmp_path / "files", a="one", b="two")
    assert place.manifest() == manifest
    assert place.problems(manifest) == []
    place.fetch(manifest.entries, tmp_path / "new")
    assert (tmp_path / "new/kept/b").read_text() == "two"
    written = [*(tmp_path / "place").rglob("*"), tmp_path / "new/kept", tmp_path / "new/kept/b"]
    for path in written:
        assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path


def test_a_second_backup_sends_only_what_is_new(place: BackupPlace, tmp_path: Path) -> None:
    make(place, tmp_path / "files", a="one", b="two")
    sent: list[int] = []
    (tmp_path / "files/b").write_text("three")
    files = {"a": tmp_path / "files/a", "b": tmp_path / "files/b"}
    place.send(files, whole=False, told=sent.append)
    place.send(files, whole=True, told=sent.append)
    assert sent == [1, 2]


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "has 2 bytes, recorded are 3"),
        (lambda path: path.write_bytes(b"onf"), "does not give its digest"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["truncated", "flipped", "missing"],
)
def test_a_harmed_file_is_named(
    place: BackupPlace, tmp_path: Path, harm: object, said: str
) -> None:
    manifest = make(place, tmp_path / "files", a="one", b="two")
    assert callable(harm)
    harm(blob(tmp_path, manifest.entries[0].digest))
    problems = place.problems(manifest)
    assert len(problems) == 1
    assert "kept/a" in problems[0]
    assert said in problems[0]
    with pytest.raises(IntegrityError, match="kept/a"):
        place.fetch(manifest.entries, tmp_path / "new")


def test_a_backup_without_its_manifest_is_told_as_partial(
    place: BackupPlace, tmp_path: Path
) -> None:
    first = make(place, tmp_path / "files", a="one")
    interrupted = place.begin(NOW + 1)
    place.send({"a": tmp_path / "files/a"}, whole=False)
    second = make(place, tmp_path / "files", at=NOW + 2, a="two")
    next((tmp_path / "place/manifests").glob(f"{second.backup_id}*")).unlink()
    kept = place.kept()
    assert [(item.backup_id, item.manifest is None) for item in kept] == [
        (second.backup_id, True),
        (interrupted, True),
        (first.backup_id, False),
    ]
    assert "interrupted, or its manifest is missing" in kept[0].problem
    assert place.manifest() == first
    with pytest.raises(IntegrityError, match=interrupted):
        place.manifest(interrupted)


def test_a_damaged_manifest_is_named(place: BackupPlace, tmp_path: Path) -> None:
    make(place, tmp_path / "files", a="one")
    path = next((tmp_path / "place/manifests").iterdir())
    path.write_bytes(path.read_bytes().replace(b"/old", b"/odd"))
    assert "manifest is damaged" in place.kept()[0].problem
    with pytest.raises(IntegrityError, match="manifest is damaged"):
        place.manifest()


def test_no_backup_and_a_path_that_leads_out_are_refused(
    place: BackupPlace, tmp_path: Path
) -> None:
    with pytest.raises(NotFoundError, match="does not hold a backup"):
        place.manifest()
    entry = msgspec.structs.replace(place.put_content(b"x"), path="../outside")
    with pytest.raises(IntegrityError, match="leads out"):
        place.fetch([entry], tmp_path / "new")


def test_old_backups_go_but_never_the_last_good_one(place: BackupPlace, tmp_path: Path) -> None:
    old = make(place, tmp_path / "files", at=NOW - 40 * DAY_SECONDS, a="one")
    good = make(place, tmp_path / "files", at=NOW - 35 * DAY_SECONDS, a="two")
    bad = make(place, tmp_path / "files", at=NOW - 2 * DAY_SECONDS, a="three")
    blob(tmp_path, bad.entries[0].digest).write_bytes(b"THREE")
    assert place.prune(30, NOW) == [old.backup_id]
    assert not blob(tmp_path, old.entries[0].digest).exists()
    assert place.problems(good) == []
    newest = make(place, tmp_path / "files", at=NOW, a="four")
    assert place.prune(30, NOW) == [good.backup_id]
    assert place.problems(newest) == []
    assert place.prune(0, NOW + DAY_SECONDS) == [bad.backup_id]
    assert place.manifest() == newest


def test_blobs_of_a_backup_that_runs_are_not_left_overs(place: BackupPlace, tmp_path: Path) -> None:
    make(place, tmp_path / "files", a="one")
    place.begin(NOW + 1)
    (entry,) = place.send({"b": _file(tmp_path / "b", "running")}, whole=False)
    place.prune(30, NOW + 2)
    assert blob(tmp_path, entry.digest).exists()
    place.prune(30, NOW + 2 * DAY_SECONDS)
    assert not blob(tmp_path, entry.digest).exists()


def _file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
