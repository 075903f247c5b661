"""Snapshots: immutable slices of the lake, named by the digest of their content; flags and passes.

A snapshot is the ids and digests of its records (`members/ID.parquet`); its folder holds a manifest
and the rows as a cache, which can be made anew from the lake. Beside the folders lie the marks that
the gates' verdicts left (`flags/`, `passed/`, `readmitted/`).
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from core.contracts import Record, SnapshotRef
from core.digests import digest_file, digest_json
from core.errors import IntegrityError, NotFoundError
from core.files import write_whole
from lake.budget import Keep, within_budget
from lake.config import SelectionConfig
from lake.members import Member, read_members, write_members
from lake.replay import earlier_held_out, earlier_rows
from lake.schema import RECORDS_SCHEMA
from lake.selection import Selected
from lake.table import Lake, VersionEntry, record_of

__all__ = [
    "Mark",
    "Materialised",
    "SnapshotManifest",
    "create_snapshot",
    "earlier_held_out",
    "earlier_rows",
    "find_snapshot",
    "flag_snapshot",
    "flagged_versions",
    "flags",
    "load_held_out",
    "load_rows",
    "mark_passed",
    "materialise",
    "old_snapshots",
    "passed_versions",
    "read_manifest",
    "readmit",
]

TRAINING, HELD_OUT, MANIFEST = "training.parquet", "held_out.parquet", "snapshot.json"
CACHE = "cache.json"
FLAGS, PASSED, READMITTED = "flags", "passed", "readmitted"
MEMBERS = "members"
IN_ORDER = [("day", "ascending"), ("source", "ascending"), ("row", "ascending")]


@dataclass(frozen=True, slots=True)
class SnapshotManifest:
    """What a snapshot holds. `versions` maps each Delta version to its day.

    `files` are the digests of the rows as they were cut, `lake_uri` is where they came from,
    `selection` how they were chosen, where a budget left others out.
    """

    snapshot: SnapshotRef
    versions: dict[int, str]
    rows_by_slice: dict[str, int]
    files: dict[str, str]
    schema_version: int = 1
    lake_uri: str = ""
    selection: Selected | None = None


@dataclass(frozen=True, slots=True)
class Materialised:
    """A snapshot's rows as they are in its folder now: digests of the files, and what is missing.

    `tombstones` are the ids of records that the snapshot held and the lake no longer has.
    """

    files: dict[str, str]
    tombstones: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Mark:
    """What a verdict said of a snapshot: the versions it speaks for, and why."""

    snapshot_id: str
    versions: tuple[int, ...]
    days: tuple[str, ...]
    reasons: tuple[str, ...]
    at: str


def create_snapshot(
    lake: Lake,
    after_version: int | None,
    flagged: Collection[int],
    folder: Path,
    rows_min: int,
    selection: SelectionConfig = SelectionConfig(),
) -> SnapshotRef | None:
    """Cut a snapshot of all days after `after_version` that are not flagged.

    `after_version` is the end of stable's recorded range (None: there is no stable). A day that was
    re-admitted after stable had moved past it is new as well, until a stable was trained on it.
    With a budget in `selection` it holds the rows chosen by it, and its manifest says how. Returns
    None when there are fewer than `rows_min` training rows. The same rows give the same snapshot,
    which is then reused.
    """
    entries = _new_entries(lake.versions(), after_version, flagged, folder)
    table, selected = within_budget(
        lake,
        [entry.version for entry in entries],
        selection,
        lambda keep: _rows_in_order(lake, entries, keep),
    )
    training = table.filter(pa.compute.invert(table["held_out"]))
    held_out = table.filter(table["held_out"])
    if not entries or training.num_rows < rows_min:
        return None
    columns = table.select(["record_id", "content_digest", "held_out"]).to_pylist()
    identity = sorted([row["record_id"], row["content_digest"], row["held_out"]] for row in columns)
    snapshot_id = digest_json(identity)
    ref = SnapshotRef(
        snapshot_id=snapshot_id,
        uri=str(folder / snapshot_id),
        rows=training.num_rows,
        held_out_rows=held_out.num_rows,
        version_first=entries[0].version,
        version_last=entries[-1].version,
        days=tuple(dict.fromkeys(entry.day for entry in entries)),
    )
    if not (folder / snapshot_id / MANIFEST).is_file():
        versions = {entry.version: entry.day for entry in entries}
        slices = Counter(training["slice_name"].to_pylist())
        manifest = SnapshotManifest(
            ref, versions, dict(slices.most_common()), {}, 1, lake.uri, selected
        )
        _write(folder, manifest, training, held_out)
    if read_members(folder / MEMBERS, snapshot_id) is None:
        write_members(folder / MEMBERS, snapshot_id, map(_member, columns))
    return read_manifest(ref).snapshot


def materialise(ref: SnapshotRef, lake: Lake) -> Materialised:
    """Make a snapshot's rows anew from the lake, in place of those in its folder.

    Its id stays. Records that were erased since are missing, and told as tombstones. Raises
    NotFoundError when nobody knows any more which records it held, IntegrityError when the lake
    has other contents for them.
    """
    manifest, folder = read_manifest(ref), Path(ref.uri).parent
    members = read_members(folder / MEMBERS, ref.snapshot_id)
    if members is None:
        raise NotFoundError(f"the list of records of snapshot {ref.snapshot_id} is gone")
    wanted = {(member.record_id, member.content_digest) for member in members}
    entries = [entry for entry in lake.versions() if entry.version in manifest.versions]
    table = _rows_in_order(
        lake, entries, lambda row: (row["record_id"], row["content_digest"]) in wanted
    )
    present = set(table["record_id"].to_pylist())
    lost = sorted({record_id for record_id, _ in wanted} - present)
    unexplained = set(lost) - lake.erased_among(lost)
    if unexplained:
        raise IntegrityError(
            f"the lake lacks {len(unexplained)} records of snapshot {ref.snapshot_id} that were "
            "not erased; restore it from a backup"
        )
    training = table.filter(pa.compute.invert(table["held_out"]))
    files = _write_rows(Path(ref.uri), training, table.filter(table["held_out"]))
    cache = Materialised(files, tuple(lost))
    write_whole(Path(ref.uri) / CACHE, msgspec.json.encode(cache))
    return cache


def materialised(ref: SnapshotRef) -> Materialised:
    """Return what is in a snapshot's folder: as it was cut, or as it was made anew since."""
    path = Path(ref.uri) / CACHE
    if not path.is_file():
        return Materialised(read_manifest(ref).files, ())
    return msgspec.json.decode(path.read_bytes(), type=Materialised)


def load_rows(ref: SnapshotRef) -> list[Record]:
    """Return the training rows, made anew from the lake where they are missing.

    Raises IntegrityError when the file is not as it was written.
    """
    return _load(ref, TRAINING)


def load_held_out(ref: SnapshotRef) -> list[Record]:
    """Return the held-out rows. Raises IntegrityError when the file is not as it was written."""
    return _load(ref, HELD_OUT)


def read_manifest(ref: SnapshotRef) -> SnapshotManifest:
    """Read a snapshot's manifest. Raises NotFoundError or IntegrityError."""
    path = Path(ref.uri) / MANIFEST
    try:
        return msgspec.json.decode(path.read_bytes(), type=SnapshotManifest)
    except FileNotFoundError as error:
        raise NotFoundError(f"there is no snapshot at {ref.uri}; cut it again") from error
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is malformed: {error}; cut the snapshot again") from error


def find_snapshot(folder: Path, snapshot_id: str) -> SnapshotRef:
    """Return a snapshot by its id or the id's unique beginning. Raises NotFoundError."""
    found = [path for path in folder.glob(f"{snapshot_id}*/{MANIFEST}")]
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} snapshots in {folder} begin with {snapshot_id!r}")
    return msgspec.json.decode(found[0].read_bytes(), type=SnapshotManifest).snapshot


def mark_passed(folder: Path, ref: SnapshotRef) -> None:
    """Record that the gates passed a snapshot: from now on its days are vouched for."""
    versions = read_manifest(ref).versions
    _write_mark(folder / PASSED, ref, versions, ())


def flag_snapshot(folder: Path, ref: SnapshotRef, reasons: Collection[str]) -> tuple[int, ...]:
    """Flag a snapshot that the gates failed, and return the versions flagged by it.

    Days that an earlier passed snapshot vouched for are not flagged: the newcomers are to blame.
    """
    vouched = passed_versions(folder)
    versions = read_manifest(ref).versions
    blamed = {version: day for version, day in versions.items() if version not in vouched}
    _write_mark(folder / FLAGS, ref, blamed, tuple(reasons))
    (folder / READMITTED / f"{ref.snapshot_id}.json").unlink(missing_ok=True)
    return tuple(sorted(blamed))


def readmit(folder: Path, snapshot_id: str) -> Mark:
    """Take a flag back (by the snapshot's id or its unique beginning). Raises NotFoundError."""
    found = list((folder / FLAGS).glob(f"{snapshot_id}*.json"))
    if len(found) != 1:
        raise NotFoundError(f"{len(found)} flagged snapshots begin with {snapshot_id!r}")
    target = folder / READMITTED / found[0].name
    target.parent.mkdir(parents=True, exist_ok=True)
    found[0].replace(target)
    return msgspec.json.decode(target.read_bytes(), type=Mark)


def flags(folder: Path) -> list[Mark]:
    """Return every flag that stands, oldest first."""
    return _marks(folder / FLAGS)


def flagged_versions(folder: Path) -> set[int]:
    """Return the Delta versions that no snapshot, replay or evaluation may use."""
    return {version for mark in flags(folder) for version in mark.versions}


def passed_versions(folder: Path) -> set[int]:
    """Return the Delta versions that a passed snapshot vouched for."""
    return {version for mark in _marks(folder / PASSED) for version in mark.versions}


def old_snapshots(
    folder: Path, protected: Collection[str], keep: int = 10, dry_run: bool = True
) -> list[Path]:
    """Return (and without `dry_run` delete) snapshot folders besides the newest `keep`.

    `protected` are the ids that stable, previous or an active release stand on. Rows stay in the
    lake, and marks stay too: the ids remain known.
    """
    found = sorted(
        (path.parent for path in folder.glob(f"*/{MANIFEST}")),
        key=lambda path: (path / MANIFEST).stat().st_mtime,
        reverse=True,
    )
    doomed = [path for path in found[keep:] if path.name not in protected]
    if not dry_run:
        for path in doomed:
            shutil.rmtree(path)
    return doomed


def _new_entries(
    entries: list[VersionEntry],
    after_version: int | None,
    flagged: Collection[int],
    folder: Path,
) -> list[VersionEntry]:
    after = -1 if after_version is None else after_version
    trained = {
        version
        for mark in _marks(folder / PASSED)
        if max(mark.versions, default=0) <= after
        for version in mark.versions
    }
    readmitted = {
        version for mark in _marks(folder / READMITTED) for version in mark.versions
    } - trained
    return [
        entry
        for entry in entries
        if entry.kept
        and entry.version not in flagged
        and (entry.version > after or entry.version in readmitted)
    ]


def _rows_in_order(lake: Lake, entries: list[VersionEntry], keep: Keep | None) -> pa.Table:
    """Return the rows to keep by day, file and row; a content that came twice stands once."""
    tables = [
        pa.Table.from_pylist(
            [row for row in batch if keep is None or keep(row)], schema=RECORDS_SCHEMA
        )
        for batch in lake.rows([entry.version for entry in entries])
    ]
    table = pa.concat_tables([RECORDS_SCHEMA.empty_table(), *tables]).sort_by(IN_ORDER)
    seen: set[str] = set()
    first: list[bool] = []
    for digest in table["content_digest"].to_pylist():
        first.append(digest not in seen)
        seen.add(digest)
    return table.filter(pa.array(first, type=pa.bool_()))


def _member(row: Mapping[str, Any]) -> Member:
    role = "held_out" if row["held_out"] else "training"
    return Member(row["record_id"], row["content_digest"], role)


def _write(
    folder: Path, manifest: SnapshotManifest, training: pa.Table, held_out: pa.Table
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".cutting-", dir=folder))
    try:
        files = _write_rows(scratch, training, held_out)
        text = msgspec.json.format(msgspec.json.encode(replace(manifest, files=files)), indent=2)
        (scratch / MANIFEST).write_bytes(text)
        # A folder without its manifest is the rest of an interrupted deletion.
        shutil.rmtree(manifest.snapshot.uri, ignore_errors=True)
        os.rename(scratch, manifest.snapshot.uri)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_rows(folder: Path, training: pa.Table, held_out: pa.Table) -> dict[str, str]:
    """Write both files; return their digests."""
    for name, table in ((TRAINING, training), (HELD_OUT, held_out)):
        draft = folder / f".{name}.{os.getpid()}"
        pq.write_table(table, draft, compression="zstd", compression_level=1)
        draft.replace(folder / name)
    return {name: digest_file(folder / name) for name in (TRAINING, HELD_OUT)}


def _load(ref: SnapshotRef, name: str) -> list[Record]:
    manifest, path = read_manifest(ref), Path(ref.uri) / name
    cache = materialised(ref)
    if not path.is_file() and manifest.lake_uri:
        cache = materialise(ref, Lake(manifest.lake_uri))
    if not path.is_file() or digest_file(path) != cache.files[name]:
        raise IntegrityError(f"{path} is missing or changed; delete {path} to have it made anew")
    return [record_of(row) for row in pq.read_table(path).to_pylist()]


def _write_mark(
    folder: Path, ref: SnapshotRef, versions: Mapping[int, str], reasons: tuple[str, ...]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    days = tuple(dict.fromkeys(versions.values()))
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    mark = Mark(ref.snapshot_id, tuple(sorted(versions)), days, reasons, now)
    write_whole(folder / f"{ref.snapshot_id}.json", msgspec.json.encode(mark))


def _marks(folder: Path) -> list[Mark]:
    decode: Any = msgspec.json.Decoder(Mark).decode
    found = [decode(path.read_bytes()) for path in folder.glob("*.json")]
    return sorted(found, key=lambda mark: mark.at)
