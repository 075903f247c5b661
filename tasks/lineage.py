"""Where a record went: its snapshots, the versions trained on it, and those that descend from them.

Answers from lists beside the snapshots: neither Prefect nor MLflow is needed.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.contracts import Candidate, Record, SnapshotRef
from core.digests import digest_json
from core.errors import NotFoundError
from core.files import write_whole
from core.settings import Settings
from lake.erasure import find_records
from lake.members import Member, lists_with, write_members
from lake.snapshots import MEMBERS
from lake.table import Lake

TRAINED = "trained"
VERSIONS = "versions"


class VersionNote(msgspec.Struct, frozen=True):
    """A registered version as lineage knows it."""

    service: str
    version: str
    adapter_digest: str
    snapshot_id: str
    parent_version: str | None


@dataclass(frozen=True, slots=True)
class RecordLineage:
    """Where one record is. `snapshots` and `trained_on` map a name to the record's role there.

    `descends_from` are versions that go on learning from one that was trained on it.
    """

    record_id: str
    in_lake: bool
    erased: bool
    snapshots: dict[str, str]
    trained_on: dict[str, str]
    descends_from: tuple[str, ...]


def note_training(adapter_digest: str, rows: Sequence[Record], replayed: Sequence[Record]) -> None:
    """Keep which records an adapter was trained on."""
    members = [*_members(rows, "new"), *_members(replayed, "replayed")]
    write_members(_folder() / TRAINED, adapter_digest, members)


def note_version(candidate: Candidate, snapshot: SnapshotRef) -> None:
    """Keep which adapter a registered version is, and which version it continues."""
    note = VersionNote(
        service=candidate.service,
        version=candidate.model_version,
        adapter_digest=candidate.adapter_digest,
        snapshot_id=snapshot.snapshot_id,
        parent_version=candidate.stable_version,
    )
    folder = _folder() / VERSIONS
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{candidate.service}-{candidate.model_version}.json"
    write_whole(path, msgspec.json.encode(note))


def trace_record(record_id: str) -> RecordLineage:
    """Return where a record is. Raises NotFoundError for one that was never here."""
    settings = Settings.read()
    folder, lake = _folder(), Lake(settings.lake_uri)
    snapshots = lists_with(folder / MEMBERS, [record_id])
    trained = lists_with(folder / TRAINED, [record_id])
    notes = list(version_notes(settings.service))
    versions = {
        note.version: trained[note.adapter_digest][0].role
        for note in notes
        if note.adapter_digest in trained
    }
    in_lake = bool(find_records(lake, [record_id]))
    erased = bool(lake.erased_among([record_id]))
    if not (snapshots or trained or in_lake or erased):
        raise NotFoundError(
            f"no record {record_id} ever came into this lake; ids are case-sensitive"
        )
    return RecordLineage(
        record_id=record_id,
        in_lake=in_lake,
        erased=erased,
        snapshots={name: members[0].role for name, members in snapshots.items()},
        trained_on=versions,
        descends_from=descendants(notes, versions),
    )


def version_notes(service: str) -> Iterator[VersionNote]:
    """Yield every registered version of a service, oldest first."""
    found = (
        msgspec.json.decode(path.read_bytes(), type=VersionNote)
        for path in (_folder() / VERSIONS).glob("*.json")
    )
    return iter(sorted((n for n in found if n.service == service), key=lambda n: int(n.version)))


def descendants(notes: Iterable[VersionNote], versions: Iterable[str]) -> tuple[str, ...]:
    """Return the versions that continue any of `versions`, at any distance, without those."""
    first = set(versions)
    reached = set(first)
    for note in notes:  # oldest first: a parent is registered before its children
        if note.parent_version in reached:
            reached.add(note.version)
    return tuple(sorted(reached - first, key=int))


def _members(rows: Iterable[Record], role: str) -> Iterator[Member]:
    for row in rows:
        texts = [[turn.role, turn.content] for turn in row.messages]
        yield Member(row.record_id, digest_json([texts, row.response]), role)


def _folder() -> Path:
    return Settings.read().folder("snapshots")
