"""A candidate is judged on rows that others vouch for; a poisoned day cannot vouch for itself."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from lake_rows import MAPPING, SAMPLES, make_rows, plain_check, to_lines

from core.contracts import Message, Record, SnapshotRef
from core.errors import InputError
from lake.consistency import slice_consistency
from lake.evaluation import EvaluationSet, choose_rows, draw_evenly, evaluation_set, read_evaluation
from lake.snapshots import (
    create_snapshot,
    earlier_rows,
    flag_snapshot,
    flagged_versions,
    load_held_out,
    load_rows,
    mark_passed,
)
from lake.sources import EvaluationConfig, IngestConfig, list_days
from lake.table import Lake

ROLLED_BACK_DAY, POISONED_DAY = "day-5", "day-4"


def record(name: str, prompt: str, response: str, slice_name: str = "s", day: str = "d1") -> Record:
    return Record(name, day, "", slice_name, (Message("user", prompt),), response)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[SnapshotRef, EvaluationSet]]:
    """The sample's six days: day 4 is stopped by the gates, day 5 is rolled back."""
    home = tmp_path_factory.mktemp("story")
    lake, folder = Lake(str(home / "lake")), home / "snapshots"
    config = IngestConfig(data=str(SAMPLES / "days"), mapping=MAPPING)
    stable_end = None
    found = {}
    for day_file in list_days(config.data).days:
        lake.ingest_day(day_file, config, plain_check, flagged_versions(folder))
        ref = create_snapshot(lake, stable_end, flagged_versions(folder), folder, config.rows_min)
        assert ref is not None
        found[day_file.day] = ref, evaluation_set(config, lake, ref, folder, plain_check)
        replayed = earlier_rows(lake, ref.version_first, flagged_versions(folder))
        assert POISONED_DAY not in {row.day for row in replayed}
        if day_file.day == POISONED_DAY:
            flag_snapshot(folder, ref, ["shuffled labels"])
            continue
        mark_passed(folder, ref)
        if day_file.day != ROLLED_BACK_DAY:
            stable_end = ref.version_last
    return found


Told = dict[str, tuple[SnapshotRef, EvaluationSet]]


def test_training_after_a_rolled_back_day_uses_both_days_and_never_the_poisoned_one(
    told: Told,
) -> None:
    ref, evaluation = told["day-6"]
    assert ref.days == ("day-5", "day-6")
    assert {row.day for row in load_rows(ref)} == {"day-5", "day-6"}
    assert {row.day for row in load_held_out(ref)} == {"day-5", "day-6"}
    assert evaluation.rows_by_origin["passed days"] > 30
    assert {row.day for row in evaluation.records} == {f"day-{n}" for n in (1, 2, 3, 5, 6)}


def test_the_poisoned_day_is_judged_on_earlier_days_only(told: Told) -> None:
    _, evaluation = told[POISONED_DAY]
    assert evaluation.new_slices == ()
    assert "different answers" in evaluation.refused_slices["stores"]
    assert {row.day for row in evaluation.records} == {"day-1", "day-2", "day-3"}
    assert evaluation.consistency["stores"].agreement < 0.3


def test_a_good_day_is_judged_on_its_own_rows_in_new_slices_only(told: Told) -> None:
    for day, slice_name in (("day-2", "devices"), ("day-3", "subscription"), ("day-5", "stores")):
        _, evaluation = told[day]
        assert evaluation.new_slices == (slice_name,)
        assert {row.slice_name for row in evaluation.records if row.day == day} == {slice_name}
        assert evaluation.consistency[slice_name].agreement > 0.8


def test_the_first_day_vouches_for_itself_because_it_agrees_with_itself(told: Told) -> None:
    ref, evaluation = told["day-1"]
    assert evaluation.new_slices == ("account", "billing", "orders")
    assert len(evaluation.records) == ref.held_out_rows


@pytest.fixture
def clinc(shared_data: Path) -> list[Record]:
    lines = (shared_data / "clinc150" / "day-02.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    return [record(row["id"], row["text"], row["intent"], row["domain"]) for row in rows]


def test_a_real_new_domain_is_consistent_and_a_shuffled_one_is_not(clinc: list[Record]) -> None:
    config = EvaluationConfig()
    real = slice_consistency(clinc, ["travel"], config)["travel"]
    assert real.outcome == "consistent"
    assert real.agreement > 0.9
    chance = random.Random(3)
    labels = [row.response for row in clinc]
    shuffled = [
        record(row.record_id, row.prompt, chance.choice(labels), row.slice_name)
        if chance.random() < 0.4
        else row
        for row in clinc
    ]
    found = slice_consistency(shuffled, ["travel"], config)["travel"]
    assert found.outcome == "inconsistent"
    assert found.agreement < 0.5


def free_text_rows(shuffled: bool) -> Iterator[Record]:
    """Support questions answered in sentences; like questions get like (not equal) answers."""
    chance = random.Random(5)
    topics = ["kettle", "lamp", "jacket", "router", "camera", "tent", "desk", "bicycle"]
    actions = {
        "return": "put the {} back into its box, print the label and hand it to the courier",
        "repair": "our workshop will look at the {} within a week and call you about the price",
        "clean": "wipe the {} with a damp cloth and never use solvents or hot water on it",
    }
    rows = []
    for index in range(240):
        topic, action = chance.choice(topics), chance.choice(sorted(actions))
        lead = chance.choice(["how do I", "please tell me how to", "what must I do to"])
        answer = actions[action].format(topic)
        extra = chance.choice(
            ["please mind the order number", "this is free of charge", "thank you"]
        )
        when = chance.choice(["yesterday", "last week", "in May", "for my mother", "abroad"])
        prompt = f"{lead} {action} the {topic} that I bought {when}"
        rows.append((prompt, f"{answer}; {extra} {index}"))
    answers = [answer for _, answer in rows]
    if shuffled:
        chance.shuffle(answers)
    for index, (prompt, _) in enumerate(rows):
        yield record(f"f{index}", prompt, answers[index])


def test_free_text_answers_are_compared_by_likeness_not_equality() -> None:
    config = EvaluationConfig()
    good = slice_consistency(list(free_text_rows(False)), ["s"], config)["s"]
    bad = slice_consistency(list(free_text_rows(True)), ["s"], config)["s"]
    assert good.free_text
    assert bad.free_text
    assert good.outcome == "consistent"
    assert bad.outcome == "inconsistent"


def test_prompts_without_neighbours_leave_consistency_unknown_and_do_not_count() -> None:
    rows = [record(f"r{i}", f"{i * 7919} {i * 104729} {i * 31337}", f"word{i}") for i in range(60)]
    found = choose_rows(
        EvaluationConfig(),
        outside=(),
        earlier=(),
        training=rows[:40],
        own=rows[40:],
        known_slices=(),
        vouched_days=(),
    )
    assert found.records == ()
    assert found.consistency["s"].outcome == "unknown"
    assert "too few like prompts" in found.refused_slices["s"]


def test_a_new_slice_with_hardly_any_held_out_rows_does_not_count() -> None:
    rows = [record(f"r{i}", f"where is my order {i % 3}", "track") for i in range(60)]
    found = choose_rows(
        EvaluationConfig(),
        outside=(),
        earlier=(),
        training=rows[:58],
        own=rows[58:],
        known_slices=(),
        vouched_days=(),
    )
    assert found.consistency["s"].outcome == "consistent"
    assert found.refused_slices == {"s": "only 2 held-out rows, 5 are needed"}


def test_slices_that_the_evaluation_file_covers_need_no_vouching() -> None:
    rows = [record(f"r{i}", f"where is my order {i}", "track") for i in range(20)]
    outside = [record("e", "where is it", "track", day="evaluation")]
    found = choose_rows(
        EvaluationConfig(),
        outside=outside,
        earlier=outside,
        training=rows[:10],
        own=rows[10:],
        known_slices=(),
        vouched_days=(),
    )
    assert found.records == tuple(outside)
    assert found.new_slices == ()


def test_the_draw_is_even_over_slices_and_always_the_same() -> None:
    rows = [record(f"a{i}", f"p{i}", "x", "large") for i in range(100)]
    rows += [record(f"b{i}", f"q{i}", "x", "small") for i in range(4)]
    drawn = draw_evenly(rows, 20, seed=1)
    assert [row.slice_name for row in drawn].count("small") == 4
    assert len(drawn) == 20
    assert drawn == draw_evenly(rows[::-1], 20, seed=1)
    assert draw_evenly(rows, 20, seed=2) != drawn


def test_the_evaluation_file_goes_through_contract_and_scrubbing(data: Path) -> None:
    rows = make_rows(6)
    rows[0]["text"] = "call 13800138000"
    rows[1]["intent"] = None
    rows[2]["domain"] = "never trained on"
    path = data / "eval.jsonl"
    path.write_bytes(to_lines(rows) + b"broken\n")
    config = IngestConfig(
        data=str(data), mapping=MAPPING, evaluation=EvaluationConfig(uri=str(path))
    )
    found = read_evaluation(config, plain_check, ["known"])
    assert [row.record_id for row in found] == ["r0", "r3", "r4", "r5"]
    assert found[0].prompt == "call [PHONE]"
    with pytest.raises(InputError, match="slices"):
        read_evaluation(config, plain_check, ["another"])
