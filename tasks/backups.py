"""What a backup of a home holds, and how it is made: files by digest, databases consistently.

Needs no server. How a home is made from it again, tasks/restoring.py knows.
"""

import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.backup_place import BackupPlace, Manifest
from core.contracts import ReleaseState
from core.errors import ConflictError, SerinError
from core.manifests import read_manifest
from core.settings import Settings
from registry.copies import DATABASE, AliasedVersion, aliased_versions, copy_database, model_files
from rollout.database import Database
from rollout.ledger import Ledger
from rollout.ledger_copy import encode, prune_segments, read_segment
from rollout.release import Release
from tasks.fingerprint import recorded_fingerprint

RETENTION_DAYS = 30.0
STABLE_KEPT = 2
"""Stable and the version before it."""
WAITING_MAX = 100
TRIES = 3
"""A file that vanishes while it is copied begins the backup anew."""
HOME_FILES = ("gateway.yaml", "keys.yaml", "approvers.yaml", "feedback.yaml", "probes.jsonl")
HOME_FOLDERS = ("policy", "snapshots")
CONTROL_FILES = ("services.json", "revisions.json", "bans.json", "mode.json", "*.key")
"""Intent and keys of the one-machine control plane; addresses and processes are made anew."""
TEMPORARY = (".lock", ".tmp", ".part")
DIGEST = re.compile(r"\b[0-9a-f]{64}\b")
LAKE, BUNDLES, MODELS, MLFLOW = "lake", "bundles", "models", "mlflow"
SHORT_DIGEST = 12


@dataclass(frozen=True, slots=True)
class Made:
    """One finished backup: blobs that had to be sent, and older backups that went."""

    manifest: Manifest
    sent: int
    pruned: tuple[str, ...]
    seconds: float

    @property
    def line(self) -> str:
        """What was made, for people."""
        found = self.manifest
        return (
            f"backup {found.backup_id}: {len(found.entries)} files, {found.bytes / 2**20:.1f} MiB, "
            f"ledger to event {found.ledger_seq}; {self.sent} blobs were new; "
            f"{self.seconds:.1f} s; {len(self.pruned)} older ones went"
        )


def back_up(
    settings: Settings, place: BackupPlace, days: float = RETENTION_DAYS, whole: bool = False
) -> Made:
    """Make one backup and remove those older than `days`, never the last good one.

    `whole` sends every blob again, which heals damaged ones. Raises ConflictError when files keep
    changing, UnavailableError when the place does not answer. Where this process dies, or the place
    stays silent, the backup is told as partial from then on.
    """
    began = time.monotonic()
    for attempt in range(TRIES):
        try:
            manifest, sent = _begun(settings, place, whole)
            break
        except FileNotFoundError as error:
            if attempt == TRIES - 1:
                raise ConflictError(f"files vanish while they are copied: {error}") from error
    pruned = place.prune(days, time.time())
    kept = [item.manifest.ledger_seq for item in place.kept() if item.manifest is not None]
    prune_segments(place, min(kept, default=0))
    return Made(manifest, sent, tuple(pruned), time.monotonic() - began)


def _begun(settings: Settings, place: BackupPlace, whole: bool) -> tuple[Manifest, int]:
    at = time.time()
    backup_id = place.begin(at)
    try:
        return _back_up_once(settings, place, whole, backup_id, at)
    except BaseException:
        place.withdraw(backup_id)
        raise


def _back_up_once(
    settings: Settings, place: BackupPlace, whole: bool, backup_id: str, at: float
) -> tuple[Manifest, int]:
    counts: list[int] = []
    with tempfile.TemporaryDirectory(prefix="serin-backup-") as scratch:
        database = _registry_copy(settings, Path(scratch))
        versions = aliased_versions(database, settings.service) if database else []
        releases = _needed_releases(settings)
        # The lake's logs before its data: whatever a log names was written before it.
        files = dict(_files(settings, versions, releases))
        if database is not None:
            files[f"{MLFLOW}/{DATABASE}"] = database
        entries = place.send(files, whole, counts.append)
    # The ledger last: it then knows of everything that the files show.
    rows = Database(settings.ledger_url)
    try:
        Ledger(settings.ledger_url).close()  # makes it where it is missing
        segment = read_segment(rows)
    finally:
        rows.close()
    manifest = Manifest(
        backup_id=backup_id,
        at_seconds=at,
        home=str(settings.home),
        entries=entries,
        ledger=place.put_content(encode(segment)),
        ledger_seq=segment.last_seq,
        facts=_facts(settings, versions, releases),
    )
    place.finish(manifest)
    return manifest, sum(counts)


def _registry_copy(settings: Settings, folder: Path) -> Path | None:
    """Copy the home's own MLflow database; None where a server elsewhere keeps the registry."""
    source = settings.home / MLFLOW / DATABASE
    if not source.is_file():
        return None
    copy_database(source, folder / DATABASE)
    return folder / DATABASE


def _needed_releases(settings: Settings) -> list[Release]:
    """Return what serves, what served before it, and whatever is not over yet."""
    ledger = Ledger(settings.ledger_url)
    try:
        stable = ledger.promoted(settings.service, settings.namespace)[::-1]
        versions = dict.fromkeys(release.candidate.model_version for release in stable)
        kept = {*list(versions)[:STABLE_KEPT]}
        needed = [release for release in stable if release.candidate.model_version in kept]
        open_ones = [release for release, _ in ledger.all_active()]
        return [
            *needed,
            *open_ones,
            *ledger.waiting(settings.service, settings.namespace)[:WAITING_MAX],
        ]
    finally:
        ledger.close()


def _files(
    settings: Settings, versions: list[AliasedVersion], releases: list[Release]
) -> Iterator[tuple[str, Path]]:
    home = settings.home
    for name in HOME_FILES:
        if (home / name).is_file():
            yield name, home / name
    for name in CONTROL_FILES:
        for path in sorted((home / "control").glob(name)):
            yield f"control/{path.name}", path
    for name in HOME_FOLDERS:
        yield from _below(home / name, name)
    if "://" not in settings.lake_uri:
        yield from _below(Path(settings.lake_uri), LAKE)
    for digest in sorted(_bundle_digests(home, versions, releases)):
        yield from _below(home / BUNDLES / digest, f"{BUNDLES}/{digest}")
    for path in sorted((home / MODELS).glob("*")) if (home / MODELS).is_dir() else []:
        if any(item.base_digest[:SHORT_DIGEST] in path.name for item in versions):
            yield from _below(path, f"{MODELS}/{path.name}")
    for item in versions:
        for path in model_files(home / MLFLOW, item.model_id):
            yield path.relative_to(home).as_posix(), path


def _bundle_digests(
    home: Path, versions: list[AliasedVersion], releases: list[Release]
) -> set[str]:
    found = {item.bundle_digest for item in versions}
    for release in releases:
        states = () if release.final else (release.before, release.goal)
        found |= {release.candidate.bundle_digest, *(s.bundle_digest for s in states if s)}
    services = home / "control" / "services.json"
    if services.is_file():
        found |= {*DIGEST.findall(services.read_text())}
    return found - {""}


def _below(folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Yield a folder's files; those of Delta's logs first."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    for path in sorted(paths, key=lambda item: ("_delta_log" not in item.parts, item)):
        if not path.name.endswith(TEMPORARY):
            yield f"{name}/{path.relative_to(folder).as_posix()}", path


def _facts(
    settings: Settings, versions: list[AliasedVersion], releases: list[Release]
) -> dict[str, Any]:
    """What the backup says of itself: what was stable, its fingerprint, what lies elsewhere."""
    stable = next((item for item in releases if item.final), None)
    active = [r for r in releases if not r.final and r.state is not ReleaseState.PROPOSED]
    facts: dict[str, Any] = {
        "service": settings.service,
        "namespace": settings.namespace,
        "engine": settings.engine,
        "stable_version": stable.candidate.model_version if stable else "",
        "stable_bundle": stable.candidate.bundle_digest if stable else "",
        "active_releases": [release.release_id for release in active],
        "aliases": {item.alias: item.version for item in versions},
        "elsewhere": _elsewhere(settings),
        "fingerprint": {},
        "fingerprint_problem": "",
    }
    if stable is None:
        return facts
    bundle = settings.home / BUNDLES / stable.candidate.bundle_digest
    log = settings.folder("logs") / "fingerprint.log"
    try:
        read_manifest(bundle)
        known = settings.folder("answers")
        facts["fingerprint"] = recorded_fingerprint(bundle, settings.engine, known, log)
    except SerinError as error:
        facts["fingerprint_problem"] = str(error)
    return facts


def _elsewhere(settings: Settings) -> list[str]:
    """Return what is not in the backup because its own service keeps it."""
    own_registry = (settings.home / MLFLOW / DATABASE).is_file()
    lake = [f"lake {settings.lake_uri}"] if "://" in settings.lake_uri else []
    registry = [] if own_registry or not settings.mlflow_url else [f"MLflow {settings.mlflow_url}"]
    return lake + registry
