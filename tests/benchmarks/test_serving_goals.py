"""A goal is met, missed, or has nothing to be compared with; never dropped."""

from typing import Any

from benchmarks.support.serving_goals import FINAL, NAIVE, VLLM, goals


def line(row: str, latency_ms: float, tokens_per_second: float, **more: Any) -> dict[str, Any]:
    cell = {"tokens_per_second": tokens_per_second, "failures": 0.0}
    cell |= {"latency_ms_p50": latency_ms, "latency_ms_p95": 2 * latency_ms}
    return {"row": row, "note": "", "closed_loop": {"16": cell}, "megabytes": 400.0, **more}


def shape(*rows: dict[str, Any], **more: Any) -> dict[str, Any]:
    fixed = {"failures": 0, "latency_ms_p99": 300.0}
    known = {"shape": "builtin", "answer_tokens": 64, "start_seconds": [2.0, 30.0, 3.0]}
    return {**known, "rows": list(rows), "fixed_answers": fixed, **more}


def test_every_goal_has_its_value_and_whether_it_is_met() -> None:
    found = goals([shape(line(NAIVE, 1000.0, 100.0), line(FINAL, 100.0, 700.0))])
    assert [(goal["value"], goal["met"]) for goal in found] == [
        (0.1, True),
        (0.1, True),
        (7.0, False),
        (3.0, True),
        (300.0, True),
        (400.0, True),
        (0.0, True),
    ]


def test_an_engine_that_is_not_there_leaves_its_goal_open() -> None:
    absent = {"row": VLLM, "note": "not installed", "closed_loop": {}}
    found = goals([shape(line(NAIVE, 1000.0, 100.0), line(FINAL, 100.0, 900.0), absent)])
    [goal] = [goal for goal in found if "vllm" in goal["name"]]
    assert "not installed" in goal["name"]
    assert goal["value"] is goal["met"] is None


def test_failed_requests_void_the_latency_goal_and_miss_their_own() -> None:
    broken = line(FINAL, 100.0, 900.0)
    broken["closed_loop"]["16"]["failures"] = 2.0
    measured = shape(line(NAIVE, 1000.0, 100.0), broken, fixed_answers={"failures": 1})
    missed = [goal["name"] for goal in goals([measured]) if not goal["met"]]
    assert missed == [
        "builtin: p99 ms of 64-token answers at 70 % load",
        "builtin: failed requests",
    ]
