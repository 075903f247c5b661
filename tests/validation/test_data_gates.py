"""Gates on data: drift against earlier rows, and evaluation rows that leak into training."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from core.contracts import Message, Record
from validation.drift import DriftConfig, drift_gate
from validation.leakage import leakage_gate
from validation.leakage_config import LeakageConfig

CLINC = Path(__file__).resolve().parents[3] / "shared" / "data" / "clinc150"
SAMPLES = Path(__file__).resolve().parents[2] / "samples" / "days"
ENGLISH = {
    "orders": ("track_order", "where is parcel number {} that I ordered on {}"),
    "billing": ("refund", "please pay back {} euro for invoice {}"),
    "devices": ("reset", "my lamp of model {} blinks {} times, reset it"),
}
CHINESE = {
    "orders": ("track_order", "我在{}号下的订单{}到哪里了"),
    "billing": ("refund", "发票{}多收了{}元，请退款"),
}
CONFIG = DriftConfig()


def rows(
    count: int,
    slices: Sequence[str] = ("orders", "billing"),
    chinese_share: float = 0.0,
    first: int = 0,
) -> list[Record]:
    found = []
    for index in range(first, first + count):
        slice_name = slices[index % len(slices)]
        texts = CHINESE if (index % 100) / 100 < chinese_share else ENGLISH
        label, template = texts.get(slice_name, ENGLISH[slice_name])
        prompt = template.format(index * 7919 % 10007, index * 104729 % 9973)
        found.append(record(f"r-{index}", prompt, label, slice_name))
    return found


def record(record_id: str, prompt: str, label: str = "label", slice_name: str = "orders") -> Record:
    turns = (Message("system", "Answer with the intent."), Message("user", prompt))
    return Record(record_id, "day-1", "2026-05-01T00:00:00+00:00", slice_name, turns, label)


def day_rows(path: Path) -> list[Record]:
    """The usable rows of a daily file; the record contract is another gate's concern."""
    found = []
    for line in path.read_text(errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        values = [row.get(name) for name in ("id", "text", "intent", "domain")]
        if isinstance(row, dict) and all(isinstance(value, str) and value for value in values):
            found.append(record(*values))
    return found


def test_the_first_snapshot_has_no_reference() -> None:
    found = drift_gate(CONFIG, rows(100), [], first=True)
    assert found.outcome == "pass"
    assert found.summary == "first snapshot, no reference"
    strict = DriftConfig(allow_first=False)
    assert drift_gate(strict, rows(100), [], first=True).outcome == "inconclusive"
    assert drift_gate(CONFIG, rows(100), []).outcome == "inconclusive"


@pytest.mark.parametrize(("new", "old"), [(0, 500), (19, 500), (500, 19), (0, 0)])
def test_too_few_rows_tell_nothing_about_drift(new: int, old: int) -> None:
    assert drift_gate(CONFIG, rows(new), rows(old), first=True).outcome == "inconclusive"


def test_a_day_like_the_others_does_not_drift(tmp_path: Path) -> None:
    report = tmp_path / "reports" / "drift.html"
    started = time.process_time()
    found = drift_gate(CONFIG, rows(400, first=1000), rows(1000), report)
    assert found.outcome == "pass"
    assert "drifted: nothing" in found.summary
    assert report.stat().st_size > 10_000
    assert found.report == str(report)
    started = time.process_time()
    drift_gate(CONFIG, rows(400, first=1000), rows(1000), report)
    assert time.process_time() - started < 3


def test_a_new_domain_and_another_language_inform() -> None:
    current = rows(500, ["devices"] * 4 + ["orders"], first=2000)
    found = drift_gate(CONFIG, current, rows(1000))
    assert found.outcome == "pass"
    assert "slice" in found.summary
    assert found.figures["new_slice_share"] == 0.8
    mixed = drift_gate(CONFIG, rows(500, chinese_share=0.3, first=2000), rows(1000))
    assert mixed.outcome == "pass"
    assert mixed.tables["languages"]["zh"] == {"share": 0.3, "reference_share": 0.0}


def test_a_flip_of_language_fails() -> None:
    found = drift_gate(CONFIG, rows(500, chinese_share=0.95, first=2000), rows(1000))
    assert found.outcome == "fail"
    assert any("language distance" in reason for reason in found.reasons)


def test_a_day_that_shares_no_slice_fails() -> None:
    found = drift_gate(CONFIG, rows(500, ["devices"]), rows(1000))
    assert found.outcome == "fail"
    assert any("slice distance" in reason for reason in found.reasons)


def test_repeated_and_unreadable_days_fail() -> None:
    repeated = [record(f"x-{index}", "where is my parcel") for index in range(200)]
    found = drift_gate(CONFIG, repeated + rows(100), rows(1000))
    assert any("duplicate share" in reason for reason in found.reasons)
    noise = [record(f"n-{index}", f"zq{index}x wv{index}y kj{index}") for index in range(300)]
    found = drift_gate(CONFIG, noise, rows(1000))
    assert any("novelty" in reason for reason in found.reasons)


def test_prompts_of_quite_another_length_fail() -> None:
    long = [record(row.record_id, row.prompt * 10) for row in rows(300)]
    found = drift_gate(CONFIG, long, rows(1000))
    assert any("length ratio" in reason for reason in found.reasons)


def test_free_text_answers_are_not_labels() -> None:
    current = [record(f"a-{i}", row.prompt, f"answer {i}") for i, row in enumerate(rows(300))]
    reference = [record(f"b-{i}", row.prompt, f"reply {i}") for i, row in enumerate(rows(600))]
    found = drift_gate(CONFIG, current, reference)
    assert found.outcome == "pass"
    assert found.figures["label_distance"] == 0


@pytest.mark.parametrize("folder", [CLINC, SAMPLES], ids=["clinc150", "samples"])
def test_ordinary_days_of_real_and_sample_data_pass(folder: Path) -> None:
    days = [path for path in sorted(folder.glob("day-*.jsonl")) if "day-4" not in path.name]
    if not days:
        pytest.skip(f"no daily files in {folder}")
    earlier = day_rows(days[0])
    for path in days[1:]:
        current = day_rows(path)
        found = drift_gate(CONFIG, current, earlier)
        assert found.outcome == "pass", (path, found.reasons)
        assert found.figures["new_slice_share"]
        earlier += current


def test_repeated_evaluation_rows_are_left_out_of_training() -> None:
    evaluation = rows(200)
    exact = record("t-exact", evaluation[0].prompt.upper() + "?!")
    near = record("t-near", evaluation[1].prompt + " ok")
    training = [*rows(500, first=5000), exact, near]
    found = leakage_gate(LeakageConfig(), training, evaluation)
    assert found.evidence.outcome == "pass"
    assert {"t-exact", "t-near"} <= found.remove
    assert found.evidence.figures["exact"] == 1
    assert exact not in found.clean(training)
    assert len(found.clean(training)) == len(training) - len(found.remove)


def test_leakage_blocks_when_so_configured() -> None:
    evaluation = rows(200)
    found = leakage_gate(LeakageConfig(policy="block"), [*evaluation[:50]], evaluation)
    assert found.evidence.outcome == "fail"
    assert found.evidence.figures["leaked_share"] == 0.25
    assert found.remove == frozenset()
    clean = leakage_gate(
        LeakageConfig(policy="block"), [record("t", "something else entirely")], evaluation
    )
    assert clean.evidence.outcome == "pass"


def test_removing_most_of_the_training_rows_fails() -> None:
    found = leakage_gate(LeakageConfig(), rows(100), rows(100))
    assert found.evidence.outcome == "fail"
    assert found.remove == frozenset()


@pytest.mark.parametrize(("training", "evaluation"), [(0, 10), (10, 0), (0, 0)])
def test_leakage_needs_both_sides(training: int, evaluation: int) -> None:
    found = leakage_gate(LeakageConfig(), rows(training), rows(evaluation))
    assert found.evidence.outcome == "inconclusive"


def test_chinese_near_copies_are_found() -> None:
    text = "我上个月购买的那台白色台灯已经坏了两次，请问现在还能不能申请退货和退款，谢谢你们"
    found = leakage_gate(
        LeakageConfig(), [record("t", text + "呀"), record("o", "订单在哪")], [record("e", text)]
    )
    assert found.remove == {"t"}


def test_near_copies_are_recalled() -> None:
    """Pairs at a similarity of at least 0.9 are practically all found."""
    evaluation = [
        record(
            f"e-{i}", f"customer {i * 7919 % 10007} asks about {i * 31} lamps and {i * 17} chairs"
        )
        for i in range(300)
    ]
    training = [record(f"t-{i}", item.prompt + "s") for i, item in enumerate(evaluation)]
    config = LeakageConfig(removed_share_max=1.0)
    assert len(leakage_gate(config, training, evaluation).remove) >= 298


def test_clinc_leaks_are_few_and_found_quickly() -> None:
    if not CLINC.is_dir():
        pytest.skip(f"no data in {CLINC}")
    training, evaluation = day_rows(CLINC / "day-01.jsonl"), day_rows(CLINC / "eval.jsonl")
    started = time.process_time()
    found = leakage_gate(LeakageConfig(), training, evaluation)
    assert time.process_time() - started < 10
    assert found.evidence.outcome == "pass"
    assert 10 < len(found.remove) < 100
