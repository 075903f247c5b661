"""Erases records on request: a plan that only looks, and its execution, which may be repeated.

Order: the ledger's intent, tombstones, files, snapshots, index, the lake's rows, the ledger's end.
Rows go last: until then a killed erasure still knows what it looks for.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.digests import digest_json
from core.errors import SerinError
from core.settings import Settings
from lake.config import DuplicatesConfig
from lake.duplicates import DuplicateIndex
from lake.erasure import (
    ErasedRows,
    FoundRecord,
    QuarantineSearch,
    bury,
    erase_rows,
    find_records,
    quarantined_with,
)
from lake.index import FOLDER as INDEX_FOLDER
from lake.members import lists_with
from lake.snapshots import MEMBERS, find_snapshot, materialise
from lake.table import Lake
from lake.tombstones import add_hashed, id_hash, read_tombstones
from rollout.ledger import Ledger
from tasks.lineage import TRAINED, descendants, version_notes
from tasks.sweeping import Marks, Trace, clear, traces

BEGUN, ERASED = "erasure begun", "record erased"
HOLDER = "serin forget"
EVENTS_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class ErasurePlan:
    """What an erasure finds. `trained_on` and `descends_from` are versions of the service."""

    record_ids: tuple[str, ...]
    found: tuple[FoundRecord, ...]
    unknown: tuple[str, ...]
    refused: QuarantineSearch
    snapshots: tuple[str, ...]
    trained_on: tuple[str, ...]
    descends_from: tuple[str, ...]
    traces: tuple[Trace, ...]

    @property
    def name(self) -> str:
        """The name of this erasure: the same records, the same name."""
        return digest_json(sorted(self.record_ids))

    @property
    def quarantined(self) -> int:
        """How many quarantined rows hold the records' texts."""
        return len(self.refused.rows)


@dataclass(frozen=True, slots=True)
class Erasure:
    """What was done. `tombstones` counts, by snapshot, the records it has lost so far.

    `unmarked` says why versions could not be marked in the registry; empty where they were.
    """

    rows: ErasedRows
    files: int
    by_hand: tuple[Path, ...]
    tombstones: Mapping[str, int]
    unmarked: str


def plan_erasure(record_ids: Iterable[str]) -> ErasurePlan:
    """Look for records everywhere; changes nothing."""
    wanted = tuple(dict.fromkeys(record_ids))
    settings = Settings.read()
    folder, lake = settings.folder("snapshots"), Lake(settings.lake_uri)
    found = find_records(lake, wanted)
    snapshots = lists_with(folder / MEMBERS, wanted)
    trained = lists_with(folder / TRAINED, wanted)
    notes = list(version_notes(settings.service))
    versions = [note.version for note in notes if note.adapter_digest in trained]
    known = {record.record_id for record in found}
    known |= {member.record_id for members in snapshots.values() for member in members}
    return ErasurePlan(
        record_ids=wanted,
        found=tuple(found),
        unknown=tuple(record_id for record_id in wanted if record_id not in known),
        refused=quarantined_with(lake, found),
        snapshots=tuple(snapshots),
        trained_on=tuple(versions),
        descends_from=descendants(notes, versions),
        traces=tuple(traces(settings.home, Marks(found))),
    )


def erase(plan: ErasurePlan) -> Erasure:
    """Carry a plan out. Killed at any point, the same plan made anew finishes it."""
    settings = Settings.read()
    lake, ledger = Lake(settings.lake_uri), Ledger(settings.ledger_url)
    folder = settings.folder("snapshots")
    _record(ledger, settings, BEGUN, plan, {})
    now = int(time.time())
    bury(lake, plan.record_ids, plan.found, plan.name, now)
    marks = Marks(plan.found)
    for trace in plan.traces:
        clear(trace, marks)
    _forget_contents(settings.home / INDEX_FOLDER, plan.found)
    rows = erase_rows(lake, plan.record_ids, plan.found, plan.name, now, plan.refused)
    tombstones = {}
    for name in plan.snapshots:
        if (folder / name).is_dir():  # else only its list is left
            tombstones[name] = len(materialise(find_snapshot(folder, name), lake).tombstones)
    done = Erasure(
        rows=rows,
        files=sum(trace.action != "by hand" for trace in plan.traces),
        by_hand=tuple(trace.path for trace in plan.traces if trace.action == "by hand"),
        tombstones=tombstones,
        unmarked=_mark_versions(plan),
    )
    _record(ledger, settings, ERASED, plan, {"rows": rows.records, "files": done.files})
    return done


def erase_again() -> int:
    """Erase what the ledger tells as erased and the lake still has, as after a restore.

    An older backup brings erased records back. Returns how many records' tombstones were missing.
    """
    settings = Settings.read()
    lake, ledger = Lake(settings.lake_uri), Ledger(settings.ledger_url)
    missing = _told_hashes(ledger) - read_tombstones(lake).ids
    if not missing:
        return 0
    here = [
        record_id
        for batch in lake.columns(["record_id"])
        for record_id in batch.column("record_id").to_pylist()
        if id_hash(record_id) in missing
    ]
    if here:
        erase(plan_erasure(here))
    absent = sorted((hashed, "") for hashed in missing - {id_hash(item) for item in here})
    if absent:
        name = digest_json(absent)
        with lake.one_writer():
            add_hashed(lake, absent, f"erased-{name[:12]}", name, int(time.time()))
    return len(missing)


def _told_hashes(ledger: Ledger) -> set[str]:
    """Return the hashes of all ids whose erasure the ledger tells, begun or ended."""
    found: set[str] = set()
    since = 0
    while events := ledger.events(since, limit=EVENTS_AT_ONCE):
        since = events[-1].seq
        for event in events:
            if event.kind in (BEGUN, ERASED):
                found.update(event.body["id_hashes"])
    return found


def _forget_contents(folder: Path, found: Iterable[FoundRecord]) -> None:
    """Take the records out of the duplicate index. Raises ConflictError while it is in use."""
    if folder.is_dir():
        with closing(DuplicateIndex(folder, DuplicatesConfig())) as index:
            index.forget([record.content_digest for record in found])


def _mark_versions(plan: ErasurePlan) -> str:
    """Tag the versions that carry the records; return why that was not possible, if so."""
    versions: Sequence[str] = (*plan.trained_on, *plan.descends_from)
    if not versions:
        return ""
    from tasks.stable import open_registry

    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    try:
        registry = open_registry()
        for version in versions:
            registry.mark_erased(version, f"{len(plan.record_ids)} at {when}")
    except SerinError as error:
        return str(error)
    return ""


def _record(
    ledger: Ledger, settings: Settings, event: str, plan: ErasurePlan, more: Mapping[str, Any]
) -> None:
    """Write a chained event; it names records by hash, as the ledger is never rewritten."""
    body = {
        "erasure": plan.name,
        "id_hashes": sorted(map(id_hash, plan.record_ids)),
        "trained_on": list(plan.trained_on),
        "descends_from": list(plan.descends_from),
        **more,
    }
    ledger.write(
        lambda writer: writer.record(settings.namespace, settings.service, event, HOLDER, body)
    )
