"""The ledger's copy follows each event; what it holds makes the same ledger again."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from release_scenarios import SERVICE, begin, promote

from core.backup_place import BackupPlace
from core.contracts import ReleaseState
from core.errors import ConflictError, IntegrityError
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.database import Database
from rollout.fake_inference_service import FakeInferenceServices
from rollout.keeper import Copying, Keeper
from rollout.ledger import Ledger
from rollout.ledger_copy import (
    LedgerCopier,
    Segment,
    load,
    prune_segments,
    read_segment,
    segments_after,
)

NOTHING_BEFORE = "0" * 64
WAIT_SECONDS = 30.0


@pytest.fixture
def place(tmp_path: Path) -> BackupPlace:
    return BackupPlace(str(tmp_path / "place"))


def url_of(ledger: Ledger) -> str:
    return str(ledger._database.url)


def rows(url: str) -> Segment:
    database = Database(url)
    try:
        return read_segment(database)
    finally:
        database.close()


def test_a_restored_copy_is_the_same_ledger_and_the_keeper_rolls_its_release_back(
    conductor: Conductor,
    ledger: Ledger,
    services: FakeInferenceServices,
    place: BackupPlace,
    tmp_path: Path,
) -> None:
    copier = LedgerCopier(url_of(ledger), place)
    promote(conductor, "1")
    assert copier.tick() > 0
    running = begin(conductor, "2", "1")
    assert copier.tick() > 0
    assert copier.tick() == 0
    copier.close()
    segments, problems = segments_after(place, 0, NOTHING_BEFORE)
    assert (len(segments), problems) == (2, [])
    new = f"sqlite:///{tmp_path}/new.db"
    load(new, segments)
    restored = Ledger(new)
    assert restored.verify() == []
    assert restored.events() == ledger.events()
    assert rows(new).rows["releases"] == rows(url_of(ledger)).rows["releases"]
    active = restored.active(SERVICE)
    assert active is not None
    assert active.release_id == running.release_id
    keeper = Keeper(restored, Conductor(restored, services, "keeper"), monotonic=_later())
    for _ in range(5):
        keeper.tick()
    assert restored.release(running.release_id).state is ReleaseState.ROLLED_BACK
    restored.close()


def _later() -> Callable[[], float]:
    """A clock that runs ten minutes at each look: nobody renews in between."""
    now = [0.0]

    def read() -> float:
        now[0] += 600.0
        return now[0]

    return read


def test_a_restart_goes_on_where_the_copy_ends(
    conductor: Conductor, ledger: Ledger, place: BackupPlace
) -> None:
    promote(conductor, "1")
    LedgerCopier(url_of(ledger), place).tick()
    promote(conductor, "2", "1")
    again = LedgerCopier(url_of(ledger), place)
    assert again.tick() == len(ledger.events()) - len(
        segments_after(place, 0, NOTHING_BEFORE)[0][0].rows["events"]
    )
    segments, problems = segments_after(place, 0, NOTHING_BEFORE)
    assert problems == []
    assert sum(len(item.rows["events"]) for item in segments) == len(ledger.events())


def test_a_gap_and_a_damaged_segment_end_the_copy_there(
    conductor: Conductor, ledger: Ledger, place: BackupPlace, tmp_path: Path
) -> None:
    copier = LedgerCopier(url_of(ledger), place)
    for version, before in (("1", None), ("2", "1"), ("3", "2")):
        promote(conductor, version, before)
        copier.tick()
    files = sorted((tmp_path / "place/ledger").iterdir())
    kept = files[1].read_bytes()
    files[1].write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    segments, problems = segments_after(place, 0, NOTHING_BEFORE)
    assert len(segments) == 1
    assert "damaged" in problems[0]
    files[1].unlink()
    segments, problems = segments_after(place, 0, NOTHING_BEFORE)
    assert len(segments) == 1
    assert f"lacks events {segments[0].last_seq + 1} to" in problems[0]


def test_segments_that_a_base_covers_are_pruned(
    conductor: Conductor, ledger: Ledger, place: BackupPlace
) -> None:
    copier = LedgerCopier(url_of(ledger), place)
    promote(conductor, "1")
    copier.tick()
    base = rows(url_of(ledger))
    promote(conductor, "2", "1")
    copier.tick()
    prune_segments(place, base.last_seq)
    segments, problems = segments_after(place, base.last_seq, base.last_hash)
    assert (len(segments), problems) == (1, [])


def test_another_ledgers_place_and_a_full_ledger_are_refused(
    conductor: Conductor, ledger: Ledger, place: BackupPlace, tmp_path: Path
) -> None:
    promote(conductor, "1")
    LedgerCopier(url_of(ledger), place).tick()
    other = f"sqlite:///{tmp_path}/other.db"
    Ledger(other).write(lambda writer: writer.record("default", SERVICE, "told", "test", {}))
    with pytest.raises(ConflictError, match="another ledger's events"):
        LedgerCopier(other, place).tick()
    with pytest.raises(ConflictError, match="is not empty"):
        load(url_of(ledger), [rows(other)])


def test_a_copy_with_an_edited_event_is_not_taken(
    conductor: Conductor, ledger: Ledger, tmp_path: Path
) -> None:
    promote(conductor, "1")
    base = rows(url_of(ledger))
    base.rows["events"][1]["holder"] = "somebody else"
    with pytest.raises(IntegrityError, match="does not verify"):
        load(f"sqlite:///{tmp_path}/new.db", [base])


def test_the_keeper_copies_events_soon(
    conductor: Conductor, ledger: Ledger, place: BackupPlace, tmp_path: Path
) -> None:
    environ = {
        "SERIN_HOME": str(tmp_path),
        "SERIN_LEDGER_URL": url_of(ledger),
        "SERIN_BACKUP_URI": place.address,
    }
    assert Settings.read(environ).backup_uri == place.address
    copying = Copying(environ, 0.02)
    promote(conductor, "1")
    stop = threading.Event()
    deadline = threading.Timer(WAIT_SECONDS, stop.set)
    deadline.start()
    wanted = len(ledger.events())
    while not stop.is_set():
        found = segments_after(place, 0, NOTHING_BEFORE)[0]
        if sum(len(item.rows["events"]) for item in found) == wanted:
            break
        stop.wait(0.02)
    deadline.cancel()
    copying.close()
    assert not stop.is_set()
