"""Text in an answer's bytes is counted whole: what nobody knows to be harmless counts as text."""

import msgspec
import pytest

from serving.coverage import EVENTS, JSON, OUTSIDE, text_bytes

HEAD = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "a:1"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}


def answer(*choices: object, **more: object) -> bytes:
    return msgspec.json.encode({**HEAD, "choices": choices, "usage": USAGE, **more})


def choice(index: int = 0, **content: object) -> dict[str, object]:
    return {"index": index, "logprobs": None, "finish_reason": "stop", **content}


@pytest.mark.parametrize(
    ("content", "size"),
    [
        ({"message": {"role": "assistant", "content": "né", "refusal": None}}, 3),
        ({"text": "世界"}, 6),
        ({"text": ""}, 0),
        ({"message": {"content": "", "refusal": "no"}}, 2),
        ({"text": "a", "reasoning": "bc"}, 1 + len("reasoning") + 2),
        ({"text": "a", "logprobs": {"tokens": ["x"]}}, 1 + len("tokens") + 1),
        ({"text": "a", "logprobs": {"secret": -1.5}}, 1 + len("secret") + 4),
        ({"message": {"tool_calls": [{"arguments": "{1}"}]}}, len("tool_callsarguments{1}")),
    ],
)
def test_every_word_of_a_choice_counts(content: dict[str, object], size: int) -> None:
    assert text_bytes(JSON, answer({**choice(), **content})).total() == size


def test_choices_are_counted_apart_and_text_beside_them_too() -> None:
    found = text_bytes(JSON, answer(choice(0, text="a"), choice(1, text="bcd"), note="xy"))
    assert found == {0: 1, 1: 3, OUTSIDE: 2}


def test_errors_and_own_fields_are_no_text() -> None:
    body = msgspec.json.encode({"error": {"message": "The queue is full.", "code": "x"}})
    assert text_bytes(JSON, body).total() == 0
    assert text_bytes(JSON, answer()).total() == 0


def test_streams_are_read_event_by_event() -> None:
    events = [answer(choice(0, delta={"content": "ab"})), answer(choice(1, delta={})), b"[DONE]"]
    body = b"".join(b"data: " + event + b"\n\n" for event in events)
    assert text_bytes(EVENTS, body) == {0: 2, 1: 0}
    assert text_bytes(EVENTS + "; charset=utf-8", b"data: oops\n\n: comment\n\n").total() == 13


@pytest.mark.parametrize("body", [b"{", b'"text"', b"[1]", b"\xff", b"<p>text</p>"])
def test_what_cannot_be_read_counts_whole(body: bytes) -> None:
    assert text_bytes(JSON, body).total() > 0
    assert text_bytes("text/html", body).total() == len(body)
