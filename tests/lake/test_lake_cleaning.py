"""Shape, normalise, scrub, digest, split."""

from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.contracts import Message
from lake.cleaning import clean, held_out, language_of, normalise, shape
from lake.sensitive import scrub, scrub_many
from lake.sources import FieldMapping
from tests.growth import growth


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to jo.smith+x@mail.example.co.uk now", "write to [EMAIL] now"),
        ("card 4111 1111 1111 1111.", "card [CARD]."),
        ("card 5555-5555-5555-4444 5", "card [CARD] 5"),
        ("call +1 202-555-0143, +44 20 7946 0018", "call [PHONE], [PHONE]"),
        ("call (212) 555-0199 today", "call [PHONE] today"),
        ("手机13800138000谢谢", "手机[PHONE]谢谢"),
        ("座机 010-62345678", "座机 [PHONE]"),
        ("１３８００１３８０００", "[PHONE]"),
        ("a\u200bb@exam\u200bple.com！", "[EMAIL]！"),
        ("you，卡号4111111111111111。", "you，卡号[CARD]。"),
    ],
)
def test_personal_data_is_replaced_by_its_kind(text: str, expected: str) -> None:
    assert scrub(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "order W-10482 of 2026-05-01T06:00:00+00:00",
        "card 4111 1111 1111 1112 fails the check",
        "it costs 1,299.95 or 12345678",
        "a @ b, user@localhost",
        "你好，价格是１２３元（含税）",
        "",
    ],
)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert scrub(text) == text


@pytest.mark.parametrize("piece", ["a", "1", "1 ", "a.", "1-", "a@", "4111 ", "(", "+1"])
def test_scrubbing_hostile_text_takes_linear_time(piece: str) -> None:
    # Four times the text: 4 for linear time, 16 for quadratic.
    assert growth(lambda count: scrub(piece * count + "@x 1234567"), 40_000, 160_000) < 8


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=60))
def test_scrubbing_twice_changes_nothing_more(text: str) -> None:
    once = scrub(text)
    assert scrub(once) == once


def test_normalising_keeps_line_breaks_and_drops_control_characters() -> None:
    assert normalise("  a\r\nb\x00\x07\u0301c\ufeff ") == "a\nb\u0301c"
    assert normalise("e\u0301") == "é"
    assert normalise("你好，世界") == "你好，世界"


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("where is my order", "en"),
        ("où est mon colis", "en"),
        ("我的W-10482订单到哪里了", "zh"),
        ("荷物はどこですか", "ja"),
        ("내 주문은 어디에 있나요", "ko"),
        ("где мой заказ", "ru"),
    ],
)
def test_language_is_told_by_the_script(text: str, language: str) -> None:
    assert language_of(text) == language


def test_held_out_rows_are_a_stable_share() -> None:
    chosen = [held_out(f"id-{index}", 0.1) for index in range(5000)]
    assert chosen == [held_out(f"id-{index}", 0.1) for index in range(5000)]
    assert 0.08 < sum(chosen) / len(chosen) < 0.12
    assert not held_out("anything", 0.0)


def test_mapped_columns_are_taken() -> None:
    mapping = FieldMapping(prompt="q", response="a", slice_name="area", id="key")
    row = shape({"q": "hi", "a": "hello", "area": "talk", "key": 17}, mapping)
    ready = clean([row], scrub_many)[0]
    assert (ready.record_id, ready.slice_name, ready.response) == ("17", "talk", "hello")
    assert ready.messages == (Message("user", "hi"),)


def test_chat_rows_need_no_mapping() -> None:
    chat = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "part one"}]},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": "call 13800138000"},
        {"role": "assistant", "content": "done"},
    ]
    row = shape({"messages": chat}, FieldMapping())
    assert row.checked["roles"] == "system,user,assistant,user"
    ready = clean([row], scrub_many)[0]
    assert [turn.content for turn in ready.messages] == [
        "be brief",
        "part one",
        "yes?",
        "call [PHONE]",
    ]
    assert ready.response == "done"
    assert ready.slice_name == "all"
    assert len(ready.record_id) == 32


@pytest.mark.parametrize(
    "chat",
    [
        [],
        "text",
        [{"role": "user", "content": "no answer"}],
        [{"role": "assistant", "content": "no question"}],
        [{"role": "user", "content": {"image": 1}}, {"role": "assistant", "content": "x"}],
        ["user", "assistant"],
    ],
)
def test_chat_rows_that_cannot_be_used_have_no_turns(chat: object) -> None:
    assert shape({"messages": chat}, FieldMapping()).turns is None


def test_wrong_types_are_left_for_the_contract_to_refuse() -> None:
    row = shape({"prompt": 12, "response": ["x"], "id": {}}, FieldMapping())
    assert row.turns is None
    assert row.checked["prompt"] == 12
    assert row.checked["response"] == ["x"]


def test_times_of_parquet_and_epochs_become_iso() -> None:
    moment = datetime(2026, 5, 1, tzinfo=UTC)
    for value in (
        moment,
        moment.replace(tzinfo=None),
        moment.timestamp(),
        moment.timestamp() * 1e3,
    ):
        checked = shape({"prompt": "x", "created_at": value}, FieldMapping()).checked
        assert checked["created_at"] == "2026-05-01T00:00:00+00:00"
    assert shape({"created_at": 17}, FieldMapping()).checked["created_at"] == 17


def test_an_id_that_is_an_e_mail_address_is_replaced_by_its_digest() -> None:
    row = shape({"prompt": "x", "response": "y", "id": "jo@example.com"}, FieldMapping())
    assert "@" not in clean([row], scrub_many)[0].record_id
    assert clean([row], list)[0].record_id == "jo@example.com"


def test_same_content_under_another_id_has_the_same_digest() -> None:
    first = clean(
        [shape({"prompt": "x ", "response": "y", "id": "1"}, FieldMapping())], scrub_many
    )[0]
    second = clean(
        [shape({"prompt": "x", "response": "y", "id": "2"}, FieldMapping())], scrub_many
    )[0]
    other = clean([shape({"prompt": "x", "response": "z", "id": "1"}, FieldMapping())], scrub_many)[
        0
    ]
    assert first.content_digest == second.content_digest != other.content_digest
