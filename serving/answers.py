"""The OpenAI API's answers as JSON bytes: whole answers, stream events, the list of models."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from uuid import uuid4

import msgspec

from serving.engines.engine import FinishReason, Piece

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Choice:
    """One answer as far as it is known."""

    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    finish_reason: FinishReason | None = None

    def add(self, piece: Piece) -> None:
        """Append a piece."""
        self.texts.append(piece.text)
        self.tokens = piece.completion_tokens
        self.finish_reason = piece.finish_reason


class AnswerForm:
    """Writes one request's answer: chat or text, whole or as events.

    `response_id` is what the gateway calls the answer; without one it gets an id of its own.
    """

    def __init__(self, model: str, chat: bool, response_id: str = "") -> None:
        self._chat = chat
        self.id = f"{'chatcmpl' if chat else 'cmpl'}-{response_id or uuid4().hex}"
        self._head = {
            "id": self.id,
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": model,
        }
        self._event_head = dict(self._head)
        if chat:
            self._event_head["object"] = "chat.completion.chunk"

    def whole(self, choices: list[Choice], prompt_tokens: int) -> bytes:
        """Return the body of an answer that was not streamed."""
        shown = []
        for index, choice in enumerate(choices):
            text = "".join(choice.texts)
            message = {"role": "assistant", "content": text, "refusal": None}
            content: Mapping[str, object] = {"message": message} if self._chat else {"text": text}
            shown.append(self._choice(index, content, choice.finish_reason))
        counts = usage(prompt_tokens, sum(choice.tokens for choice in choices))
        return msgspec.json.encode({**self._head, "choices": shown, "usage": counts})

    def opening(self, index: int) -> bytes:
        """Return the event that names the speaker of a chat choice (nothing for plain text)."""
        if not self._chat:
            return b""
        return self._event(index, {"delta": {"role": "assistant", "content": ""}}, None)

    def piece(self, index: int, piece: Piece) -> bytes:
        """Return the event of one piece."""
        delta = {"content": piece.text} if piece.text else {}
        content: Mapping[str, object] = {"delta": delta} if self._chat else {"text": piece.text}
        return self._event(index, content, piece.finish_reason)

    def counts(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """Return the event with the token counts."""
        content: Mapping[str, object] = {
            **self._event_head,
            "choices": [],
            "usage": usage(prompt_tokens, completion_tokens),
        }
        return b"data: " + msgspec.json.encode(content) + b"\n\n"

    def _event(
        self, index: int, content: Mapping[str, object], finish_reason: FinishReason | None
    ) -> bytes:
        choices = [self._choice(index, content, finish_reason)]
        return b"data: " + msgspec.json.encode({**self._event_head, "choices": choices}) + b"\n\n"

    @staticmethod
    def _choice(
        index: int, content: Mapping[str, object], finish_reason: FinishReason | None
    ) -> dict[str, object]:
        return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    """Return the token counts of an answer."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def model_card(name: str, created: int) -> dict[str, str | int]:
    """Return one entry of the list of models."""
    return {"id": name, "object": "model", "created": created, "owned_by": "serin"}
