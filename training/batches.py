"""Records to token ids and length-bucketed batches: the one place that says how a chat is spelt.

Knows the tokenizer's chat template; knows neither models nor optimisers.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.contracts import Message, Record
from core.errors import InputError

PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
"""For models that bring no chat template of their own."""

SENTINEL = "\ue0f1{}\ue0f2"
"""Stands for a turn's text while the template is rendered (private-use code points)."""


@dataclass(frozen=True, slots=True)
class Example:
    """One row as token ids; the first `prompt_length` of them carry no loss."""

    ids: tuple[int, ...]
    prompt_length: int


def load_tokenizer(folder: Path) -> Any:
    """Load a model folder's tokenizer, with a chat template and a padding token in any case.

    Raises InputError when the folder holds no tokenizer that can be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} has no tokenizer that can be loaded: {error}") from error
    if tokenizer.eos_token_id is None:
        raise InputError(f"the tokenizer in {folder} names no end token (eos_token); set one")
    if not tokenizer.chat_template:
        tokenizer.chat_template = PLAIN_TEMPLATE
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_prompt(messages: Sequence[Message], tokenizer: Any) -> list[int]:
    """Return the ids of a conversation up to where the assistant's answer begins.

    Text of the turns never becomes a special token, whatever it spells.
    """
    turns = [{"role": turn.role, "content": turn.content} for turn in messages]
    if not any(_spells_special(turn.content, tokenizer) for turn in messages):
        text = _render(turns, tokenizer, answer_next=True)
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    marks = [SENTINEL.format(index) for index in range(len(turns))]
    marked = [{**turn, "content": mark} for turn, mark in zip(turns, marks, strict=True)]
    rest = _render(marked, tokenizer, answer_next=True)
    ids: list[int] = []
    for turn, mark in zip(turns, marks, strict=True):
        before, found, rest = rest.partition(mark)
        ids += tokenizer(before, add_special_tokens=False)["input_ids"]
        if found:
            ids += _encode_text(turn["content"], tokenizer)
        else:  # The template leaves this turn out.
            rest = before + rest
    return ids + list(tokenizer(rest, add_special_tokens=False)["input_ids"])


def encode(record: Record, tokenizer: Any, tokens_max: int) -> tuple[list[int], int]:
    """Return (ids, prompt length) of one record; the ids end with the end-of-turn token.

    At most `tokens_max` ids: the prompt's oldest tokens are left out first, then the answer's last.
    """
    answer = _encode_text(record.response, tokenizer)[: tokens_max - 2] + [end_of_turn(tokenizer)]
    prompt = encode_prompt(record.messages, tokenizer)[-(tokens_max - len(answer)) :]
    return prompt + answer, len(prompt)


def encode_records(
    records: Sequence[Record], tokenizer: Any, tokens_max: int
) -> tuple[Example, ...]:
    """Encode records in their order. Raises InputError naming a record without any turn."""
    examples = []
    for record in records:
        if not record.messages:
            raise InputError(f"record {record.record_id} has no turn before its answer")
        ids, prompt_length = encode(record, tokenizer, tokens_max)
        examples.append(Example(tuple(ids), prompt_length))
    return tuple(examples)


def end_of_turn(tokenizer: Any) -> int:
    """Return the id that ends an answer: the tokenizer's eos token."""
    return int(tokenizer.eos_token_id)


def plan_batches(
    examples: Sequence[Example], rows_max: int, tokens_max: int, seed: int
) -> list[list[int]]:
    """Return batches of example indices, similar lengths together, in a seeded order.

    Every example is in exactly one batch; a batch padded to its longest row holds at most
    `tokens_max` tokens (one row may exceed that alone). The number of batches does not depend on
    the seed.
    """
    generator = random.Random(seed)
    order = list(range(len(examples)))
    generator.shuffle(order)
    # Ties keep the shuffled order, so each epoch mixes other rows of one length together.
    order.sort(key=lambda index: len(examples[index].ids), reverse=True)
    batches: list[list[int]] = []
    rows = 0
    for index in order:
        if not batches or len(batches[-1]) >= rows:
            batches.append([])
            rows = min(rows_max, max(1, tokens_max // len(examples[index].ids)))
        batches[-1].append(index)
    generator.shuffle(batches)
    return batches


def padding_share(examples: Sequence[Example], batches: Sequence[Sequence[int]]) -> float:
    """Return the share of padding among all positions of the padded batches, 0..1."""
    used = sum(len(example.ids) for example in examples)
    padded = sum(len(batch) * max(len(examples[index].ids) for index in batch) for batch in batches)
    return 1 - used / padded if padded else 0.0


def loss_weight(examples: Sequence[Example], batch: Sequence[int], prompt_weight: float) -> float:
    """Return the summed weight of a batch's loss: 1 per answer token, less per prompt token.

    A row's first token is not predicted from anything and counts nothing.
    """
    answers = sum(len(examples[index].ids) - examples[index].prompt_length for index in batch)
    prompts = sum(examples[index].prompt_length - 1 for index in batch)
    return answers + prompt_weight * prompts


def _render(turns: list[dict[str, str]], tokenizer: Any, answer_next: bool) -> str:
    return str(
        tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=answer_next)
    )


def _encode_text(text: str, tokenizer: Any) -> list[int]:
    """Encode text of a turn: spelling out a special token gives ordinary tokens."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return list(ids)


def _spells_special(text: str, tokenizer: Any) -> bool:
    return any(token in text for token in tokenizer.all_special_tokens)
