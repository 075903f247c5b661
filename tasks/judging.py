"""Evidence for a verdict: data gates before training, model gates on answers of real predictors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import msgspec

from core.contracts import Answer, Evidence, Figure, Record, SnapshotRef, Verdict
from core.errors import NotFoundError
from core.manifests import read_manifest, verify_bundle
from core.settings import Settings
from lake.snapshots import load_rows
from tasks.answering import model, remembering
from tasks.preparing import Evaluation, earlier_training
from tasks.stable import open_registry, stable_bundle, stable_version
from tasks.stages import LOG, DayRun, stage
from training.bundle import WEIGHTS_FOLDER, BundleRef, build_less_aggressive
from training.logits import logit_differences
from training.reference import reference_answers
from validation.drift import drift_gate
from validation.gates import GatesConfig, combine
from validation.leakage import leakage_gate
from validation.parity import PARITY, logit_records, parity_gate, parity_records, with_tries
from validation.quality import forgetting_gate, quality_gate, score
from validation.safety import safety_gate

REFERENCE_ROWS_MAX = 20_000
DRIFT_REPORT = "drift.html"
VERDICT_NAME = "verdict.json"
JUDGED_FOLDER = "judged"
ENGINE = "openvino"


@dataclass(frozen=True, slots=True)
class DataJudgement:
    """What the data gates found, and the ids of rows that training must leave out."""

    evidence: tuple[Evidence, ...]
    left_out: frozenset[str]

    @property
    def figures(self) -> dict[str, Figure]:
        """Each gate's outcome."""
        return {item.gate: item.outcome for item in self.evidence}


@dataclass(frozen=True, slots=True)
class Judged:
    """What a later judgement of the same bundle needs, kept by the bundle's digest."""

    run: DayRun
    data_evidence: tuple[Evidence, ...]
    evaluation: Evaluation
    bundle_path: str
    bundle_digest: str
    gates: str
    refused: Evidence | None = None
    """What parity found in the bundles of narrower precision that were tried before this one."""


class Judgement(NamedTuple):
    """A verdict, and the bundle that it is about: the first that parity did not refuse, if any."""

    bundle: BundleRef
    verdict: Verdict

    @property
    def figures(self) -> dict[str, Figure]:
        """The outcome, and with which precision the bundle came to it."""
        precision = self.bundle.recipe.config.settings["weight_precision"]
        return {"outcome": self.verdict.outcome, "precision": precision}


@stage("data gates", retries=1)
def judge_data(
    run: DayRun, config: GatesConfig, snapshot: SnapshotRef, evaluation: Evaluation
) -> DataJudgement:
    """Judge drift against earlier rows, and leakage between training and evaluation."""
    rows = load_rows(snapshot)
    earlier = earlier_training(snapshot, REFERENCE_ROWS_MAX)
    report = run.path(DRIFT_REPORT)
    drift = drift_gate(config.drift, rows, earlier, report, first=stable_version() is None)
    leakage = leakage_gate(config.leakage, chain(rows, earlier), evaluation.records())
    return DataJudgement((drift, leakage.evidence), leakage.remove)


@stage("model gates", retries=1)
def judge_candidate(
    run: DayRun,
    config: GatesConfig,
    data: DataJudgement,
    bundle: BundleRef,
    evaluation: Evaluation,
) -> Judgement:
    """Judge the bundle's answers against stable's, the reference engine's and the probes.

    A bundle that differs too much from the reference is built again at the next wider precision.
    """
    refused: Evidence | None = None
    while True:
        judged = Judged(
            run=run,
            data_evidence=data.evidence,
            evaluation=evaluation,
            bundle_path=str(bundle.path),
            bundle_digest=bundle.digest,
            gates=config.model_dump_json(),
            refused=refused,
        )
        verdict = judge_bundle(judged)
        parity = next(item for item in verdict.evidence if item.gate == PARITY)
        wider = build_less_aggressive(bundle) if parity.outcome == "fail" else None
        if wider is None:
            _judged_path(bundle.digest).write_bytes(msgspec.json.encode(judged))
            return Judgement(bundle, verdict)
        LOG.warning("%s  refused, building it again: %s", run.label, "; ".join(parity.reasons))
        run.record("bundle again", wider.seconds, **wider.figures)
        bundle, refused = wider, parity


def judge_again(bundle_digest: str) -> Verdict:
    """Judge a waiting candidate against the stable version of now, by the same gates.

    Raises NotFoundError when this home never judged the bundle.
    """
    path = _judged_path(bundle_digest)
    if not path.exists():
        raise NotFoundError(f"bundle {bundle_digest[:12]} was not judged in this home")
    return judge_bundle(msgspec.json.decode(path.read_bytes(), type=Judged))


def judged_verdict(bundle_digest: str) -> Verdict:
    """Return the last verdict on a bundle. Raises NotFoundError when this home never judged it."""
    path = _judged_path(bundle_digest)
    if not path.exists():
        raise NotFoundError(f"bundle {bundle_digest[:12]} was not judged in this home")
    judged = msgspec.json.decode(path.read_bytes(), type=Judged)
    return msgspec.json.decode(judged.run.path(VERDICT_NAME).read_bytes(), type=Verdict)


def judge_bundle(judged: Judged) -> Verdict:
    """Start the models side by side, ask them, and combine every gate's evidence."""
    run, evaluation = judged.run, judged.evaluation
    config = GatesConfig.model_validate_json(judged.gates)
    records = evaluation.records()
    bundle = (Path(judged.bundle_path), judged.bundle_digest)
    stable = stable_bundle()
    with ExitStack() as running:
        ask = running.enter_context(_model(run, config, *bundle))
        ours = score(config.quality, records, ask)
        theirs = None
        if stable is not None:
            ask_stable = running.enter_context(_model(run, config, *stable))
            theirs = score(config.quality, records, ask_stable)
        safety = safety_gate(config.safety, ask)
        parity = _parity(judged, config, records, ask)
    known = _known_slices(records)
    verdict = combine(
        [
            *judged.data_evidence,
            quality_gate(config.quality, records, ours, theirs, evaluation.new_slices),
            forgetting_gate(config.forgetting, records, ours, theirs, known),
            parity,
            safety,
        ],
        config.required,
    )
    run.path(VERDICT_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=2))
    return verdict


def _parity(judged: Judged, config: GatesConfig, records: list[Record], ask: Answer) -> Evidence:
    """The compiled bundle's answers and logits against those of its own merged weights."""
    folder = Path(judged.bundle_path)
    chosen = parity_records(config.parity, records)
    compiled = score(config.quality, chosen, ask)
    expected = score(config.quality, chosen, _reference(config, folder, judged.bundle_digest))
    differences = logit_differences(folder, logit_records(config.parity, chosen))
    settings = read_manifest(folder).settings
    precision = f"{settings['weight_precision']} weights, {settings['kv_cache_precision']} cache"
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    details: dict[str, Figure] = {"bytes": size, "bundle": judged.bundle_digest[:12]}
    found = parity_gate(config.parity, compiled, expected, differences)
    return with_tries(found, precision, details, judged.refused)


def _known_slices(records: list[Record]) -> set[str]:
    """Slices that stable was trained on."""
    stable = stable_version()
    slices = set(open_registry().lineage(stable.version).slices) if stable else set()
    return slices & {record.slice_name for record in records}


def _judged_path(bundle_digest: str) -> Path:
    return Settings.read().folder(JUDGED_FOLDER) / f"{bundle_digest}.json"


@contextmanager
def _model(run: DayRun, config: GatesConfig, bundle: Path, digest: str) -> Iterator[Answer]:
    """A predictor of a bundle whose answers are kept: the same bundle answers the same."""
    tokens = config.answer_tokens_max
    log = run.path(f"{ENGINE}-{digest[:12]}.log")
    with model(bundle, digest, ENGINE, log, tokens) as answer:
        yield remembering(answer, _memory(digest, ENGINE, tokens))


def _reference(config: GatesConfig, bundle: Path, digest: str) -> Answer:
    """The bundle's merged weights without compilation, in this process; answers are kept too."""
    tokens = config.answer_tokens_max
    verify_bundle(bundle, digest)
    answer = reference_answers(bundle / WEIGHTS_FOLDER, tokens)
    return remembering(answer, _memory(digest, "reference", tokens))


def _memory(digest: str, engine: str, tokens: int) -> Path:
    return Settings.read().folder("answers") / f"{digest}-{engine}-{tokens}.json"
