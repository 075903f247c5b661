"""What every engine gives: encoded prompts and pieces of answer text; knows no HTTP, no queue."""

from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Literal, Protocol

from core.contracts import Message

FinishReason = Literal["stop", "length", "content_filter"]
"""Engines give the first two; the last one ends an answer that the safety chain held back."""
Prompt = tuple[Message, ...] | str
"""The turns of a conversation, or raw text to go on from."""

GREEDY_TEMPERATURE_MAX = 1e-3
"""At or below it an engine takes the likeliest token: dividing by less would overflow."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How one answer is drawn. `temperature` 0 is greedy; the same `seed` draws the same answer."""

    max_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken instead of a drawn one."""
        return self.temperature <= GREEDY_TEMPERATURE_MAX


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One answer to make. Without `stream` the whole answer comes as one piece."""

    prompt_ids: tuple[int, ...]
    sampling: Sampling
    stream: bool = False


@dataclass(frozen=True, slots=True)
class Piece:
    """Answer text that follows the earlier pieces; the last piece has a finish reason.

    `completion_tokens` counts from the answer's start, an end token included;
    `first_token_seconds` is time.perf_counter() when the first token was there.
    """

    text: str
    completion_tokens: int
    first_token_seconds: float
    finish_reason: FinishReason | None = None


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """How busy an engine is: answers in work, and the share 0..1 of its KV cache in use.

    An engine that is not `alive` never answers again: its process must be replaced.
    """

    answers: int
    cache_usage: float
    alive: bool = True


class Engine(Protocol):
    """One loaded model. `start` blocks until the model is warm; the rest is called on one loop."""

    name: str
    context_length: int

    def start(self) -> None:
        """Load and warm the model. Raises UnavailableError when it cannot be loaded."""

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the token ids of a prompt; special tokens' names in it are plain text.

        Raises InputError when the chat template refuses the conversation.
        """

    def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the answer's pieces; closing the iterator early frees what the answer held.

        Raises UnavailableError when the engine failed.
        """

    def load(self) -> EngineLoad:
        """Return how busy the engine is now."""

    def stop(self) -> None:
        """End the engine; answers in work fail with UnavailableError."""
