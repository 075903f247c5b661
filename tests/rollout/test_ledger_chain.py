"""The event chain: whatever is done to the tables behind the ledger's back is found."""

import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from release_scenarios import SERVICE, promote
from sqlalchemy import insert

from core.contracts import ReleaseState
from core.digests import digest_json
from rollout.conductor import Conductor
from rollout.events import GENESIS, HashedContent, chain, event_hash
from rollout.ledger import Ledger
from rollout.schema import EVENTS, META, RELEASES
from rollout.times import to_iso
from rollout.writer import Writer

LONG = 100_000


@pytest.fixture
def table(conductor: Conductor, ledger: Ledger, fast_folder: Path) -> Iterator[sqlite3.Connection]:
    """The tables behind a ledger with two promoted releases, without its rules."""
    promote(conductor, "1")
    promote(conductor, "2", "1")
    assert ledger.verify() == []
    connection = sqlite3.connect(fast_folder / "ledger.db", isolation_level=None)
    yield connection
    connection.close()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("UPDATE events SET body = '{}' WHERE seq = 3", "event 3 was edited"),
        ("UPDATE events SET time = '2020' WHERE seq = 3", "event 3 was edited"),
        ("UPDATE events SET serving = '' WHERE kind = 'promoted'", "was edited"),
        ("UPDATE events SET state = 'REJECTED' WHERE seq = 6", "event 6 was edited"),
        ("UPDATE events SET holder = 'x', epoch = 9 WHERE seq = 4", "event 4 was edited"),
        ("DELETE FROM events WHERE seq = 3", "events 3 to 3 are missing"),
        ("DELETE FROM events WHERE seq < 3", "events 1 to 2 are missing"),
        ("DELETE FROM events WHERE seq > 10", "the chain ends at event 10"),
        ("DELETE FROM events", "the chain ends at event 0"),
        ("UPDATE meta SET value = '1:x' WHERE name = 'head'", "the last one written was 1"),
        ("UPDATE releases SET state = 'REJECTED'", "is REJECTED but its last event says PROMOTED"),
        (
            "INSERT INTO releases SELECT 'r-x', namespace, service, kind, state, model_version, "
            "epoch, holder, lease_until, writes, final_seq, body FROM releases LIMIT 1",
            "r-x is PROMOTED but its last event says None",
        ),
    ],
)
def test_a_change_is_found(
    ledger: Ledger, table: sqlite3.Connection, change: str, problem: str
) -> None:
    table.execute(change)
    problems = ledger.verify()
    assert problem in "\n".join(problems)


def test_an_edit_that_recomputes_its_own_hash_is_found_by_the_next_event(
    ledger: Ledger, table: sqlite3.Connection
) -> None:
    names = [column.name for column in EVENTS.columns]
    row = dict(
        zip(names, table.execute("SELECT * FROM events WHERE seq = 3").fetchone(), strict=True)
    )
    previous = row.pop("previous_hash")
    row.pop("hash")
    forged = chain({**row, "body": '{"action":"nothing"}'}, previous)
    table.execute(
        "UPDATE events SET body = ?, hash = ? WHERE seq = 3", (forged["body"], forged["hash"])
    )
    assert ledger.verify() == ["event 4 does not follow event 3: chain changed"]


def test_an_event_cannot_be_put_in_twice(table: sqlite3.Connection) -> None:
    with pytest.raises(sqlite3.IntegrityError):
        table.execute(
            "INSERT INTO events SELECT 999, time, release_id, namespace, service, kind, state, "
            "epoch, holder, body, serving, previous_hash, 'h' FROM events WHERE seq = 2"
        )


@given(
    st.dictionaries(st.text(), st.text() | st.integers(-(2**53), 2**53)),
    st.text(),
    st.integers(0, 2**53),
)
def test_the_hash_is_that_of_canonical_json(body: dict[str, object], words: str, seq: int) -> None:
    given_body = msgspec.json.encode(body, order="deterministic")
    names = [
        name for name in HashedContent.__struct_fields__ if name not in ("body", "epoch", "seq")
    ]
    fields = dict.fromkeys(names, words)
    content = HashedContent(body=msgspec.Raw(given_body), epoch=1, seq=seq, **fields)
    try:
        expected = digest_json({"body": body, "epoch": 1, "seq": seq, **fields})
    except UnicodeEncodeError:
        return  # lone surrogates are no text that a database could hold
    assert event_hash(content) == expected


def fill(ledger: Ledger, releases: int, events: int) -> None:
    """Write a long history as quickly as the tables take it."""
    start = time.time() - events
    rows = []
    previous = GENESIS
    each = events // releases
    for seq in range(1, events + 1):
        release = f"r-20260101-{(seq - 1) // each:05d}"
        last = seq % each == 0
        serving = '[{"bundle_digest":"b","model_version":"1","percent":100}]'
        row = {
            "seq": seq,
            "time": to_iso(start + seq),
            "release_id": release,
            "namespace": "default",
            "service": SERVICE,
            "kind": "promoted" if last else "applied",
            "state": "PROMOTED" if last else "CANARY",
            "epoch": 1,
            "holder": "flow",
            "body": '{"action":"RaiseShare","resource_version":"12345"}',
            "serving": serving if last else "",
        }
        rows.append(chain(row, previous))
        previous = rows[-1]["hash"]

    def work(writer: Writer) -> None:
        connection = writer._connection
        connection.execute(EVENTS.delete())
        connection.execute(insert(EVENTS), rows)
        connection.execute(
            META.update().where(META.c.name == "head").values(value=f"{events}:{previous}")
        )
        template = connection.execute(RELEASES.select()).mappings().one()
        connection.execute(RELEASES.delete())
        connection.execute(
            insert(RELEASES),
            [
                {
                    **template,
                    "release_id": f"r-20260101-{number:05d}",
                    "state": str(ReleaseState.PROMOTED),
                    "final_seq": (number + 1) * each,
                }
                for number in range(releases)
            ],
        )

    ledger.write(work)


def milliseconds(call: Callable[[], object]) -> float:
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return best * 1000


def test_a_history_of_100000_events_is_answered_in_under_100_ms(
    conductor: Conductor, ledger: Ledger
) -> None:
    promote(conductor, "1")
    fill(ledger, 5_000, LONG)
    middle = time.time() - LONG / 2
    took = {
        "serving_at": milliseconds(lambda: ledger.serving_at(SERVICE, middle)),
        "events of a release": milliseconds(lambda: ledger.events(release_id="r-20260101-02500")),
        "last events": milliseconds(ledger.last_events),
        "page": milliseconds(lambda: ledger.events(since=50_000, service=SERVICE, limit=100)),
        "active": milliseconds(ledger.all_active),
        "waiting": milliseconds(lambda: ledger.waiting(SERVICE)),
        "stable": milliseconds(lambda: ledger.stable(SERVICE)),
    }
    assert all(value < 100 for value in took.values()), took
    began = time.perf_counter()
    assert ledger.verify() == []
    assert time.perf_counter() - began < 10
