"""From a record to the tokens a model learns from, by the tokenizer's own chat template.

Text of a user stays text: a literal special token in it never becomes the special token.
"""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from core.contracts import Message, Record
from core.errors import ConfigurationError, InputError

OPEN, CLOSE = "\ue000", "\ue001"
"""Private-use characters around a turn's number: where its text goes in the rendered template."""
MARKED = re.compile(f"{OPEN}([0-9]+){CLOSE}")
SHORTENINGS_MAX = 16


class ChatTokenizer(Protocol):
    """What is used of a Hugging Face tokenizer."""

    eos_token_id: int | None
    all_special_tokens: list[str]

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any: ...
    def encode(self, text: str, **options: Any) -> list[int]: ...
    def decode(self, token_ids: list[int], **options: Any) -> str: ...
    def get_added_vocab(self) -> dict[str, int]: ...


def encode(record: Record, tokenizer: ChatTokenizer, tokens_max: int) -> tuple[list[int], int]:
    """Return a record's token ids, prompt then answer, and how many of them are the prompt.

    The prompt ends with the template's opening of the assistant's turn, the answer with the end
    token. At most `tokens_max` ids: the answer is cut to a half if need be (then it has no end
    token), and then the longest prompt turns lose their beginnings. Raises InputError when the
    template alone is longer, ConfigurationError for a tokenizer without template or end token.
    """
    end_id = tokenizer.eos_token_id
    if end_id is None:
        raise ConfigurationError("the tokenizer has no end token; set its eos_token")
    answer = [*_text_ids(record.response, tokenizer), end_id]
    prompt = encode_prompt(record.messages, tokenizer)
    if len(prompt) + len(answer) > tokens_max:
        answer = answer[: max(tokens_max // 2, tokens_max - len(prompt))]
        prompt = _shortened(record.messages, tokenizer, tokens_max - len(answer))
    return prompt + answer, len(prompt)


def encode_prompt(messages: Sequence[Message], tokenizer: ChatTokenizer) -> list[int]:
    """Return the token ids of a conversation up to the opening of the assistant's turn.

    The rendered text is encoded as a whole, as a server does it; only where a turn contains a
    literal special token is it encoded piece by piece, so that this token stays text.
    """
    marked = [replace(turn, content=f"{OPEN}{index}{CLOSE}") for index, turn in enumerate(messages)]
    rendered = _render(marked, tokenizer)
    special = {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}
    if not any(token in turn.content for turn in messages for token in special if token):
        text = MARKED.sub(lambda match: messages[int(match[1])].content, rendered)
        return list(tokenizer.encode(text, add_special_tokens=False))
    ids: list[int] = []
    for piece in rendered.split(OPEN):
        number, mark, rest = piece.partition(CLOSE)
        if mark:
            ids += _text_ids(messages[int(number)].content, tokenizer)
        ids += tokenizer.encode(rest if mark else piece, add_special_tokens=False)
    return ids


def _render(messages: Sequence[Message], tokenizer: ChatTokenizer) -> str:
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except ValueError as error:
        raise ConfigurationError(f"the tokenizer's chat template fails: {error}") from error


def _text_ids(text: str, tokenizer: ChatTokenizer) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))


def _shortened(messages: Sequence[Message], tokenizer: ChatTokenizer, tokens_max: int) -> list[int]:
    """Return the prompt's ids after cutting the beginnings of its longest turns."""
    turns = list(messages)
    prompt = encode_prompt(turns, tokenizer)
    for _ in range(SHORTENINGS_MAX):
        if len(prompt) <= tokens_max:
            return prompt
        longest = max(range(len(turns)), key=lambda index: len(turns[index].content))
        ids = _text_ids(turns[longest].content, tokenizer)
        kept = ids[min(len(ids), len(prompt) - tokens_max) :]
        text = tokenizer.decode(kept, skip_special_tokens=False).lstrip("\ufffd")
        turns[longest] = replace(turns[longest], content=text)
        prompt = encode_prompt(turns, tokenizer)
    raise InputError(f"the chat template alone has more than {tokens_max} tokens; raise tokens_max")
