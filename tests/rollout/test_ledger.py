"""The ledger: one active release, compare-and-swap, leases, history, samples, versions."""

import sqlite3
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from release_scenarios import SERVICE, Clock, begin, bundle, candidate, finish, plan, promote
from sqlalchemy import Connection, text

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters, CounterSample, ReleaseState
from core.errors import (
    ConfigurationError,
    ConflictError,
    FencedError,
    IntegrityError,
    NotFoundError,
    UnavailableError,
)
from rollout.conductor import Conductor
from rollout.database import Database
from rollout.events import ServingShare
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.release import Release
from rollout.schema import prepare
from rollout.times import to_iso, to_seconds
from rollout.writer import Writer


def create(
    writer: Writer, version: str = "1", lease_seconds: float = 60, **fields: object
) -> Release:
    given = plan(lease_seconds=lease_seconds)
    return writer.create("default", candidate(version), given, "proposed", {}, **fields)  # type: ignore[arg-type]


def test_release_ids_are_short_and_sort_by_time(tmp_path: Path) -> None:
    clock = Clock()
    clock.seconds = to_seconds("2026-11-22T10:00:00Z")
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    first = [ledger.write(create).release_id for _ in range(2)]
    clock.seconds += 86400
    assert first == ["r-20261122-0001", "r-20261122-0002"]
    assert ledger.write(create).release_id == "r-20261123-0001"
    assert [release.release_id for release in ledger.releases(SERVICE)][::-1] == [
        *first,
        "r-20261123-0001",
    ]
    ledger.close()


def test_a_release_is_read_back_as_it_was_written(conductor: Conductor, ledger: Ledger) -> None:
    ended = promote(conductor, "1")
    assert ledger.release(ended.release_id) == ended
    with pytest.raises(NotFoundError, match="no release r-1"):
        ledger.release("r-1")


def test_a_second_active_release_of_a_service_is_refused_by_the_database(ledger: Ledger) -> None:
    def work(writer: Writer) -> None:
        create(writer, state=ReleaseState.CANARY)

    ledger.write(work)
    with pytest.raises(ConflictError):
        ledger.write(work)
    ended = ledger.active(SERVICE)
    assert ended is not None
    ledger.write(lambda writer: writer.change(ended, "done", {}, state=ReleaseState.PROMOTED))
    ledger.write(work)
    assert ledger.verify() == []


def test_every_write_is_a_compare_and_swap(ledger: Ledger) -> None:
    old = ledger.write(lambda writer: create(writer, holder="flow"))
    new = ledger.write(lambda writer: writer.change(old, "note", {}, share=5))
    assert new.share == 5
    with pytest.raises(ConflictError, match="changed meanwhile") as caught:
        ledger.write(lambda writer: writer.change(old, "note", {}, share=9))
    assert not isinstance(caught.value, FencedError)
    ledger.write(lambda writer: writer.take_over(new, "keeper", "taken_over", {}))

    def refused(writes: Callable[[Writer], Release], error: type[Exception]) -> None:
        with pytest.raises(error, match="held by keeper"):
            ledger.write(writes)

    for stale in (old, new):
        refused(partial(Writer.change, release=stale, event="note", body={}), FencedError)
        refused(partial(Writer.renew, release=stale), FencedError)
        take = partial(Writer.take_over, release=stale, holder="third", event="x", body={})
        refused(take, ConflictError)
    assert [event.kind for event in ledger.events()] == ["proposed", "note", "taken_over"]


def test_a_transaction_is_kept_whole_or_not_at_all(ledger: Ledger) -> None:
    def work(writer: Writer) -> None:
        create(writer)
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        ledger.write(work)
    assert ledger.releases() == []
    assert ledger.events() == []


def test_leases_run_out_by_the_databases_clock_and_not_by_ours(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    clock.seconds -= 10 * 86400
    release = ledger.write(
        lambda w: create(w, lease_seconds=1, holder="flow", state=ReleaseState.CANARY)
    )
    assert not ledger.stale(release)
    with pytest.raises(ConflictError, match="is held by flow"):
        ledger.write(lambda w: w.take_over(release, "keeper", "taken_over", {}, only_stale=True))
    deadline = time.monotonic() + 5
    while not ledger.stale(release):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert [stale for _, stale in ledger.all_active()] == [True]
    renewed = ledger.write(lambda writer: writer.renew(release))
    assert not ledger.stale(renewed)
    ledger.close()


def test_events_are_found_by_release_service_and_place(
    conductor: Conductor, ledger: Ledger
) -> None:
    first = promote(conductor, "1")
    second = promote(conductor, "2", "1")
    every = ledger.events()
    assert [event.seq for event in every] == list(range(1, len(every) + 1))
    assert ledger.events(since=every[-3].seq) == every[-2:]
    assert ledger.events(since=2, limit=2) == every[2:4]
    assert {event.release_id for event in ledger.events(release_id=first.release_id)} == {
        first.release_id
    }
    assert ledger.events(service=SERVICE) == every
    assert ledger.events(service="other") == []
    assert ledger.last_events(2) == every[-2:]
    assert ledger.last_events(1, second.release_id) == every[-1:]


def test_what_served_at_any_time_is_told_exactly(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    services = FakeInferenceServices()
    conductor = Conductor(ledger, services, "flow")
    start = clock.seconds
    times: list[tuple[float, dict[str, int]]] = []

    def note() -> None:
        times.append((clock.seconds, services.weights("default", SERVICE)))
        clock.seconds += 100

    promote(conductor, "1")
    note()
    release = begin(conductor, "2", "1")
    for share in (5, 50):
        release = finish(
            conductor, release, until=lambda r, s=share: r.share == s and bool(r.step_started_at)
        )
        if release.share == share:
            note()
    finish(conductor, release)
    note()
    conductor.roll_back_service(SERVICE, "ann", "x")
    note()
    for seconds, weights in times:
        told = ledger.serving_at(SERVICE, seconds + 50)
        assert {share.bundle_digest: share.percent for share in told} == weights
    assert ledger.serving_at(SERVICE, start - 1) == ()
    assert ledger.serving_at("other", clock.seconds) == ()
    assert ledger.serving_at(SERVICE, times[0][0]) == (ServingShare("1", bundle("1"), 100),)
    ledger.close()


def test_samples_come_back_as_they_were_kept(ledger: Ledger) -> None:
    buckets = tuple(range(len(LATENCY_BUCKETS_SECONDS)))
    arm = ArmCounters("assistant-00001", 10, 10, 1, buckets)
    kept = [CounterSample(1.5, 0.05, arm, None), CounterSample(2.5, 0.15, arm, arm)]
    for sample in kept:
        ledger.add_sample("r-1", sample)
    ledger.add_sample("r-2", kept[0])
    assert ledger.samples("r-1") == kept


def test_many_processes_append_one_unbroken_chain(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url).close()
    failures: list[BaseException] = []

    def work() -> None:
        try:
            ledger = Ledger(url, busy_seconds=60)
            for _ in range(10):
                ledger.write(create)
            ledger.close()
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    ledger = Ledger(url)
    assert len(ledger.events()) == 40
    assert ledger.verify() == []
    ledger.close()


def test_a_locked_ledger_is_unavailable_and_not_broken(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    ledger = Ledger(f"sqlite:///{path}", busy_seconds=0.05)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(UnavailableError, match="locked"):
        ledger.write(create)
    assert ledger.releases() == []  # readers go on
    other.execute("ROLLBACK")
    other.close()
    assert ledger.write(create).release_id.endswith("0001")
    ledger.close()


def test_a_full_disk_keeps_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    ledger.write(create)

    def fill(writer: Writer) -> None:
        writer._connection.exec_driver_sql("PRAGMA max_page_count = 1")
        for _ in range(100):
            create(writer)

    with pytest.raises(UnavailableError, match="full"):
        ledger.write(fill)
    assert len(ledger.events()) == 1
    assert ledger.verify() == []
    ledger.close()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_text("this is not a database, it only looks like one for a while" * 20)
    with pytest.raises(IntegrityError, match="damaged"):
        Ledger(f"sqlite:///{path}")


@pytest.mark.parametrize("url", ["", "nonsense", "mysql://localhost/ledger"])
def test_a_ledger_url_must_be_one_of_two_kinds(url: str) -> None:
    with pytest.raises(ConfigurationError, match="ledger URL"):
        Ledger(url)


def test_it_migrates_forward_after_a_copy_and_refuses_a_newer_one(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    ledger = Ledger(url)
    ledger.write(create)
    ledger.close()

    def add_a_column(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE samples ADD COLUMN source TEXT"))

    database = Database(url)
    copied = prepare(database, 2, {1: add_a_column})
    assert copied == f"{tmp_path}/ledger.db.before-v2"
    assert prepare(database, 2, {1: add_a_column}) is None
    database.close()
    with pytest.raises(ConfigurationError, match="use a newer Serin"):
        Ledger(url)
    old = Ledger(f"sqlite:///{copied}")
    assert len(old.releases()) == 1
    assert old.verify() == []
    old.close()


def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/ledger.db"
    Ledger(url).close()

    def fail(connection: Connection) -> None:
        connection.execute(text("ALTER TABLE samples ADD COLUMN source TEXT"))
        raise RuntimeError("power cut")

    database = Database(url)
    with pytest.raises(RuntimeError):
        prepare(database, 2, {1: fail})
    database.close()
    ledger = Ledger(url)
    ledger.add_sample("r-1", CounterSample(1.0, 0.0, None, None))
    ledger.close()


def test_times_sort_as_text_and_come_back() -> None:
    seconds = 1_795_000_000.25
    assert to_iso(seconds) == "2026-11-18T11:06:40.250000Z"
    assert to_seconds(to_iso(seconds)) == seconds
    assert to_seconds("2026-11-18T11:06:40") == 1_795_000_000
    assert to_seconds("2026-11-18T13:06:40+02:00") == 1_795_000_000
