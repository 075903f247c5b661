"""The record contract: every rule refuses its rows, with the reason, and no others."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from core.contracts import Rejection
from validation.records import RecordContract, check_rows

GOOD: dict[str, Any] = {
    "record_id": "1",
    "created_at": "2026-05-01T06:00:00+00:00",
    "slice_name": "orders",
    "roles": "user",
    "prompt": "where is it",
    "response": "track_order",
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"prompt": None}, "the prompt is missing or not text"),
        ({"prompt": 12}, "the prompt is missing or not text"),
        ({"prompt": ["a"]}, "the prompt is missing or not text"),
        ({"prompt": "  \n"}, "the prompt is empty"),
        ({"prompt": "x" * 20_001}, "the prompt is longer than 20000 characters"),
        ({"response": None}, "the response is missing or not text"),
        ({"response": ""}, "the response is empty"),
        ({"slice_name": None}, "the slice name is missing or not text"),
        ({"slice_name": " "}, "the slice name is empty"),
        ({"record_id": 4.5}, "the record id is missing or not text"),
        ({"record_id": "x" * 201}, "the record id is longer than 200 characters"),
        ({"created_at": "yesterday"}, "the time is not ISO 8601"),
        ({"created_at": 17}, "the time is not ISO 8601"),
        ({"created_at": "2999-01-01T00:00:00Z"}, "the time lies in the future"),
        ({"roles": "user,user"}, "the turns are not user and assistant in turn"),
        ({"roles": "tool"}, "the turns are not user and assistant in turn"),
        ({"roles": None}, "the turns are not user and assistant in turn"),
    ],
)
def test_a_bad_row_is_refused_with_its_reason(change: dict[str, Any], reason: str) -> None:
    assert check_rows([GOOD, {**GOOD, **change}, GOOD]) == [Rejection(1, reason)]


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"created_at": None},
        {"created_at": ""},
        {"created_at": "2026-05-01"},
        {"created_at": "2026-05-01T06:00:00Z"},
        {"roles": "system,user,assistant,user"},
        {"prompt": "我的订单"},
    ],
)
def test_good_rows_pass(change: dict[str, Any]) -> None:
    assert check_rows([{**GOOD, **change}]) == []


def test_no_rows_are_no_rejections() -> None:
    assert check_rows([]) == []


def test_every_broken_rule_is_told_and_rows_keep_their_order() -> None:
    found = check_rows([GOOD, {}, {**GOOD, "response": ""}])
    assert [item.index for item in found] == [1, 2]
    assert found[0].reason.count(";") == 4


def test_a_batch_in_which_no_value_can_be_measured_is_refused_whole() -> None:
    rows = [{**GOOD, "prompt": None, "created_at": None}] * 3
    assert [item.index for item in check_rows(rows)] == [0, 1, 2]


def test_a_clock_a_little_ahead_is_allowed() -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=60)).isoformat()
    assert check_rows([{**GOOD, "created_at": soon}]) == []
    strict = RecordContract(future_seconds_max=0)
    assert check_rows([{**GOOD, "created_at": soon}], contract=strict) != []


def test_a_batch_is_checked_in_well_under_a_second() -> None:
    check_rows([GOOD])
    started = time.process_time()
    assert check_rows([GOOD] * 5000) == []
    assert time.process_time() - started < 3
