"""A bundle that parity refuses is built again at a wider precision; every try is in the verdict."""

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from core.contracts import Message, Record, Verdict
from core.manifests import read_manifest
from tasks.judging import DataJudgement, Judgement, judge_again, judge_candidate
from tasks.preparing import Evaluation
from tasks.stages import DayRun, open_run
from training.base import build_base
from training.bundle import BundleRef, build_bundle
from training.config import BaseConfig, BundleConfig, TrainConfig, WeightPrecision
from training.logits import logit_differences
from training.lora import train_adapter
from validation.gates import GatesConfig, as_markdown
from validation.parity import ParityConfig, logit_records, parity_records

SHAPE = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "context_length": 128}
LENIENT: dict[str, Any] = {
    "quality": {"score_min": 0.0, "tolerance": 1.0, "new_slice_score_min": 0.0, "records_min": 1},
    "forgetting": {"drop_max": 1.0, "slice_drop_max": 1.0, "records_min": 1},
    "safety": {"unsafe_share_max": 1.0},
    "answer_tokens_max": 3,
    "required": ("parity", "quality", "safety"),
}
PARITY = ParityConfig(identical_share_min=0, score_difference_max=1, prompts=20, prompts_min=20)


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [
        Record(
            record_id=f"r-{index:03d}",
            day="day-1",
            created_at="2026-05-01T00:00:00+00:00",
            slice_name="orders",
            messages=(Message("user", f"where is parcel number {index}"),),
            response=f"on its way {index}",
        )
        for index in range(40)
    ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DayRun:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    return open_run("day-1", "run")


@pytest.fixture(scope="module")
def narrow(records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> BundleRef:
    """An int4 bundle of a model that learned nothing; int8 alone may follow it."""
    folder = tmp_path_factory.mktemp("models")
    base = build_base(BaseConfig(**SHAPE, vocabulary=400, epochs=0, threads=1), records, folder)
    config = TrainConfig(rank=4, epochs=0, threads=1)
    adapter = train_adapter(config, base, records, [], None, folder / "adapter")
    bundle = BundleConfig(weight_precision="int4", fallback_precisions=("int8",))
    return build_bundle(bundle, base, adapter, "snapshot-1", folder / "bundles")


def judge(run: DayRun, records: list[Record], bundle: BundleRef, tolerance: float) -> Judgement:
    path = run.path("evaluation.json")
    path.write_bytes(msgspec.json.encode(records))
    parity = PARITY.model_copy(update={"logit_difference_max": tolerance})
    gates = GatesConfig(**LENIENT, parity=parity)
    evaluation = Evaluation(str(path), len(records), ())
    step = cast(Any, judge_candidate).fn  # without Prefect's engine and server
    found: Judgement = step(run, gates, DataJudgement((), frozenset()), bundle, evaluation)
    return found


def rows_of(verdict: Verdict) -> Any:
    return next(item for item in verdict.evidence if item.gate == "parity").tables["precisions"]


def precision_of(bundle: BundleRef) -> WeightPrecision:
    return cast(WeightPrecision, read_manifest(bundle.path).settings["weight_precision"])


def test_a_tolerance_that_int4_cannot_reach_is_reached_by_int8(
    run: DayRun, records: list[Record], narrow: BundleRef
) -> None:
    compared = logit_records(PARITY, parity_records(PARITY, records))
    reached = max(logit_differences(narrow.path, compared))
    found = judge(run, records, narrow, tolerance=reached / 2)
    assert found.verdict.outcome == "pass", found.verdict.reasons
    assert precision_of(found.bundle) == "int8"
    assert found.bundle.digest != narrow.digest
    rows = rows_of(found.verdict)
    refused, taken = rows["int4 weights, u8 cache"], rows["int8 weights, u8 cache"]
    assert (refused["outcome"], taken["outcome"]) == ("fail", "pass")
    assert refused["logit_difference"] == pytest.approx(reached, abs=1e-5)
    assert taken["logit_difference"] <= reached / 2
    assert taken["bundle"] == found.bundle.digest[:12]
    assert "a logit differs by" in refused["reasons"]
    assert "int4 weights, u8 cache" in as_markdown(found.verdict)
    assert found.figures == {"outcome": "pass", "precision": "int8"}
    journal = [(stage.name, stage.figures["precision"]) for stage in run.stages()]
    assert journal == [("bundle again", "int8"), ("model gates", "int8")]
    assert rows_of(judge_again(found.bundle.digest)) == rows


@pytest.mark.slow
def test_when_no_precision_is_near_enough_the_verdict_has_the_figures_of_all(
    run: DayRun, records: list[Record], narrow: BundleRef
) -> None:
    found = judge(run, records, narrow, tolerance=1e-9)
    assert found.verdict.outcome == "fail"
    rows = rows_of(found.verdict)
    assert [row["outcome"] for row in rows.values()] == ["fail", "fail"]
    assert all(row["logit_difference"] > 1e-9 for row in rows.values())
    reasons = [text for text in found.verdict.reasons if text.startswith("parity: ")]
    assert [text.split()[1] for text in reasons] == ["int4", "int8"]
    assert precision_of(found.bundle) == "int8"
