"""The health matrix's decisions: hysteresis, cooldowns, attempts, unknowns, overrides, releases."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from validation.health import RELAPSES_MAX, Reading, RowState, Step, clear_time, decide, stricter
from validation.health_config import DEFAULT_ROWS, Condition, HealthConfig, Mode, Row

TICK_SECONDS = 10.0
CONDITION = Condition(metric="memory_share", above=0.9, clear=0.7)
ROW = Row(
    conditions=(CONDITION,),
    for_seconds=30,
    clear_seconds=60,
    recovery="scale_out",
    verify_seconds=40,
    cooldown_seconds=50,
    attempts_max=2,
    escalation="degrade",
    unknown_seconds=40,
)
BAD, BETWEEN, GOOD = 0.95, 0.8, 0.5


class Watch:
    """Feeds one value after the other and keeps all steps with their times."""

    def __init__(self, row: Row = ROW, mode: Mode = "act") -> None:
        self.row, self.mode, self.state, self.now = row, mode, RowState(), 1000.0
        self.steps: list[tuple[float, Step]] = []
        self.levels: list[tuple[float, float | None]] = []

    def see(self, *values: float | None, release_runs: bool = False) -> list[str]:
        """Look once per value; return the kinds of the steps that followed."""
        kinds: list[str] = []
        for value in values:
            self.now += TICK_SECONDS
            readings = {"memory_share": Reading(value, why="nobody answers")}
            self.state, steps = decide(
                self.row, self.state, readings, self.now, self.mode, release_runs
            )
            self.levels.append((self.now, value))
            self.steps += [(self.now, step) for step in steps]
            kinds += [step.kind for step in steps]
        return kinds

    def times(self, kind: str) -> list[float]:
        return [at for at, step in self.steps if step.kind == kind]


def test_a_breach_must_last_before_anything_is_done() -> None:
    assert Watch().see(BAD, BAD, BAD, GOOD, BAD, BAD, BAD) == []
    assert Watch().see(BAD, BAD, BAD, BAD) == ["act"]


def test_a_gap_in_the_data_begins_the_time_anew() -> None:
    assert Watch().see(BAD, BAD, BAD, None, BAD, BAD, BAD) == []


def test_a_recovery_that_helps_is_undone_once_it_has_been_clear_for_long_enough() -> None:
    watch = Watch()
    watch.see(*[BAD] * 4)
    assert watch.see(GOOD) == ["helped"]
    assert watch.see(*[GOOD] * 5) == []
    assert watch.see(GOOD) == ["undo"]
    assert not watch.state.active


def test_a_recovery_that_does_not_help_is_tried_again_and_then_escalated_once() -> None:
    watch = Watch()
    watch.see(*[BAD] * 4)
    kinds = watch.see(*[BAD] * 30)
    assert kinds == ["not_helped", "act", "not_helped", "escalate"]
    assert [step.attempt for _, step in watch.steps if step.kind == "act"] == [1, 2]


def test_no_data_is_its_own_alarm_and_neither_starts_nor_ends_a_recovery() -> None:
    watch = Watch()
    watch.see(*[BAD] * 4)
    assert watch.see(*[None] * 20) == ["no_data"]
    assert watch.state.active
    assert watch.see(BAD)[0] == "data_again"


def test_a_running_release_is_not_disturbed_and_the_recovery_follows_it() -> None:
    watch = Watch()
    assert watch.see(*[BAD] * 9, release_runs=True) == ["deferred"]
    assert watch.see(BAD) == ["act"]
    watch.see(*[GOOD] * 20, release_runs=True)
    assert watch.state.active
    assert watch.see(GOOD) == ["undo"]


def test_a_recovery_in_front_of_the_draw_does_not_wait_for_a_release() -> None:
    degrade = ROW.model_copy(update={"recovery": "degrade"})
    assert Watch(degrade).see(*[BAD] * 4, release_runs=True) == ["act"]


def test_a_dry_run_tells_what_would_be_done_and_acts_once_it_ends() -> None:
    watch = Watch(mode="dry_run")
    watch.see(*[BAD] * 4)
    assert [(step.kind, step.dry) for _, step in watch.steps] == [("act", True)]
    watch.mode = "act"
    watch.see(BAD)
    assert [(step.kind, step.dry) for _, step in watch.steps] == [("act", True), ("act", False)]


def test_a_dry_run_leaves_in_force_what_was_done_before_it() -> None:
    watch = Watch()
    watch.see(*[BAD] * 4)
    watch.mode = "dry_run"
    watch.see(*[GOOD] * 20)
    assert watch.state.active
    watch.mode = "act"
    assert watch.see(GOOD) == ["undo"]


def test_a_row_that_is_off_does_nothing() -> None:
    watch = Watch(mode="off")
    assert watch.see(*[BAD] * 30) == []


def test_the_strictest_of_the_modes_counts() -> None:
    assert stricter(["act", "dry_run"]) == "dry_run"
    assert stricter(["dry_run", "off", "act"]) == "off"


def test_all_conditions_of_a_row_must_hold_and_one_that_is_clear_is_enough() -> None:
    row = DEFAULT_ROWS["latency"].model_copy(update={"for_seconds": 0})

    def kinds(latency: float | None, rate: float) -> list[str]:
        readings = {"latency_p95_seconds": Reading(latency), "request_rate": Reading(rate)}
        return [step.kind for step in decide(row, RowState(), readings, 0.0)[1]]

    assert kinds(2.0, 150.0) == ["act"]
    assert kinds(2.0, 90.0) == []
    assert kinds(0.9, 150.0) == []
    assert kinds(None, 150.0) == []


def test_what_cannot_be_measured_here_is_neither_unknown_nor_breached() -> None:
    readings = {"memory_share": Reading(absent=True, why="no daily schedule")}
    state = RowState()
    for second in range(0, 1000, 10):
        state, steps = decide(ROW, state, readings, float(second))
        assert steps == ()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([BAD, BETWEEN, GOOD, None]), min_size=20, max_size=300))
def test_no_stream_of_values_makes_a_row_flap(values: list[float | None]) -> None:
    watch = Watch()
    watch.see(*values)
    known = dict(watch.levels)
    changes = [(at, s.kind) for at, s in watch.steps if s.kind in ("act", "undo")]
    active = False
    for at, kind in changes:
        recent = [known[t] for t in known if at - ROW.for_seconds <= t <= at]
        if kind == "act":
            assert all(value == BAD for value in recent) or active
            last = [t for t, _ in changes if t < at]
            assert not last or at - last[-1] >= ROW.cooldown_seconds
        else:
            assert active
            long = [known[t] for t in known if at - ROW.clear_seconds <= t <= at]
            assert all(value == GOOD for value in long)
        active = kind == "act"


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from([BETWEEN, None]), max_size=100), st.booleans())
def test_values_between_the_thresholds_change_nothing(
    values: list[float | None], active: bool
) -> None:
    watch = Watch()
    if active:
        watch.see(*[BAD] * 4)
    before = watch.state.active
    kinds = watch.see(*values)
    assert watch.state.active == before
    assert not {"act", "undo", "escalate"} & set(kinds)


def test_the_worst_oscillation_is_slowed_down_by_ever_longer_waits() -> None:
    """Bad whenever the recovery is off, good whenever it is on."""
    watch = Watch(ROW.model_copy(update={"cooldown_seconds": 0}))
    for _ in range(2000):
        watch.see(GOOD if watch.state.active else BAD)
    longest = ROW.clear_seconds * 2**RELAPSES_MAX
    horizon = 2000 * TICK_SECONDS
    assert len(watch.times("undo")) <= RELAPSES_MAX + 1 + horizon / longest
    assert clear_time(ROW, watch.state) == longest


def test_fields_given_for_a_row_replace_those_of_its_default() -> None:
    config = HealthConfig.model_validate({"rows": {"memory": {"for_seconds": 1}}})
    assert config.rows["memory"].for_seconds == 1
    assert config.rows["memory"].recovery == "scale_out"
    assert config.rows["disk"] == DEFAULT_ROWS["disk"]
    assert HealthConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"memory": {"fro_seconds": 1}}, "fro_seconds"),
        ({"mine": {"recovery": "alarm"}}, "conditions"),
        ({"memory": {"conditions": [{"metric": "memory_share", "above": 1, "clear": 2}]}}, "over"),
    ],
)
def test_a_wrong_row_is_refused_by_name(rows: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        HealthConfig.model_validate({"rows": rows})
