"""The ledger's rows outside its database: a base in each backup, then a segment for each change.

Works alike for SQLite and PostgreSQL, through SQL. What a release or an event means it ignores.
"""

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import zstandard
from sqlalchemy import Connection, Table, delete, func, insert, select

from core.backup_place import BackupPlace
from core.digests import digest_bytes
from core.errors import ConfigurationError, ConflictError, IntegrityError, NotFoundError
from rollout.database import Database
from rollout.ledger import Ledger
from rollout.schema import EVENTS, META, RELEASES, REVISIONS, SAMPLES, VERSION
from rollout.writer import read_head

log = logging.getLogger("serin.rollout")
FOLDER = "ledger"
SEGMENT_NAME = re.compile(r"(\d{12})-(\d{12})\.([0-9a-f]{64})\.zst")
SEGMENT_BYTES_MAX = 2 << 30
ROWS_AT_ONCE = 500
KEYS = (
    (RELEASES, ("release_id",)),
    (REVISIONS, ("service_uid", "revision")),
    (META, ("name",)),
    (SAMPLES, ("sample_id",)),
)
"""Tables whose rows replace earlier ones of the same key; events are only ever added."""


class Segment(msgspec.Struct, frozen=True):
    """The events `first_seq` to `last_seq`, and the rows of other tables as they stood then."""

    first_seq: int
    last_seq: int
    previous_hash: str
    last_hash: str
    sample_id: int
    rows: dict[str, list[dict[str, Any]]]
    schema_version: int = VERSION


def encode(segment: Segment) -> bytes:
    """Return a segment as compressed JSON."""
    return zstandard.compress(msgspec.json.encode(segment), 3)


def decode(content: bytes) -> Segment:
    """Read a segment. Raises IntegrityError."""
    try:
        text = zstandard.ZstdDecompressor().decompress(content, SEGMENT_BYTES_MAX)
        return msgspec.json.decode(text, type=Segment)
    except (zstandard.ZstdError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"a copy of the ledger cannot be read: {error}") from error


def read_segment(database: Database, after_seq: int = 0, after_sample: int = 0) -> Segment:
    """Read what came after an event, in one consistent view; from 0 on, the whole ledger."""

    def work(connection: Connection) -> Segment:
        events = _rows(connection, select(EVENTS).where(EVENTS.c.seq > after_seq), EVENTS)
        names = {row["release_id"] for row in events}
        releases = select(RELEASES)
        if after_seq:
            releases = releases.where(RELEASES.c.release_id.in_(names))
        samples = select(SAMPLES).where(SAMPLES.c.sample_id > after_sample)
        rows = {
            "events": events,
            "releases": _rows(connection, releases, RELEASES),
            "samples": _rows(connection, samples, SAMPLES),
            "revisions": _rows(connection, select(REVISIONS), REVISIONS),
            "meta": _rows(connection, select(META), META),
        }
        seq, last_hash = read_head(connection)
        last_sample = max((row["sample_id"] for row in rows["samples"]), default=after_sample)
        previous = events[0]["previous_hash"] if events else last_hash
        return Segment(after_seq + 1, seq, previous, last_hash, last_sample, rows)

    return database.read(work)


def load(url: str, segments: Sequence[Segment]) -> None:
    """Write a base and what followed it into an empty ledger, and check the whole chain.

    Raises ConflictError when the ledger has events, ConfigurationError for another schema's copy,
    IntegrityError when the chain does not verify.
    """
    if found := {item.schema_version for item in segments} - {VERSION}:
        raise ConfigurationError(
            f"the copied ledger has schema {found.pop()}, this Serin knows {VERSION}; restore it "
            "with the Serin that wrote it, then upgrade"
        )
    ledger, database = Ledger(url), Database(url)

    def work(connection: Connection) -> None:
        if read_head(connection)[0]:
            raise ConflictError(f"the ledger {url.rpartition('@')[2]} is not empty")
        for segment in segments:
            _insert(connection, EVENTS, segment.rows["events"])
            for table, key in KEYS:
                _replace(connection, table, key, segment.rows[table.name])
        _number_on(connection)

    try:
        database.write(work)
        if problems := ledger.verify():
            raise IntegrityError(f"the restored ledger does not verify: {'; '.join(problems)}")
    finally:
        database.close()
        ledger.close()


def segments_after(place: BackupPlace, seq: int, last_hash: str) -> tuple[list[Segment], list[str]]:
    """Return the copied segments that follow an event without a gap, and why there are no more."""
    found: list[Segment] = []
    for first, name in sorted(_segment_names(place).items()):
        last = int(name[13:25])
        if last <= seq:
            continue
        if first > seq + 1:
            return found, [f"the copied ledger lacks events {seq + 1} to {first - 1}"]
        try:
            content = place.read(f"{FOLDER}/{name}")
            if digest_bytes(content) != name[26:90]:
                raise IntegrityError("its content does not give its name")
            segment = _cut(decode(content), seq)
        except (IntegrityError, NotFoundError) as error:
            return found, [f"the copied ledger is damaged from event {first} on: {error}"]
        if segment.previous_hash != last_hash:
            return found, [f"the copied event {seq + 1} does not follow event {seq}"]
        found.append(segment)
        seq, last_hash = segment.last_seq, segment.last_hash
    return found, []


def _cut(segment: Segment, seq: int) -> Segment:
    """Return a segment without the events up to `seq`, which are known."""
    events = [row for row in segment.rows["events"] if row["seq"] > seq]
    rows = {**segment.rows, "events": events}
    previous = events[0]["previous_hash"]
    return msgspec.structs.replace(segment, first_seq=seq + 1, previous_hash=previous, rows=rows)


def prune_segments(place: BackupPlace, seq: int) -> None:
    """Remove the segments that the oldest kept backup's base, which ends at `seq`, covers."""
    for name in _segment_names(place).values():
        if int(name[13:25]) <= seq:
            place.remove(f"{FOLDER}/{name}")


class LedgerCopier:
    """Copies every event to the backups' place soon after it was written."""

    def __init__(self, url: str, place: BackupPlace) -> None:
        self._database = Database(url)
        self._place = place
        self._at: tuple[int, int] | None = None

    def tick(self) -> int:
        """Copy what is new; return how many events. Raises UnavailableError, nothing is lost by it.

        Raises ConflictError when the place holds another ledger's events.
        """
        seq, last_hash = self._database.read(read_head)
        if self._at is None:
            self._at = (self._known(seq), 0)
        after, sample = self._at
        if seq <= after:
            return 0
        segment = read_segment(self._database, after, sample)
        content = encode(segment)
        name = f"{segment.first_seq:012d}-{segment.last_seq:012d}.{digest_bytes(content)}.zst"
        self._place.put_bytes(f"{FOLDER}/{name}", content)
        self._at = (segment.last_seq, segment.sample_id)
        return segment.last_seq - after

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _known(self, head_seq: int) -> int:
        """Return up to which event the place has this ledger."""
        names = _segment_names(self._place)
        if not names:
            return 0
        name = names[max(names)]
        last = decode(self._place.read(f"{FOLDER}/{name}"))
        hashes = select(EVENTS.c.hash).where(EVENTS.c.seq == last.last_seq)
        mine = self._database.read(lambda connection: connection.execute(hashes).scalar())
        if mine != last.last_hash:
            raise ConflictError(
                f"{self._place.address} holds another ledger's events (to {last.last_seq}, this "
                f"ledger's last is {head_seq}); give this home a place of its own"
            )
        return last.last_seq


def _segment_names(place: BackupPlace) -> dict[int, str]:
    """{first event: name}; of two that begin alike the longer one."""
    names = [name for name in sorted(place.names(FOLDER)) if SEGMENT_NAME.fullmatch(name)]
    return {int(name[:12]): name for name in names}


def _rows(connection: Connection, query: Any, table: Table) -> list[dict[str, Any]]:
    ordered = query.order_by(*table.primary_key.columns)
    return [dict(row) for row in connection.execute(ordered).mappings()]


def _insert(connection: Connection, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    for start in range(0, len(rows), ROWS_AT_ONCE):
        connection.execute(insert(table), rows[start : start + ROWS_AT_ONCE])


def _number_on(connection: Connection) -> None:
    """Let PostgreSQL number new samples after the copied ones; SQLite does so by itself."""
    if connection.dialect.name == "postgresql":
        last = select(func.coalesce(func.max(SAMPLES.c.sample_id), 0) + 1).scalar_subquery()
        own = func.pg_get_serial_sequence(SAMPLES.name, SAMPLES.c.sample_id.name)
        connection.execute(select(func.setval(own, last, False)))


def _replace(
    connection: Connection, table: Table, key: Iterable[str], rows: Sequence[dict[str, Any]]
) -> None:
    for row in rows:
        where = [table.c[name] == row[name] for name in key]
        connection.execute(delete(table).where(*where))
    _insert(connection, table, rows)
