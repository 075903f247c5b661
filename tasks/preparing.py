"""From the user's files to a snapshot and an evaluation set: the lake's steps as tasks."""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.contracts import Figure, IntakeEvidence, Record, SnapshotRef
from core.errors import InputError
from core.settings import Settings
from lake.config import IngestConfig
from lake.evaluation import evaluation_set
from lake.index import FOLDER as INDEX_FOLDER
from lake.progress import telling
from lake.replay import earlier_rows
from lake.snapshots import create_snapshot, flagged_versions, read_manifest
from lake.sources import list_days
from lake.table import IngestReport, Lake
from tasks.runners import spreading
from tasks.stable import stable_bundle, stable_version
from tasks.stages import LOG, DayRun, stage

EVALUATION_NAME, SELECTION_NAME = "evaluation.json", "selection.json"
BASE = "base"


@dataclass(frozen=True, slots=True)
class Arrived:
    """What came in: one report per day file."""

    reports: tuple[IngestReport, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """Rows in, kept, duplicates and quarantined over all files, and tokens where counted."""
        names = ["rows_in", "kept", "duplicates", "quarantined"]
        names += ["tokens"] if any(report.tokens for report in self.reports) else []
        return {name: sum(getattr(report, name) for report in self.reports) for name in names}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """On what a candidate is judged; the records are in a file, so that tasks stay light."""

    path: str
    rows: int
    new_slices: tuple[str, ...]

    @property
    def figures(self) -> dict[str, Figure]:
        """How many records, and how many slices never seen before."""
        return {"rows": self.rows, "new_slices": len(self.new_slices)}

    def records(self) -> list[Record]:
        """Read the records back."""
        return msgspec.json.decode(Path(self.path).read_bytes(), type=list[Record])


def open_lake() -> Lake:
    """Open the lake that the settings name."""
    settings = Settings.read()
    return Lake(settings.lake_uri, index_folder=settings.folder(INDEX_FOLDER))


def earlier_training(snapshot: SnapshotRef, rows_max: int) -> list[Record]:
    """Return a bounded draw of the unflagged training rows before a snapshot's range."""
    flagged = flagged_versions(snapshots_folder())
    return earlier_rows(open_lake(), snapshot.version_first, flagged, rows_max)


def snapshots_folder() -> Path:
    """Return the folder of snapshots and their flags."""
    return Settings.read().folder("snapshots")


@stage("ingest", retries=2)
def take_in(run: DayRun, config: IngestConfig, day: str | None) -> Arrived:
    """Read the day files into the lake through the record contract; known files add nothing."""
    from validation.records import check_rows, describe

    lake = open_lake()
    excluded = [config.evaluation.uri] if config.evaluation.uri else []
    listing = list_days(config.data, config.pattern, excluded)
    files = [file for file in listing.days if day is None or file.day == day]
    if not files:
        names = ", ".join(file.day for file in listing.days)
        raise InputError(f"there is no day {day} under {config.data}; found: {names}")
    for name in listing.left_out:
        LOG.info("%s  not a day: %s", run.label, name)
    flagged = flagged_versions(snapshots_folder())
    if config.tokenizer == BASE:
        config = config.model_copy(update={"tokenizer": stable_tokenizer()})
    with spreading(config.scale) as spread, telling() as watch:
        arrived = Arrived(
            tuple(
                lake.ingest_day(file, config, check_rows, flagged, watch, describe, spread)
                for file in files
            )
        )
    report_contract(run, arrived)
    return arrived


def stable_tokenizer() -> str:
    """Return the file of stable's tokenizer; "" before the first release."""
    bundle = stable_bundle()
    return "" if bundle is None else str(bundle[0] / "weights" / "tokenizer.json")


def report_contract(run: DayRun, arrived: Arrived) -> None:
    """Write the contract's report for people, if any rows came in, into the run's folder."""
    from validation.contract_report import write_contract_report

    found = [report.evidence for report in arrived.reports if report.evidence is not None]
    if found:
        report = write_contract_report(IntakeEvidence.joined(found), Path(run.folder))
        LOG.info("%s  record contract: %s", run.label, report.path)


@stage("snapshot", retries=1)
def cut_snapshot(run: DayRun, config: IngestConfig) -> SnapshotRef | None:
    """Cut everything after stable's range, minus flagged versions; None when it is too little."""
    stable = stable_version()
    folder = snapshots_folder()
    after = None if stable is None else stable.delta_version_last
    snapshot = create_snapshot(
        open_lake(), after, flagged_versions(folder), folder, config.rows_min, config.selection
    )
    selected = None if snapshot is None else read_manifest(snapshot).selection
    if selected is not None:
        run.path(SELECTION_NAME).write_bytes(msgspec.json.encode(selected))
        run.record(
            "selection", 0, rows_before=selected.rows_before, rows_chosen=selected.rows_chosen
        )
    return snapshot


@stage("evaluation set", retries=1)
def choose_evaluation(run: DayRun, config: IngestConfig, snapshot: SnapshotRef) -> Evaluation:
    """Choose what to judge on: the given file, earlier held-out rows, vouched-for new slices."""
    from validation.records import check_rows

    chosen = evaluation_set(config, open_lake(), snapshot, snapshots_folder(), check_rows)
    path = run.path(EVALUATION_NAME)
    path.write_bytes(msgspec.json.encode(chosen.records))
    return Evaluation(str(path), len(chosen.records), tuple(chosen.new_slices))
