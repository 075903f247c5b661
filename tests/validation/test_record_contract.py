"""The record contract: every rule refuses its rows, with the reason, and no others."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contracts import IntakeEvidence, Rejection
from core.errors import IntegrityError
from validation.contract_report import suite_rejections, write_contract_report
from validation.records import RecordContract, check_rows, describe

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
        ({"prompt": "a\0b"}, "the text holds NUL characters"),
        ({"response": "\ufffd?"}, "the text was decoded wrongly (replacement characters)"),
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


def test_only_the_wanted_languages_pass_where_some_are_named() -> None:
    english = RecordContract(languages=("en",))
    rows = [{**GOOD, "language": name} for name in ("en", "zh", None)]
    found = check_rows(rows, contract=english)
    assert [item.index for item in found] == [1, 2]
    assert found[0].reason == "the language is none of en"


VALUES = st.one_of(
    st.none(), st.integers(), st.floats(allow_nan=False), st.lists(st.text(max_size=2), max_size=2),
    st.text(max_size=6), st.sampled_from(["", " ", "x" * 9, "a\0b", "a\ufffd", "user", "user,user",
    "system,user,assistant,user", "2026-05-01", "2999-01-01T00:00:00Z", "2026-05-01T06:00:00+02:00",
    "1e400", "zh", "0001-01-01", "9999-12-31T23:59:59-23:59"]),
)  # fmt: skip
NOW = 1_800_000_000.0


@settings(max_examples=15, deadline=None)
@given(
    st.lists(st.fixed_dictionaries({name: VALUES for name in [*GOOD, "language"]}), max_size=12),
    st.booleans(),
)
def test_the_suite_judges_the_same_rows_the_same_way(
    rows: list[dict[str, Any]], languages: bool
) -> None:
    contract = RecordContract(
        prompt_characters_max=5, name_characters_max=4, languages=("en", "zh") if languages else ()
    )
    rows = [*rows, GOOD]
    mine = check_rows(rows, NOW, contract)
    assert suite_rejections(describe(rows, NOW), contract) == mine


def test_the_report_is_a_page_about_the_sample_and_the_batches(tmp_path: Path) -> None:
    rows = [GOOD, {**GOOD, "prompt": None}, {**GOOD, "response": ""}]
    columns = describe(rows, NOW)
    reasons = {item.index: item.reason for item in check_rows(rows, NOW)}
    sample = tuple(
        {
            **{name: column[index] for name, column in columns.items()},
            "reason": reasons.get(index, ""),
        }
        for index in range(len(rows))
    )
    batch = {"rows": 3, "refused": 2, "reasons": dict.fromkeys(reasons.values(), 1)}
    report = write_contract_report(IntakeEvidence((batch,), sample), tmp_path)
    assert (report.sampled, report.sampled_refused, report.succeeded) == (3, 2, False)
    pages = " ".join(path.read_text() for path in (tmp_path / "contract").rglob("*.html"))
    assert "response_length" in pages
    assert "the prompt is missing or not text" in pages
    liar = ({**sample[0], "reason": "made up"}, *sample[1:])
    with pytest.raises(IntegrityError, match="disagree"):
        write_contract_report(IntakeEvidence((batch,), liar), tmp_path)
