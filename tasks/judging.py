"""Evidence for a verdict: data gates before training, model gates on answers of real predictors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.contracts import Answer, Evidence, Figure, Record, SnapshotRef, Verdict
from core.settings import Settings
from lake.snapshots import load_rows
from tasks.answering import model, remembering
from tasks.preparing import Evaluation, earlier_training
from tasks.stable import stable_bundle, stable_version
from tasks.stages import DayRun, stage
from training.bundle import BundleRef
from validation.drift import drift_gate
from validation.gates import GatesConfig, combine
from validation.leakage import leakage_gate
from validation.parity import parity_gate, parity_records
from validation.quality import forgetting_gate, quality_gate, score
from validation.safety import safety_gate

REFERENCE_ROWS_MAX = 20_000
DRIFT_REPORT = "drift.html"
VERDICT_NAME = "verdict.json"
ANSWER_TOKENS_MAX = 64


@dataclass(frozen=True, slots=True)
class DataJudgement:
    """What the data gates found, and the ids of rows that training must leave out."""

    evidence: tuple[Evidence, ...]
    left_out: frozenset[str]

    @property
    def figures(self) -> dict[str, Figure]:
        """Each gate's outcome."""
        return {item.gate: item.outcome for item in self.evidence}


@stage("data gates", retries=1)
def judge_data(
    run: DayRun, config: GatesConfig, snapshot: SnapshotRef, evaluation: Evaluation
) -> DataJudgement:
    """Judge drift against earlier rows, and leakage between training and evaluation."""
    rows = load_rows(snapshot)
    earlier = earlier_training(snapshot, REFERENCE_ROWS_MAX)
    report = run.path(DRIFT_REPORT)
    drift = drift_gate(config.drift, rows, earlier, report, first=stable_version() is None)
    leakage = leakage_gate(config.leakage, [*rows, *earlier], evaluation.records())
    return DataJudgement((drift, leakage.evidence), leakage.remove)


@stage("model gates", retries=1)
def judge_candidate(
    run: DayRun,
    config: GatesConfig,
    data: DataJudgement,
    bundle: BundleRef,
    evaluation: Evaluation,
) -> Verdict:
    """Judge the bundle's answers against stable's, the reference engine's and the probes."""
    records = evaluation.records()
    with ExitStack() as running:
        ask = running.enter_context(_model(run, bundle.path, bundle.digest, "openvino"))
        ask_reference = running.enter_context(_model(run, bundle.path, bundle.digest, "reference"))
        stable = stable_bundle()
        ask_stable = stable and running.enter_context(_model(run, *stable, "openvino"))
        ours = score(config.quality, records, ask)
        theirs = score(config.quality, records, ask_stable) if ask_stable else None
        safety = safety_gate(config.safety, ask)
        parity = _parity(config, records, ask, ask_reference)
    earlier = {record.slice_name for record in records} - set(evaluation.new_slices)
    verdict = combine(
        [
            *data.evidence,
            quality_gate(config.quality, records, ours, theirs),
            forgetting_gate(config.forgetting, records, ours, theirs, earlier),
            parity,
            safety,
        ],
        config.required,
    )
    run.path(VERDICT_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
    return verdict


def _parity(
    config: GatesConfig, records: list[Record], ask: Answer, ask_reference: Answer
) -> Evidence:
    chosen = parity_records(config.parity, records)
    compiled = score(config.quality, chosen, ask)
    return parity_gate(config.parity, compiled, score(config.quality, chosen, ask_reference))


@contextmanager
def _model(run: DayRun, bundle: Path, digest: str, engine: str) -> Iterator[Answer]:
    """A predictor of a bundle whose answers are kept: the same bundle answers the same."""
    memory = Settings.read().folder("answers") / f"{digest}-{engine}.json"
    log = run.path(f"{engine}-{digest[:12]}.log")
    with model(bundle, digest, engine, log, ANSWER_TOKENS_MAX) as answer:
        yield remembering(answer, memory)
