"""Requests for the serving benchmark: prompts of a set length, arrivals and lengths of a trace.

A trace is a CSV file with the columns TIMESTAMP, ContextTokens and GeneratedTokens (the Azure LLM
inference traces' form); without one a seeded synthetic trace stands in.
"""

import csv
import random
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.support.serving_clients import Asked
from benchmarks.support.serving_models import SAMPLE, read_rows

SYNTHETIC_REQUESTS = 20_000
SHARED_TOKENS, OWN_TOKENS = 96, 32
"""A closed loop's prompt: instructions that all requests share, then words of its own."""
MEAN_PROMPT_TOKENS, MEAN_ANSWER_TOKENS = 128, 32
"""Trace lengths are scaled to these means: a small model's context holds no long one."""
PROMPT_TOKENS_MAX, ANSWER_TOKENS_MAX = 700, 192


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace: seconds since its first, tokens of its prompt and its answer."""

    at_seconds: float
    prompt_tokens: int
    answer_tokens: int


def read_trace(path: Path) -> list[Arrival]:
    """Read a trace file in order of arrival."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    # Seven digits of a second are one more than Python reads.
    times = [datetime.fromisoformat(row["TIMESTAMP"].strip()[:26]).timestamp() for row in rows]
    found = [
        Arrival(time - min(times), int(row["ContextTokens"]), int(row["GeneratedTokens"]))
        for time, row in zip(times, rows, strict=True)
    ]
    return sorted(found, key=lambda arrival: arrival.at_seconds)


def synthetic_trace(seed: int = 1) -> list[Arrival]:
    """Return bursty arrivals (gamma gaps, variation 2) and log-normal lengths."""
    draw = random.Random(seed)
    at, found = 0.0, []
    for _ in range(SYNTHETIC_REQUESTS):
        at += draw.gammavariate(0.25, 4.0)
        prompt, answer = draw.lognormvariate(6.5, 1.0), draw.lognormvariate(4.9, 0.9)
        found.append(Arrival(at, 1 + int(prompt), 1 + int(answer)))
    return found


def scaled(trace: Sequence[Arrival], per_second: float, seconds: float) -> list[Arrival]:
    """Return the trace's first requests: its pattern at `per_second` on average for `seconds`.

    Lengths keep their distribution around the means above; the longest are cut.
    """
    chosen = trace[: max(2, round(per_second * seconds))]
    stretch = seconds / max(chosen[-1].at_seconds - chosen[0].at_seconds, 1e-9)
    prompts = MEAN_PROMPT_TOKENS * len(chosen) / sum(item.prompt_tokens for item in chosen)
    answers = MEAN_ANSWER_TOKENS * len(chosen) / sum(item.answer_tokens for item in chosen)
    return [
        Arrival(
            (item.at_seconds - chosen[0].at_seconds) * stretch,
            min(PROMPT_TOKENS_MAX, max(4, round(item.prompt_tokens * prompts))),
            min(ANSWER_TOKENS_MAX, max(2, round(item.answer_tokens * answers))),
        )
        for item in chosen
    ]


class PromptMaker:
    """Makes prompts of a set number of tokens from the sample's words. Seeded."""

    def __init__(self, tokenizer_file: Path, seed: int = 1) -> None:
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(tokenizer_file))
        self._draw = random.Random(seed)
        texts = [row.messages[0].content for row in read_rows()]
        self._texts = [text for text in texts if text.isascii()]
        if not self._texts:
            raise ValueError(f"{SAMPLE} holds no text to make prompts from")
        self._shared = self.text(SHARED_TOKENS)

    def text(self, tokens: int) -> str:
        """Return words of about this many tokens."""
        ids: list[int] = []
        while len(ids) < tokens:
            words = " " + self._draw.choice(self._texts)
            ids += self._tokenizer.encode(words, add_special_tokens=False).ids
        return str(self._tokenizer.decode(ids[:tokens]))

    def closed_loop(self, requests: int, answer_tokens: int) -> list[Asked]:
        """Return requests that share their beginning."""
        return [Asked(self._shared + self.text(OWN_TOKENS), answer_tokens) for _ in range(requests)]

    def from_trace(self, arrivals: Sequence[Arrival]) -> list[Asked]:
        """Return the arrivals as requests; their prompts share nothing."""
        return [
            Asked(self.text(item.prompt_tokens), item.answer_tokens, item.at_seconds)
            for item in arrivals
        ]
