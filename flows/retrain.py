"""The daily loop: new data in, an adapter out, judged, registered and released."""

from typing import Any

from prefect import flow, runtime

from flows.release import release
from lake.sources import IngestConfig
from rollout.steps import ReleasePlan
from tasks.fitting import compile_bundle, fit_adapter, fit_base
from tasks.judging import judge_candidate, judge_data
from tasks.preparing import choose_evaluation, cut_snapshot, take_in
from tasks.registering import register_candidate, reject_snapshot
from tasks.releasing import propose_release
from tasks.reporting import ended
from tasks.stages import open_run
from training.config import BaseConfig, BundleConfig, TrainConfig
from validation.canary import CanaryConfig
from validation.gates import GatesConfig


@flow(name="retrain", validate_parameters=True, log_prints=False)
def retrain(
    ingest: IngestConfig,
    base: BaseConfig = BaseConfig(),
    train: TrainConfig = TrainConfig(),
    bundle: BundleConfig = BundleConfig(),
    gates: GatesConfig = GatesConfig(),
    plan: ReleasePlan = ReleasePlan(),
    canary: CanaryConfig = CanaryConfig(),
    day: str | None = None,
) -> Any:
    """Take the new days (or one named day) through every gate to a release."""
    run = open_run(day or "retrain", str(runtime.flow_run.id)[:8])
    arrived = take_in(run, ingest, day)
    snapshot = cut_snapshot(run, ingest)
    if snapshot is None:
        return ended(run, "Not enough data", arrived)
    evaluation = choose_evaluation(run, ingest, snapshot)
    data = judge_data(run, gates, snapshot, evaluation)
    foundation = fit_base(run, base, snapshot)
    adapter = fit_adapter(run, train, foundation, snapshot, data)
    built = compile_bundle(run, bundle, foundation, adapter, snapshot)
    built, verdict = judge_candidate(run, gates, data, built, evaluation)
    if verdict.outcome != "pass":
        reject_snapshot(run, snapshot, verdict)
        return ended(run, "Stopped by gates", arrived, verdict)
    candidate = register_candidate(run, foundation, adapter, built, snapshot, verdict, train)
    proposed = propose_release(run, candidate, plan)
    if proposed.waiting:
        return ended(run, "Registered, waiting", arrived, verdict, proposed.release_id)
    final = release(proposed.release_id, canary)
    return ended(run, final, arrived, verdict, proposed.release_id)
