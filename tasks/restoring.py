"""A home made again from a backup, and the drill that proves it: restored, served, compared.

A restored home appears whole or not at all.
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from core.backup_place import BackupPlace, Manifest
from core.errors import IntegrityError, RefusedError, UnavailableError
from core.settings import Settings
from registry.copies import DATABASE, move_places
from rollout.ledger import Ledger
from rollout.ledger_copy import Segment, decode, load, segments_after
from tasks.backups import BUNDLES, MLFLOW
from tasks.fingerprint import differing, served_fingerprint

RESTORED, DRILLED = "restored", "restore drill"
HOLDER = "serin restore"


@dataclass(frozen=True, slots=True)
class Restored:
    """A home that was made. `warnings` say what is not as it was."""

    backup_id: str
    ledger_seq: int
    stable_version: str
    active_releases: tuple[str, ...]
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True, slots=True)
class Drill:
    """One drill. `rto_seconds`: from an empty folder to the recorded answers; `rpo_events`: events
    of the ledger that the restored one lacks."""

    backup_id: str
    rto_seconds: float
    rpo_events: int
    prompts: int
    differing: tuple[str, ...]
    warnings: tuple[str, ...]
    problem: str

    @property
    def passed(self) -> bool:
        """Whether the restored version answers as was recorded."""
        return not self.problem and not self.differing

    @property
    def line(self) -> str:
        """How it went, for people."""
        how = self.problem or (
            f"{self.prompts - len(self.differing)} of {self.prompts} answers are as recorded"
        )
        found = f"backup {self.backup_id}: {how}; recovered in {self.rto_seconds:.1f} s"
        return "; ".join([f"{found}, {self.rpo_events} ledger events lost", *self.warnings])


def restore(
    place: BackupPlace, home: Path, backup_id: str = "", ledger_url: str = "", told: bool = True
) -> Restored:
    """Make a home from a backup, the newest by default; the ledger is the newest that is copied.

    `told` adds an event to the restored ledger. Raises RefusedError when the home is not empty,
    IntegrityError naming the file that is missing or damaged.
    """
    began = time.monotonic()
    home = home.absolute()
    if home.exists() and any(home.iterdir()):
        raise RefusedError(f"{home} is not empty; restore into a new folder")
    manifest = place.manifest(backup_id)
    segments, warnings = copied_ledger(place)
    home.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{home.name}.restoring-", dir=home.parent))
    try:
        place.fetch(manifest.entries, draft)
        _move(draft, Path(manifest.home), home)
        url = ledger_url or f"sqlite:///{draft / 'ledger.db'}"
        load(url, segments)
        found = _look(manifest, url, draft, warnings)
        if told:
            _tell(url, manifest, found)
        os.replace(draft, home)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return replace(found, seconds=time.monotonic() - began)


def copied_ledger(place: BackupPlace) -> tuple[list[Segment], list[str]]:
    """Return the newest ledger that the place holds, and what is wrong with its copy.

    The newest base that can be read, then every segment that follows it. Raises IntegrityError
    when no base can be read.
    """
    warnings: list[str] = []
    for kept in place.kept():
        if kept.manifest is None:
            warnings.append(f"backup {kept.backup_id}: {kept.problem}")
            continue
        try:
            base = decode(place.read_blob(kept.manifest.ledger))
        except IntegrityError as error:
            warnings.append(f"backup {kept.backup_id}: {error}")
            continue
        following, problems = segments_after(place, base.last_seq, base.last_hash)
        return [base, *following], [*warnings, *problems]
    raise IntegrityError(f"{place.address} holds no readable ledger: {'; '.join(warnings)}")


def drill(settings: Settings, place: BackupPlace, folder: Path) -> Drill:
    """Restore into a scratch place, serve stable there, compare its answers, and clean up.

    The outcome is an event of the ledger, whatever it is.
    """
    ledger = Ledger(settings.ledger_url)
    try:
        done = _drill(settings, place, folder, _head(ledger))
        body = {**msgspec.to_builtins(done), "passed": done.passed}
        ledger.write(
            lambda writer: writer.record(
                settings.namespace, settings.service, DRILLED, "drill", body
            )
        )
    finally:
        ledger.close()
    return done


def _drill(settings: Settings, place: BackupPlace, folder: Path, head: int) -> Drill:
    began = time.monotonic()
    manifest = place.manifest()
    recorded: dict[str, str] = manifest.facts["fingerprint"]
    served: dict[str, str] = {}
    warnings: tuple[str, ...] = ()
    restored_seq, problem = 0, ""
    with tempfile.TemporaryDirectory(prefix="drill-", dir=folder) as scratch:
        home = Path(scratch) / "home"
        try:
            made = restore(place, home, manifest.backup_id, told=False)
            restored_seq, warnings = made.ledger_seq, made.warnings
            bundle = home / BUNDLES / str(manifest.facts["stable_bundle"])
            if recorded:
                served = served_fingerprint(bundle, settings.engine, folder / "predictor.log")
            else:
                problem = "nothing to compare: " + (
                    manifest.facts.get("fingerprint_problem") or "nothing was stable"
                )
        except (IntegrityError, UnavailableError) as error:
            problem = str(error)
    return Drill(
        backup_id=manifest.backup_id,
        rto_seconds=round(time.monotonic() - began, 3),
        rpo_events=max(head - restored_seq, 0),
        prompts=len(recorded),
        differing=tuple(differing(recorded, served)),
        warnings=warnings,
        problem=problem,
    )


def _move(draft: Path, before: Path, after: Path) -> None:
    """Let what names the home's path name the new one. The service's own words stay as they are."""
    if before == after:
        return
    revisions = draft / "control" / "revisions.json"
    if revisions.is_file():
        old, new = (json.dumps(f"{path}/")[1:-1] for path in (before, after))
        revisions.write_text(revisions.read_text().replace(f'"{old}', f'"{new}'))
    if (draft / MLFLOW / DATABASE).is_file():
        move_places(draft / MLFLOW / DATABASE, before, after)


def _look(manifest: Manifest, url: str, draft: Path, warnings: Sequence[str]) -> Restored:
    """Compare what the ledger says with what the files can serve."""
    facts = manifest.facts
    said = [*warnings]
    ledger = Ledger(url)
    try:
        stable = ledger.stable(facts["service"], facts["namespace"])
        active = [release.release_id for release, _ in ledger.all_active()]
        seq = _head(ledger)
    finally:
        ledger.close()
    version = stable.candidate.model_version if stable else ""
    if stable and not (draft / BUNDLES / stable.candidate.bundle_digest).is_dir():
        said.append(
            f"version {version} became stable after this backup and is not in it: version "
            f"{facts['stable_version'] or 'none'} serves; release {version} anew"
        )
    said += [f"{what} is not part of the backup: connect it again" for what in facts["elsewhere"]]
    return Restored(manifest.backup_id, seq, version, tuple(active), tuple(said), 0.0)


def _tell(url: str, manifest: Manifest, found: Restored) -> None:
    body: dict[str, Any] = {
        "backup": manifest.backup_id,
        "home_before": manifest.home,
        "events": found.ledger_seq,
        "warnings": list(found.warnings),
    }
    facts = manifest.facts
    ledger = Ledger(url)
    try:
        ledger.write(
            lambda writer: writer.record(
                facts["namespace"], facts["service"], RESTORED, HOLDER, body
            )
        )
    finally:
        ledger.close()


def _head(ledger: Ledger) -> int:
    last = ledger.last_events(1)
    return last[-1].seq if last else 0
