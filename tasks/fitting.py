"""From a snapshot to a bundle: base model, adapter and compilation as tasks."""

from collections.abc import Callable
from dataclasses import dataclass

from core.contracts import Figure, SnapshotRef
from core.settings import Settings
from lake.snapshots import load_rows
from tasks.judging import DataJudgement
from tasks.lineage import note_training
from tasks.preparing import earlier_training, open_lake
from tasks.stable import parent_adapter, stable_version
from tasks.stages import LOG, DayRun, stage
from tasks.tracking import open_tracking
from training.base import BaseRef, build_base, find_base
from training.bundle import BundleRef, build_bundle
from training.config import BaseConfig, BundleConfig, TrainConfig
from training.lora import AdapterRef, train_adapter
from training.replay import choose_replay

REPLAY_CANDIDATES_MAX = 200_000


@dataclass(frozen=True, slots=True)
class Fitted:
    """A trained adapter and the tracking run that followed its training."""

    adapter: AdapterRef
    run_id: str

    @property
    def figures(self) -> dict[str, Figure]:
        """What the training measured."""
        return {name: round(value, 4) for name, value in self.adapter.metrics.items()}


@stage("base model", retries=1)
def fit_base(run: DayRun, config: BaseConfig, snapshot: SnapshotRef) -> BaseRef:
    """Return the base under stable's adapter, or build the configured one for a first version."""
    cache = Settings.read().folder("models")
    stable = stable_version()
    if stable is not None:
        return find_base(config, cache, stable.base_digest)
    return build_base(config, load_rows(snapshot), cache, _progress(run, "base model"))


@stage("training", retries=1)
def fit_adapter(
    run: DayRun,
    config: TrainConfig,
    base: BaseRef,
    snapshot: SnapshotRef,
    judged: DataJudgement,
) -> Fitted:
    """Continue stable's adapter on the snapshot and a replay share; metrics go to the tracker."""
    parent = parent_adapter()
    rows = [row for row in load_rows(snapshot) if row.record_id not in judged.left_out]
    replay = earlier_training(snapshot, REPLAY_CANDIDATES_MAX)
    replay = [row for row in replay if row.record_id not in judged.left_out]
    out = Settings.read().folder("adapters") / f"{run.label}-{snapshot.snapshot_id[:12]}"
    tracked = open_tracking(run)
    tracked.log_config("train", config)
    tracked.log_snapshot(snapshot, open_lake().address())
    adapter = train_adapter(config, base, rows, replay, parent, out, tracked.log_metrics)
    tracked.flush()
    note_training(adapter.digest, rows, choose_replay(rows, replay, config))
    return Fitted(adapter, tracked.run_id)


@stage("bundle", retries=1)
def compile_bundle(
    run: DayRun,
    config: BundleConfig,
    base: BaseRef,
    fitted: Fitted,
    snapshot: SnapshotRef,
) -> BundleRef:
    """Merge base and adapter and compile them for the predictor."""
    bundles = Settings.read().folder("bundles")
    return build_bundle(config, base, fitted.adapter, snapshot.snapshot_id, bundles)


def _progress(run: DayRun, what: str) -> Callable[[int, dict[str, float]], None]:
    def tell(step: int, metrics: dict[str, float]) -> None:
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        LOG.debug("%s  %s step %d  %s", run.label, what, step, shown)

    return tell
