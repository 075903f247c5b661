"""Gates on answers: quality against stable, forgetting, and the bundle's parity."""

import math
from collections.abc import Sequence

import pytest

from core.contracts import Evidence, Message, Record
from validation.parity import (
    ParityConfig,
    logit_records,
    parity_gate,
    parity_records,
    with_tries,
)
from validation.quality import (
    ForgettingConfig,
    QualityConfig,
    Scores,
    forgetting_gate,
    quality_gate,
    score,
    score_one,
)

CONFIG = QualityConfig()


def records(count: int, slices: Sequence[str] = ("orders", "billing")) -> list[Record]:
    return [
        Record(
            record_id=f"r-{index:05d}",
            day="day-1",
            created_at="2026-05-01T00:00:00+00:00",
            slice_name=slices[index % len(slices)],
            messages=(Message("user", f"question {index}"),),
            response=f"label_{index % 7}",
        )
        for index in range(count)
    ]


def scores(rows: Sequence[Record], wrong: Sequence[int] = ()) -> Scores:
    """A model that is wrong on the rows with these places."""
    bad = set(wrong)
    answers = tuple("?" if i in bad else row.response for i, row in enumerate(rows))
    return Scores(answers, tuple(0.0 if i in bad else 1.0 for i in range(len(rows))))


def test_answers_are_compared_after_normalisation() -> None:
    rows = records(3)
    seen: list[int] = []

    def answer(prompts: Sequence[tuple[Message, ...]]) -> list[str]:
        seen.append(len(prompts))
        return [f"  LABEL_{int(prompt[-1].content.split()[1]) % 7}. " for prompt in prompts]

    found = score(CONFIG.model_copy(update={"batch_prompts": 2}), rows, answer)
    assert found.values == (1.0, 1.0, 1.0)
    assert seen == [2, 1]


def test_free_text_is_scored_by_shared_words() -> None:
    wanted = "You can return the lamp within thirty days, we refund the price and the shipping."
    close = "You can return the lamp within thirty days and we refund the price."
    assert 0.7 < score_one(CONFIG, close, wanted) < 1
    assert score_one(CONFIG, "track_order", wanted) == 0
    chinese = "您可以在三十天内退回台灯，我们会退还货款和运费。"
    assert 0.5 < score_one(CONFIG, "您可以在三十天内退回台灯。", chinese) < 1
    exact = QualityConfig(metric="exact")
    assert score_one(exact, close, wanted) == 0


def test_progress_is_told_per_batch() -> None:
    told: list[tuple[int, int]] = []
    config = CONFIG.model_copy(update={"batch_prompts": 4})
    score(config, records(6), lambda prompts: ["x"] * len(prompts), lambda *at: told.append(at))
    assert told == [(4, 6), (6, 6)]


def test_an_equally_good_candidate_passes() -> None:
    rows = records(1000)
    found = quality_gate(CONFIG, rows, scores(rows, range(50)), scores(rows, range(45)))
    assert found.outcome == "pass"
    assert found.figures["difference"] == pytest.approx(-0.005)
    assert found.tables["slices"]["orders"]["records"] == 500
    assert "95.0% on 1000 records, stable 95.5%" in found.summary


def test_a_clearly_worse_candidate_fails() -> None:
    rows = records(1000)
    found = quality_gate(CONFIG, rows, scores(rows, range(150)), scores(rows, range(50)))
    assert found.outcome == "fail"
    assert any("beyond the tolerance" in reason for reason in found.reasons)


def test_too_few_records_to_tell_are_inconclusive() -> None:
    rows = records(100)
    found = quality_gate(CONFIG, rows, scores(rows, range(12)), scores(rows, range(2, 12)))
    assert found.outcome == "inconclusive"
    assert "would decide" in found.reasons[0]
    few = records(49)
    assert quality_gate(CONFIG, few, scores(few), scores(few)).outcome == "inconclusive"
    nothing = Scores((), ())
    assert quality_gate(CONFIG, [], nothing, nothing).outcome == "inconclusive"


def test_a_model_that_stays_silent_is_inconclusive() -> None:
    rows = records(100)
    silent = score(CONFIG, rows, lambda prompts: ["only one"])
    for candidate, stable in ((silent, scores(rows)), (scores(rows), silent)):
        found = quality_gate(CONFIG, rows, candidate, stable)
        assert found.outcome == "inconclusive"
        assert "1 answers to 100 prompts" in found.summary
        assert forgetting_gate(ForgettingConfig(), rows, candidate, stable, ["orders"]).outcome == (
            "inconclusive"
        )


def test_the_first_version_is_judged_by_the_floor_only() -> None:
    rows = records(100)
    assert quality_gate(CONFIG, rows, scores(rows, range(45)), None).outcome == "pass"
    found = quality_gate(CONFIG, rows, scores(rows, range(55)), None)
    assert found.outcome == "fail"
    assert "floor" in found.reasons[0]
    assert forgetting_gate(ForgettingConfig(), rows, scores(rows), None, []).outcome == "pass"


def test_an_improvement_is_demanded_only_when_configured() -> None:
    rows = records(1000)
    same = scores(rows, range(50))
    demanding = CONFIG.model_copy(update={"improvement_min": 0.01})
    assert quality_gate(CONFIG, rows, same, same).outcome == "pass"
    assert quality_gate(demanding, rows, same, same).outcome == "fail"
    assert quality_gate(demanding, rows, scores(rows, range(30)), same).outcome == "pass"


def test_one_bad_slice_fails_a_candidate_that_is_better_overall() -> None:
    rows = records(400, ["orders"] * 9 + ["billing"])
    billing = [index for index, row in enumerate(rows) if row.slice_name == "billing"]
    orders = [index for index, row in enumerate(rows) if row.slice_name == "orders"]
    found = quality_gate(CONFIG, rows, scores(rows, billing[:20]), scores(rows, orders[:120]))
    assert found.outcome == "fail"
    assert found.reasons == ("slice billing: -50.0 points against stable, 10.0% allowed",)


def test_a_new_slice_has_its_own_floor() -> None:
    rows = records(200)
    billing = [index for index, row in enumerate(rows) if row.slice_name == "billing"]
    stable = scores(rows, billing)
    found = quality_gate(CONFIG, rows, scores(rows, billing[:80]), stable, ["billing"])
    assert found.outcome == "fail"
    assert "new slice billing scores 20.0%" in found.reasons[0]
    found = quality_gate(CONFIG, rows, scores(rows, billing[:40]), stable, ["billing"])
    assert found.outcome == "pass"
    assert found.tables["slices"]["billing"]["new"] is True


def test_forgetting_beyond_the_budget_fails_with_the_slice_named() -> None:
    rows = records(600, ["orders", "billing", "devices"])
    billing = [index for index, row in enumerate(rows) if row.slice_name == "billing"]
    config = ForgettingConfig()
    earlier = ["orders", "billing"]
    found = forgetting_gate(config, rows, scores(rows, billing[:40]), scores(rows), earlier)
    assert found.outcome == "fail"
    assert "slice billing lost 20.0%" in found.reasons[0]
    assert found.figures["worst_slice"] == "billing"
    assert set(found.tables["slices"]) == {"orders", "billing"}


def test_a_small_loss_is_within_the_budget() -> None:
    rows = records(2000)
    found = forgetting_gate(
        ForgettingConfig(), rows, scores(rows, range(20)), scores(rows), ["orders", "billing"]
    )
    assert found.outcome == "pass"
    assert found.figures["drop"] == pytest.approx(0.01)


def test_forgetting_needs_records_of_earlier_slices() -> None:
    rows = records(200)
    config = ForgettingConfig()
    assert forgetting_gate(config, rows, scores(rows), scores(rows), []).outcome == "inconclusive"
    few = forgetting_gate(config, rows[:60], scores(rows[:60]), scores(rows[:60]), ["orders"])
    assert few.outcome == "inconclusive"


def test_noise_that_could_hide_a_loss_is_inconclusive() -> None:
    rows = records(120, ["orders"])
    found = forgetting_gate(
        ForgettingConfig(), rows, scores(rows, range(10)), scores(rows, range(6, 12)), ["orders"]
    )
    assert found.outcome == "inconclusive"
    assert "cannot exclude" in found.reasons[0]


def parity(bundle: Scores, reference: Scores) -> Evidence:
    return parity_gate(ParityConfig(), bundle, reference)


def test_a_bundle_that_answers_alike_passes() -> None:
    rows = records(200)
    other_words = Scores(("other",) * 3 + scores(rows).answers[3:], (1.0,) * 200)
    found = parity(other_words, scores(rows))
    assert found.outcome == "pass"
    assert found.figures["identical_share"] == pytest.approx(0.985)


def test_a_bundle_that_answers_otherwise_fails_with_both_reasons() -> None:
    rows = records(200)
    found = parity(scores(rows, range(10)), scores(rows))
    assert found.outcome == "fail"
    assert len(found.reasons) == 2
    assert "identical" in found.reasons[0]
    assert "task score differs by -5.0 points" in found.reasons[1]


def test_logits_are_judged_where_an_engine_gives_them() -> None:
    rows = records(200)
    config = ParityConfig(logit_difference_max=0.5)

    def judge(differences: list[float] | None) -> Evidence:
        return parity_gate(config, scores(rows), scores(rows), differences)

    assert judge([0.1, 0.4, 0.2]).figures["logit_difference"] == 0.4
    assert judge([0.1, 0.4, 0.2]).outcome == "pass"
    assert "logit_difference" not in judge(None).figures
    far = judge([0.1, 0.75])
    assert (far.outcome, far.reasons) == ("fail", ("a logit differs by 0.75, 0.5 allowed",))
    for broken in ([math.nan, 0.1], [0.1, math.nan], [math.inf]):
        assert judge(broken).outcome == "fail"


def test_each_refused_precision_stays_in_the_evidence() -> None:
    rows = records(200)
    refused = None
    for precision in ("int4", "int8"):
        found = parity(scores(rows, range(10)), scores(rows))
        refused = with_tries(found, precision, {"bytes": 10}, refused)
    assert refused is not None
    assert [reason.partition(":")[0] for reason in refused.reasons] == 2 * ["int4"] + 2 * ["int8"]
    table = refused.tables["precisions"]
    assert table["int4"]["outcome"] == table["int8"]["outcome"] == "fail"
    assert table["int4"]["identical_share"] == pytest.approx(0.95)
    passed = with_tries(parity(scores(rows), scores(rows)), "fp16", {"bytes": 20}, refused)
    assert (passed.outcome, passed.reasons) == ("pass", ())
    assert passed.summary.startswith("fp16: 100.0%")
    assert passed.summary.endswith("refused before: int4, int8")
    assert passed.tables["precisions"]["fp16"]["bytes"] == 20
    assert "95.0% of the answers" in str(passed.tables["precisions"]["int8"]["reasons"])


def test_logits_are_compared_on_prompts_of_all_slices() -> None:
    chosen = parity_records(ParityConfig(), records(500))
    few = logit_records(ParityConfig(logit_prompts=4), chosen)
    assert [row.slice_name for row in few] == ["billing", "billing", "orders", "orders"]
    assert logit_records(ParityConfig(logit_prompts=0), chosen) == []
    assert logit_records(ParityConfig(), chosen[:3]) == chosen[:3]


def test_too_few_or_unequal_answers_have_no_parity() -> None:
    rows = records(200)
    assert parity(scores(rows[:49]), scores(rows[:49])).outcome == "inconclusive"
    assert parity(scores(rows[:100]), scores(rows)).outcome == "inconclusive"
    assert parity(Scores((), ()), Scores((), ())).outcome == "inconclusive"


def test_parity_records_are_chosen_alike_from_any_order() -> None:
    rows = records(500)
    config = ParityConfig(prompts=50)
    chosen = parity_records(config, rows)
    assert chosen == parity_records(config, list(reversed(rows)))
    assert len(chosen) == 50
    assert {row.slice_name for row in chosen} == {"orders", "billing"}
    assert all(math.isfinite(value) for value in scores(chosen).values)
