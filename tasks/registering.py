"""What becomes of a verdict: a registered candidate, or a flagged snapshot."""

from pathlib import Path

from core.contracts import Candidate, SnapshotRef, Verdict
from core.settings import Settings
from lake.snapshots import flag_snapshot, load_rows, mark_passed
from registry.versions import Lineage, code_revision
from tasks.fitting import Fitted
from tasks.lineage import note_version
from tasks.preparing import open_lake, snapshots_folder
from tasks.stable import bundle_uri, open_registry, stable_version
from tasks.stages import DayRun, stage
from tasks.tracking import open_tracking
from training.base import BaseRef
from training.bundle import BundleRef
from training.config import TrainConfig
from validation.gates import as_markdown

ROOT = Path(__file__).resolve().parent.parent


@stage("register", retries=2)
def register_candidate(
    run: DayRun,
    base: BaseRef,
    fitted: Fitted,
    bundle: BundleRef,
    snapshot: SnapshotRef,
    verdict: Verdict,
    train: TrainConfig,
) -> Candidate:
    """Register the adapter with all that it came from; the snapshot's days are vouched for."""
    settings, registry = Settings.read(), open_registry()
    stable = stable_version()
    slices = {row.slice_name for row in load_rows(snapshot)}
    slices |= set(registry.lineage(stable.version).slices) if stable else set()
    lineage = Lineage(
        snapshot=snapshot,
        records_uri=open_lake().address(),
        base_digest=base.digest,
        adapter_digest=fitted.adapter.digest,
        bundle_digest=bundle.digest,
        bundle_uri=bundle_uri(bundle.path),
        run_id=fitted.run_id,
        parent_version=stable.version if stable else None,
        slices=tuple(sorted(slices)),
        code_revision=code_revision(ROOT),
        config=train.model_dump(mode="json"),
        metrics=dict(fitted.adapter.metrics),
    )
    page = as_markdown(verdict)
    version = registry.register(fitted.adapter.path, lineage, verdict, page)
    open_tracking(run).log_verdict(verdict, page)
    mark_passed(snapshots_folder(), snapshot)
    candidate = Candidate(
        service=settings.service,
        model_version=version.version,
        bundle_digest=bundle.digest,
        bundle_uri=bundle_uri(bundle.path),
        adapter_digest=fitted.adapter.digest,
        snapshot_id=snapshot.snapshot_id,
        verdict_digest=verdict.digest,
        stable_version=stable.version if stable else None,
    )
    note_version(candidate, snapshot)
    return candidate


@stage("flag snapshot", retries=2)
def reject_snapshot(run: DayRun, snapshot: SnapshotRef, verdict: Verdict) -> tuple[int, ...]:
    """Flag the snapshot's days that nobody vouched for, with the verdict's reasons."""
    tracked = open_tracking(run)
    tracked.log_verdict(verdict, as_markdown(verdict))
    return flag_snapshot(snapshots_folder(), snapshot, verdict.reasons)
