"""How much text of a model is in the bytes of an answer: counted on what really leaves.

Everything in an answer's body that is not known to be none of the model's words counts as text:
a field that somebody adds counts until the safety chain has passed it.
"""

from collections import Counter
from typing import Any

import msgspec

EVENTS = "text/event-stream"
JSON = "application/json"
OUTSIDE = -1
"""The choice to which text outside of all choices is counted."""
OWN_FIELDS = frozenset(("id", "object", "created", "model", "usage", "error"))
"""Fields of an answer that hold none of the model's words."""
CHOICE_FIELDS = frozenset(("index", "finish_reason", "role"))
"""Fields of a choice that hold none of them."""
NAMES = frozenset(("message", "delta", "content", "text", "logprobs", "refusal"))
"""Names of fields of a choice; another name may be a word of the model, as in log probabilities."""
DONE = b"[DONE]"
EVENT_START = b"data: "


def text_bytes(content_type: str, body: bytes) -> Counter[int]:
    """Return the bytes of text in a body, or in a piece of a stream made of whole events.

    By choice; what cannot be read counts as text with all its bytes.
    """
    found: Counter[int] = Counter()
    if not body:
        return found
    if content_type.startswith(EVENTS):
        for event in body.split(b"\n\n"):
            if event.startswith(EVENT_START):
                event = event[len(EVENT_START) :]
            if event and event != DONE:
                _count_answer(event, found)
    elif content_type.startswith(JSON):
        _count_answer(body, found)
    else:
        found[OUTSIDE] += len(body)
    return found


def _count_answer(data: bytes, found: Counter[int]) -> None:
    try:
        answer = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        found[OUTSIDE] += len(data)
        return
    if not isinstance(answer, dict):
        found[OUTSIDE] += _size(answer)
        return
    for name, value in answer.items():
        if name == "choices" and isinstance(value, list):
            for choice in value:
                index = choice.get("index") if isinstance(choice, dict) else None
                found[index if isinstance(index, int) else OUTSIDE] += _size(choice)
        elif name not in OWN_FIELDS:
            found[OUTSIDE] += _size(value)


def _size(value: Any) -> int:
    """Return the bytes of every string, number and unknown name in a value of a choice."""
    if isinstance(value, str):
        return len(value.encode("utf-8", "surrogatepass"))
    if isinstance(value, dict):
        return sum(
            _size(item) + (0 if name in NAMES else _size(name))
            for name, item in value.items()
            if name not in CHOICE_FIELDS
        )
    if isinstance(value, list):
        return sum(map(_size, value))
    return 0 if value is None or isinstance(value, bool) else len(str(value))
