"""The flows' steps of backups: make one, drill the newest, tell how it went."""

from dataclasses import dataclass, field
from typing import Any

import msgspec
from prefect import runtime
from prefect.artifacts import create_markdown_artifact
from prefect.states import Completed, Failed
from pydantic import BaseModel, ConfigDict, Field

from core.backup_place import BackupPlace
from core.contracts import Figure, ReleaseState
from core.errors import SerinError
from core.settings import Settings
from rollout.ledger import Ledger
from tasks.backups import RETENTION_DAYS, back_up
from tasks.restoring import drill
from tasks.stages import LOG, DayRun, open_run, stage

BACKUP_SECONDS_MAX = 3600.0
NO_PLACE = "No place for backups"
NO_PLACE_TEXT = "SERIN_BACKUP_URI names no place for backups: nothing was done"


class BackupConfig(BaseModel):
    """Where backups are, and for how long they are kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    to: str = Field(default="", description="a folder or s3://...; empty: SERIN_BACKUP_URI")
    days: float = Field(
        default=RETENTION_DAYS, gt=0, description="older ones go, never the last good one"
    )


@dataclass(frozen=True, slots=True)
class BackupEnd:
    """How a step ended: the state's name, its figures, and one line for people."""

    name: str
    line: str
    passed: bool = True
    figures: dict[str, Figure] = field(default_factory=dict)


def open_backup_run(label: str) -> DayRun:
    """Open the folder of papers of this flow run."""
    return open_run(label, str(runtime.flow_run.id)[:8])


@stage("backup", retries=2, timeout_seconds=BACKUP_SECONDS_MAX)
def make_backup(run: DayRun, config: BackupConfig) -> BackupEnd:
    """Make a backup and remove those that are too old."""
    settings = Settings.read()
    address = config.to or settings.backup_uri
    if not address:
        return BackupEnd(NO_PLACE, NO_PLACE_TEXT)
    made = back_up(settings, BackupPlace(address), config.days)
    figures: dict[str, Figure] = {"sent": made.sent, "bytes": made.manifest.bytes}
    return BackupEnd("Backed up", made.line, figures=figures)


@stage("drill", timeout_seconds=BACKUP_SECONDS_MAX)
def drill_backup(run: DayRun, config: BackupConfig) -> BackupEnd:
    """Restore the newest backup beside the home, serve stable from it, and compare its answers."""
    settings = Settings.read()
    address = config.to or settings.backup_uri
    if not address:
        return BackupEnd(NO_PLACE, NO_PLACE_TEXT)
    done = drill(settings, BackupPlace(address), run.path(""))
    run.path("drill.json").write_bytes(msgspec.json.format(msgspec.json.encode(done), indent=1))
    figures: dict[str, Figure] = {
        "rto_seconds": done.rto_seconds,
        "rpo_events": float(done.rpo_events),
    }
    return BackupEnd(
        "Restorable" if done.passed else "Not restorable", done.line, done.passed, figures
    )


@stage("backup of what changed", timeout_seconds=BACKUP_SECONDS_MAX)
def back_up_change(run: DayRun, release_id: str) -> None:
    """After a release that moved traffic for good, back up what serves now.

    What goes wrong here is logged and does not undo the release.
    """
    settings = Settings.read()
    if not settings.backup_uri:
        return
    release = Ledger(settings.ledger_url).release(release_id)
    returned = release.kind == "rollback" and release.state is ReleaseState.ROLLED_BACK
    if not returned and release.state is not ReleaseState.PROMOTED:
        return
    try:
        LOG.info("%s", back_up(settings, BackupPlace(settings.backup_uri)).line)
    except SerinError as error:
        LOG.error("%s  no backup of what serves now: %s", release_id, error)


def told(run: DayRun, end: BackupEnd) -> Any:
    """End the flow in a state that says how it went, with a page about it."""
    create_markdown_artifact(
        key=f"{run.label}-report", markdown=f"## {end.name}\n\n{end.line}\n", description=end.name
    )
    run.path("report.md").write_text(f"# {end.name}\n\n{end.line}\n")
    state = Completed if end.passed else Failed
    return state(name=end.name, message=end.line)
