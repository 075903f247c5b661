"""The truth about intent: releases, their hash-chained events and samples, in SQL.

Touches no traffic. SQLite by default, PostgreSQL by URL.
"""

import time as clocks
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from sqlalchemy import and_, delete, func, insert, or_, select
from sqlalchemy.engine import Connection

from core.contracts import ACTIVE_STATES, CanaryDecision, CounterSample, ReleaseState
from rollout.database import BUSY_SECONDS, Database
from rollout.events import CHECKED, Event, ServingShare, body_text, chain_problems, read_event
from rollout.release import HELD_STATES, Release
from rollout.schema import EVENTS, META, RELEASES, REVISIONS, SAMPLES, prepare
from rollout.times import to_iso
from rollout.writer import Writer, clock_went_back, in_states, one_release, read_head, read_releases

T = TypeVar("T")
PROBLEMS_MAX = 100
PROMOTED_MAX = 1000
"""How far back a rollback can choose its version."""
NAMESPACE = "default"
TOUCHED_STATES = (ReleaseState.PROMOTED, ReleaseState.ROLLED_BACK)


class Ledger:
    """One ledger. Every method raises UnavailableError when the database does not answer."""

    def __init__(
        self,
        url: str,
        clock: Callable[[], float] = clocks.time,
        busy_seconds: float = BUSY_SECONDS,
    ) -> None:
        """Open (and make, or migrate) the ledger at `url`; `clock` gives events their times."""
        self._database = Database(url, busy_seconds)
        self._clock = clock
        path = self._database.url.database
        if self._database.dialect == "sqlite" and path and path != ":memory:":
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        prepare(self._database)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()

    @property
    def now(self) -> str:
        """The time that events get now, UTC ISO."""
        return to_iso(self._clock())

    def write(self, work: Callable[[Writer], T]) -> T:
        """Run `work` as one transaction, alone among writers: all of it is kept, or nothing."""
        now = self._clock()
        return self._database.write(
            lambda connection: work(Writer(connection, self._database, now))
        )

    def release(self, release_id: str) -> Release:
        """Read one release. Raises NotFoundError."""
        return self._database.read(lambda connection: one_release(connection, release_id))

    def releases(
        self, service: str | None = None, namespace: str = NAMESPACE, limit: int = 100
    ) -> list[Release]:
        """The newest releases first, of one service or of all."""
        query = select(RELEASES).where(RELEASES.c.namespace == namespace)
        if service is not None:
            query = query.where(RELEASES.c.service == service)
        query = query.order_by(RELEASES.c.release_id.desc()).limit(limit)
        return self._database.read(lambda connection: read_releases(connection, query))

    def active(self, service: str, namespace: str = NAMESPACE) -> Release | None:
        """The service's one release that awaits approval, runs or rolls back."""
        found = self._find(namespace, service, ACTIVE_STATES)
        return found[0] if found else None

    def waiting(self, service: str, namespace: str = NAMESPACE) -> list[Release]:
        """Proposed releases that have not started, newest first."""
        return self._find(namespace, service, (ReleaseState.PROPOSED,))[::-1]

    def all_active(self) -> list[tuple[Release, bool]]:
        """Every active release with whether its lease has run out (never while it awaits)."""
        query = select(RELEASES).where(RELEASES.c.state.in_([str(s) for s in ACTIVE_STATES]))

        def work(connection: Connection) -> list[tuple[Release, bool]]:
            found = read_releases(connection, query)
            now = self._database.now_seconds(connection) if found else 0.0
            return [(item, item.state in HELD_STATES and item.lease_until <= now) for item in found]

        return self._database.read(work)

    def stale(self, release: Release) -> bool:
        """Whether the release's lease has run out by the database's clock."""
        return release.lease_until <= self._database.read(self._database.now_seconds)

    def stable(self, service: str, namespace: str = NAMESPACE) -> Release | None:
        """The release that made the version that is stable now; None before the first."""
        found = self.promoted(service, namespace, limit=1)
        return found[0] if found else None

    def promoted(
        self, service: str, namespace: str = NAMESPACE, limit: int = PROMOTED_MAX
    ) -> list[Release]:
        """The last releases whose candidate became stable, in that order, rollbacks included."""
        became_stable = or_(
            RELEASES.c.state == str(ReleaseState.PROMOTED),
            and_(RELEASES.c.state == str(ReleaseState.ROLLED_BACK), RELEASES.c.kind == "rollback"),
        )
        query = (
            select(RELEASES)
            .where(RELEASES.c.namespace == namespace, RELEASES.c.service == service)
            .where(became_stable)
            .order_by(RELEASES.c.final_seq.desc())
            .limit(limit)
        )
        return self._database.read(lambda connection: read_releases(connection, query))[::-1]

    def failed_first(self) -> list[Release]:
        """First releases that were rolled back, of services that have had no other life since."""
        newer = RELEASES.alias()
        since = select(newer.c.release_id).where(
            newer.c.namespace == RELEASES.c.namespace,
            newer.c.service == RELEASES.c.service,
            newer.c.release_id != RELEASES.c.release_id,
            or_(
                newer.c.state.in_([str(state) for state in HELD_STATES]),
                and_(
                    newer.c.state.in_([str(state) for state in TOUCHED_STATES]),
                    newer.c.final_seq > RELEASES.c.final_seq,
                    or_(newer.c.kind != "first", newer.c.state == str(ReleaseState.PROMOTED)),
                ),
            ),
        )
        query = select(RELEASES).where(
            RELEASES.c.kind == "first",
            RELEASES.c.state == str(ReleaseState.ROLLED_BACK),
            ~since.exists(),
        )
        return self._database.read(lambda connection: read_releases(connection, query))

    def events(
        self,
        since: int = 0,
        release_id: str | None = None,
        service: str | None = None,
        namespace: str = NAMESPACE,
        limit: int = 1000,
    ) -> list[Event]:
        """Events after seq `since`, oldest first; of one release, of one service, or all."""
        query = select(EVENTS).where(EVENTS.c.seq > since)
        if release_id is not None:
            query = query.where(EVENTS.c.release_id == release_id)
        if service is not None:
            query = query.where(EVENTS.c.namespace == namespace, EVENTS.c.service == service)
        query = query.order_by(EVENTS.c.seq).limit(limit)
        return self._database.read(
            lambda connection: [
                read_event(dict(row)) for row in connection.execute(query).mappings()
            ]
        )

    def last_events(self, limit: int = 20, release_id: str | None = None) -> list[Event]:
        """The newest events, oldest of them first."""
        query = select(EVENTS)
        if release_id is not None:
            query = query.where(EVENTS.c.release_id == release_id)
        query = query.order_by(EVENTS.c.seq.desc()).limit(limit)
        return self._database.read(
            lambda connection: [
                read_event(dict(row)) for row in connection.execute(query).mappings()
            ]
        )[::-1]

    def serving_event(
        self, service: str, time_seconds: float, namespace: str = NAMESPACE
    ) -> Event | None:
        """The event that made what served at a time (seconds since the epoch); None before all.

        It is the last one written, of those dated no later: where the clock was set back, the
        order of events counts. A share is dated when it was seen to be live, not when asked for.
        """
        query = (
            select(EVENTS)
            .where(EVENTS.c.namespace == namespace, EVENTS.c.service == service)
            .where(EVENTS.c.serving != "", EVENTS.c.time <= to_iso(time_seconds))
        )
        last = select(func.max(query.subquery().c.seq))
        by_time = query.order_by(EVENTS.c.time.desc(), EVENTS.c.seq.desc()).limit(1)

        def work(connection: Connection) -> Event | None:
            found = by_time
            if clock_went_back(connection):  # rare, and slower: looks at every event up to then
                found = select(EVENTS).where(EVENTS.c.seq == last.scalar_subquery())
            row = connection.execute(found).mappings().first()
            return read_event(dict(row)) if row else None

        return self._database.read(work)

    def serving_at(
        self, service: str, time_seconds: float, namespace: str = NAMESPACE
    ) -> tuple[ServingShare, ...]:
        """What served at a time, largest share first; () before all. See serving_event."""
        event = self.serving_event(service, time_seconds, namespace)
        return tuple(share for share in event.serving if share.percent) if event else ()

    def verify(self) -> list[str]:
        """Check the whole chain and the releases against it; one sentence per problem, at most 100.

        Finds edited, removed, added and reordered events, a cut tail, and a release whose state
        is not that of its last event.
        """

        def work(connection: Connection) -> list[str]:
            columns = [EVENTS.c[name] for name in CHECKED]
            rows = connection.execute(select(*columns).order_by(EVENTS.c.seq)).tuples()
            problems = chain_problems(rows, read_head(connection), PROBLEMS_MAX)
            return (problems + _strayed(connection))[:PROBLEMS_MAX]

        return self._database.read(work)

    def add_sample(self, release_id: str, sample: CounterSample) -> None:
        """Keep one scrape, so that the canary's judgement can be derived again."""
        body = msgspec.json.encode(sample).decode()
        query = insert(SAMPLES).values(release_id=release_id, body=body)
        self._database.write(lambda connection: connection.execute(query))

    def sample_texts(self, release_id: str, after_id: int = 0) -> list[tuple[int, str]]:
        """(id, JSON of a CounterSample) of the release's scrapes after one, in order of keeping."""
        query = (
            select(SAMPLES.c.sample_id, SAMPLES.c.body)
            .where(SAMPLES.c.release_id == release_id, SAMPLES.c.sample_id > after_id)
            .order_by(SAMPLES.c.sample_id)
        )
        rows = self._database.read(lambda connection: connection.execute(query).tuples().all())
        return [(int(sample_id), text) for sample_id, text in rows]

    def samples(self, release_id: str) -> list[CounterSample]:
        """The release's scrapes in the order in which they were kept."""
        texts = self.sample_texts(release_id)
        return [msgspec.json.decode(text, type=CounterSample) for _, text in texts]

    def keep_decision(self, release: Release, decision: CanaryDecision, at_seconds: float) -> None:
        """Keep the judge's last word on the service's running release, for whoever asks."""
        name = f"decision:{release.namespace}/{release.service}"
        value = body_text(
            {"release_id": release.release_id, "time_seconds": at_seconds, "decision": decision}
        )
        self.keep_note(name, value)

    def keep_note(self, name: str, text: str) -> None:
        """Keep a text under a name, in place of the one before. Notes are in no chain."""

        def work(connection: Connection) -> None:
            connection.execute(delete(META).where(META.c.name == name))
            connection.execute(insert(META).values(name=name, value=text))

        self._database.write(work)

    def note(self, name: str) -> str | None:
        """The text kept under a name; None without one."""
        query = select(META.c.value).where(META.c.name == name)
        found: str | None = self._database.read(lambda c: c.execute(query).scalar())
        return found

    def last_decision(self, release: Release) -> dict[str, Any] | None:
        """{release_id, time_seconds, decision} of a release; None once another one was judged."""
        text = self.note(f"decision:{release.namespace}/{release.service}")
        kept: dict[str, Any] | None = msgspec.json.decode(text) if text else None
        return kept if kept and kept["release_id"] == release.release_id else None

    def decided_events(self) -> list[Event]:
        """Events that a decision of the judge led to, with what it was derived from, in order."""
        query = select(EVENTS).where(EVENTS.c.body.contains('"inputs":{')).order_by(EVENTS.c.seq)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return [read_event(dict(row)) for row in rows]

    def revisions(self, service_uid: str) -> dict[str, tuple[str, str]]:
        """{revision: (bundle digest, model version)} of one InferenceService, by its uid."""
        query = select(REVISIONS).where(REVISIONS.c.service_uid == service_uid)
        rows = self._database.read(lambda connection: connection.execute(query).mappings().all())
        return {row["revision"]: (row["bundle_digest"], row["model_version"]) for row in rows}

    def _find(self, namespace: str, service: str, states: Sequence[ReleaseState]) -> list[Release]:
        query = in_states(namespace, service, states)
        return self._database.read(lambda connection: read_releases(connection, query))


def _strayed(connection: Connection) -> list[str]:
    last: Any = (
        select(EVENTS.c.release_id, func.max(EVENTS.c.seq).label("seq"))
        .group_by(EVENTS.c.release_id)
        .subquery()
    )
    query = (
        select(RELEASES.c.release_id, RELEASES.c.state, EVENTS.c.state.label("said"))
        .select_from(RELEASES)
        .outerjoin(last, last.c.release_id == RELEASES.c.release_id)
        .outerjoin(EVENTS, EVENTS.c.seq == last.c.seq)
        .where(or_(EVENTS.c.state.is_(None), EVENTS.c.state != RELEASES.c.state))
    )
    return [
        f"release {row.release_id} is {row.state} but its last event says {row.said}"
        for row in connection.execute(query)
    ]
