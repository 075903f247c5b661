"""What one ledger transaction may do: create, change, renew and take over releases, each with its
event. Every change is a compare-and-swap on epoch and write count; policy is the caller's."""

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from sqlalchemy import Connection, RowMapping, Select, func, insert, select, update

from core.contracts import FINAL_STATES, Candidate, ReleaseState
from core.errors import ConflictError, FencedError, NotFoundError
from rollout.database import Database
from rollout.events import GENESIS, ServingShare, body_text, chain, serving_text
from rollout.plan import ReleasePlan
from rollout.release import Kind, Release, decode_release, encode_release
from rollout.schema import EVENTS, META, RELEASES, REVISIONS
from rollout.times import to_iso

COLUMNS = ("state", "epoch", "holder", "lease_until", "writes")
"""Fields of a release whose truth is the database column, not the text beside it."""
CLOCK_WENT_BACK = "clock_went_back"


class Writer:
    """One transaction, alone among writers. `now` is the wall clock, leases use the database's."""

    def __init__(self, connection: Connection, database: Database, now_seconds: float) -> None:
        self._connection = connection
        self._lease_now = database.now_seconds(connection)
        self.now = to_iso(now_seconds)

    def release(self, release_id: str) -> Release:
        """Read one release. Raises NotFoundError."""
        return one_release(self._connection, release_id)

    def releases(
        self, namespace: str, service: str, states: Collection[ReleaseState]
    ) -> list[Release]:
        """The service's releases in any of `states`, oldest first."""
        return read_releases(self._connection, in_states(namespace, service, states))

    def create(
        self,
        namespace: str,
        candidate: Candidate,
        plan: ReleasePlan,
        event: str,
        body: Mapping[str, Any],
        kind: Kind = "canary",
        holder: str = "",
        **fields: Any,
    ) -> Release:
        """Add a release with its first event; with a holder it is held from now on.

        Raises ConflictError when it would be a second active release of its service.
        """
        release = Release(
            release_id=self._next_id(),
            namespace=namespace,
            service=candidate.service,
            kind=kind,
            state=fields.pop("state", ReleaseState.PROPOSED),
            candidate=candidate,
            plan=plan,
            created_at=self.now,
            epoch=1 if holder else 0,
            holder=holder,
            lease_until=self._lease_now + plan.lease_seconds if holder else 0.0,
            **fields,
        )
        self._connection.execute(insert(RELEASES).values(**_row(release)))
        self._append(release, event, body, ())
        return release

    def change(
        self,
        release: Release,
        event: str,
        body: Mapping[str, Any],
        serving: Iterable[ServingShare] = (),
        **changes: Any,
    ) -> Release:
        """Write `changes` and the event that says why.

        Raises FencedError when the release has another epoch than the one read, ConflictError
        when it was changed since in the same epoch.
        """
        self._check(release)
        changed = dataclasses.replace(release, **changes, writes=release.writes + 1)
        return self._store(changed, event, body, serving)

    def renew(self, release: Release) -> Release:
        """Hold the release for another lease. No event. Raises as `change`."""
        self._check(release)
        until = self._lease_now + release.plan.lease_seconds
        renewed = dataclasses.replace(release, lease_until=until, writes=release.writes + 1)
        self._update(renewed)
        return renewed

    def take_over(
        self,
        release: Release,
        holder: str,
        event: str | None,
        body: Mapping[str, Any],
        serving: Iterable[ServingShare] = (),
        only_stale: bool = False,
        **changes: Any,
    ) -> Release:
        """Raise the epoch, so that whoever held the release cannot write any more, and hold it.

        Without an `event` it is the same holder again. Raises ConflictError when somebody else
        was faster, or when `only_stale` and the lease has not run out.
        """
        found = self.release(release.release_id)
        if (found.epoch, found.state) != (release.epoch, release.state):
            raise ConflictError(
                f"release {found.release_id} is {found.state}, held by {found.holder}"
            )
        if only_stale and found.lease_until > self._lease_now:
            raise ConflictError(f"release {found.release_id} is held by {found.holder}")
        taken = dataclasses.replace(
            found,
            **changes,
            epoch=found.epoch + 1,
            holder=holder,
            lease_until=self._lease_now + found.plan.lease_seconds,
            writes=found.writes + 1,
        )
        if event is None:
            self._update(taken)
            return taken
        return self._store(taken, event, {**body, "from_holder": found.holder}, serving)

    def record(
        self, namespace: str, service: str, event: str, holder: str, body: Mapping[str, Any]
    ) -> None:
        """Append an event that is about a service and no release, such as a recovery."""
        self._append_row(
            {
                "release_id": "",
                "namespace": namespace,
                "service": service,
                "kind": event,
                "state": "",
                "epoch": 0,
                "holder": holder,
                "body": body_text(body),
                "serving": "",
            }
        )

    def learn_revision(
        self, service_uid: str, revision: str, bundle_digest: str, model_version: str
    ) -> None:
        """Remember which bundle a revision is; what was learnt first stays."""
        key = (REVISIONS.c.service_uid == service_uid) & (REVISIONS.c.revision == revision)
        if self._connection.execute(select(REVISIONS.c.revision).where(key)).first() is None:
            row = {
                "service_uid": service_uid,
                "revision": revision,
                "bundle_digest": bundle_digest,
                "model_version": model_version,
            }
            self._connection.execute(insert(REVISIONS).values(**row))

    def _check(self, release: Release) -> None:
        found = self.release(release.release_id)
        if found.epoch != release.epoch:
            raise FencedError(
                f"release {release.release_id} is in epoch {found.epoch}, held by {found.holder}; "
                f"epoch {release.epoch} may not write any more"
            )
        if found.writes != release.writes:
            raise ConflictError(f"release {release.release_id} was changed meanwhile")

    def _store(
        self,
        release: Release,
        event: str,
        body: Mapping[str, Any],
        serving: Iterable[ServingShare],
    ) -> Release:
        seq = self._append(release, event, body, serving)
        self._update(release, final_seq=seq if release.state in FINAL_STATES else None)
        return release

    def _update(self, release: Release, **columns: Any) -> None:
        where = RELEASES.c.release_id == release.release_id
        self._connection.execute(update(RELEASES).where(where).values(**_row(release), **columns))

    def _append(
        self,
        release: Release,
        event: str,
        body: Mapping[str, Any],
        serving: Iterable[ServingShare],
    ) -> int:
        return self._append_row(
            {
                "release_id": release.release_id,
                "namespace": release.namespace,
                "service": release.service,
                "kind": event,
                "state": str(release.state),
                "epoch": release.epoch,
                "holder": release.holder,
                "body": body_text(body),
                "serving": serving_text(serving),
            }
        )

    def _append_row(self, content: Mapping[str, Any]) -> int:
        """Append an event, without its place, time and hashes, to the chain; return its place."""
        seq, previous = read_head(self._connection)
        row = {"seq": seq + 1, "time": self.now, **content}
        self._note_clock(seq)
        linked = chain(row, previous)
        self._connection.execute(insert(EVENTS).values(**linked))
        head = f"{seq + 1}:{linked['hash']}"
        if seq == 0:
            self._connection.execute(insert(META).values(name="head", value=head))
        else:
            self._connection.execute(update(META).where(META.c.name == "head").values(value=head))
        return seq + 1

    def _note_clock(self, last_seq: int) -> None:
        """Remember that some event is dated before an earlier one: times then tell no order."""
        query = select(EVENTS.c.time).where(EVENTS.c.seq == last_seq)
        last = self._connection.execute(query).scalar_one_or_none()
        if last is not None and self.now < last and not clock_went_back(self._connection):
            self._connection.execute(insert(META).values(name=CLOCK_WENT_BACK, value=self.now))

    def _next_id(self) -> str:
        prefix = f"r-{self.now[:10].replace('-', '')}-"
        column = RELEASES.c.release_id
        query = select(func.max(column)).where(column > prefix, column < prefix + "~")
        last = self._connection.execute(query).scalar_one_or_none()
        return f"{prefix}{int(last.removeprefix(prefix)) + 1 if last else 1:04d}"


def clock_went_back(connection: Connection) -> bool:
    """Whether any event is dated before one that was written earlier."""
    query = select(META.c.value).where(META.c.name == CLOCK_WENT_BACK)
    return connection.execute(query).first() is not None


def read_head(connection: Connection) -> tuple[int, str]:
    """Return (seq, hash) of the last event written; (0, GENESIS) before the first."""
    query = select(META.c.value).where(META.c.name == "head")
    value = connection.execute(query).scalar_one_or_none()
    if value is None:
        return 0, GENESIS
    seq, _, found = value.partition(":")
    return int(seq), found


def one_release(connection: Connection, release_id: str) -> Release:
    """Read one release. Raises NotFoundError."""
    found = read_releases(connection, select(RELEASES).where(RELEASES.c.release_id == release_id))
    if not found:
        raise NotFoundError(f"there is no release {release_id}; `serin history` lists them")
    return found[0]


def read_releases(connection: Connection, query: Select[Any]) -> list[Release]:
    """Run a query for whole rows of the releases table."""
    return [_release(row) for row in connection.execute(query).mappings()]


def in_states(namespace: str, service: str, states: Collection[ReleaseState]) -> Select[Any]:
    """The query for a service's releases in any of `states`, oldest first."""
    return (
        select(RELEASES)
        .where(RELEASES.c.namespace == namespace, RELEASES.c.service == service)
        .where(RELEASES.c.state.in_([str(state) for state in states]))
        .order_by(RELEASES.c.release_id)
    )


def _release(row: RowMapping) -> Release:
    return decode_release(row["body"], **{name: row[name] for name in COLUMNS})


def _row(release: Release) -> dict[str, Any]:
    if not math.isfinite(release.lease_until):
        raise ConflictError(f"release {release.release_id}: the lease's end is not a number")
    columns = {name: getattr(release, name) for name in COLUMNS}
    return {
        **columns,
        "state": str(release.state),
        "release_id": release.release_id,
        "namespace": release.namespace,
        "service": release.service,
        "kind": release.kind,
        "model_version": release.candidate.model_version,
        "body": encode_release(release),
    }
