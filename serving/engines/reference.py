"""The baseline that other engines must agree with: transformers' generate, one answer at a time."""

import logging
import queue
import sys
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from core.errors import UnavailableError
from core.manifests import BundleManifest
from serving.engines.engine import (
    EngineLoad,
    FinishReason,
    GenerationRequest,
    Piece,
    Prompt,
    Sampling,
)
from serving.engines.ticket import Ticket
from serving.engines.tokens import BundleTokenizer
from serving.predictor_config import PredictorConfig

log = logging.getLogger("serin.reference")

WARM_UP_TOKENS = 2
DEFAULT_THREADS = 1
SEED_BITS = 32
STOP_WAIT_SECONDS = 5.0


class ReferenceEngine:
    """Answers from a bundle's merged weights in their own precision; made for truth, not speed."""

    name = "reference"

    def __init__(self, bundle: Path, manifest: BundleManifest, config: PredictorConfig) -> None:
        self.context_length = manifest.context_length
        self._folder = bundle / "weights"
        self._config = config
        self._tokenizer = BundleTokenizer(self._folder)
        self._waiting: queue.SimpleQueue[Ticket | None] = queue.SimpleQueue()
        self._answers = 0
        self._failure: UnavailableError | None = None
        self._thread = threading.Thread(target=self._run, name="reference", daemon=True)

    def start(self) -> None:
        """Load the weights from the bundle's folder alone, make two tokens, start the thread."""
        # Assisted decoding alone wants sklearn, whose import is 40 % of the time to ready.
        sys.modules.setdefault("sklearn", None)  # type: ignore[arg-type]
        import torch
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as transformers_logging

        transformers_logging.set_verbosity_error()
        transformers_logging.disable_progress_bar()
        torch.set_num_threads(self._config.threads or DEFAULT_THREADS)
        try:
            self._model = AutoModelForCausalLM.from_pretrained(
                self._folder, local_files_only=True, trust_remote_code=False, use_safetensors=True
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            raise UnavailableError(
                f"transformers cannot load {self._folder}: {error}; build the bundle again"
            ) from error
        self._ends = _end_ids(self._model.generation_config.eos_token_id)
        self._generate(self.encode("warm up") or (0,), Sampling(WARM_UP_TOKENS), None)
        self._thread.start()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt."""
        return self._tokenizer.encode(prompt)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of one answer; leaving early ends it at its next token."""
        if self._failure is not None:
            raise self._failure
        ticket = Ticket(request)
        self._answers += 1
        self._waiting.put(ticket)
        try:
            async for piece in ticket.pieces():
                yield piece
        finally:
            ticket.withdrawn = True
            self._answers -= 1

    def load(self) -> EngineLoad:
        """Return the answers in work or waiting for the one before."""
        return EngineLoad(self._answers, 0.0, self._thread.is_alive())

    def stop(self) -> None:
        """End the thread after the answer in work."""
        self._failure = self._failure or UnavailableError("the engine was stopped")
        self._waiting.put(None)
        if self._thread.is_alive():
            self._thread.join(STOP_WAIT_SECONDS)

    def _run(self) -> None:
        while (ticket := self._waiting.get()) is not None:
            if ticket.withdrawn:
                continue
            try:
                self._answer(ticket)
            except (RuntimeError, ValueError, IndexError, MemoryError) as error:
                log.error("an answer failed: %s", error)
                failure = UnavailableError("the engine failed on this request")
                ticket.loop.call_soon_threadsafe(ticket.put, failure)

    def _answer(self, ticket: Ticket) -> None:
        stream = _TokenStream(self, ticket)
        self._generate(ticket.request.prompt_ids, ticket.request.sampling, stream)

    def _generate(
        self, ids: tuple[int, ...], sampling: Sampling, stream: "_TokenStream | None"
    ) -> None:
        import torch
        from transformers import GenerationConfig

        drawn: dict[str, Any] = {}
        if not sampling.greedy:
            drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0}
            if sampling.seed is None:
                torch.seed()
            else:
                torch.manual_seed(sampling.seed % (1 << SEED_BITS))
        config = GenerationConfig(
            max_new_tokens=sampling.max_tokens,
            do_sample=not sampling.greedy,
            eos_token_id=self._ends,
            pad_token_id=self._ends[0],
            **drawn,
        )
        prompt = torch.tensor([ids])
        with torch.inference_mode():
            self._model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                generation_config=config,
                streamer=stream,
                stopping_criteria=[stream.ended] if stream else None,
            )

    def decode(self, rows: list[list[int]]) -> list[str]:
        """Return the text of each row of ids, special tokens left out."""
        return self._tokenizer.decode(rows)

    @property
    def ends(self) -> tuple[int, ...]:
        """Ids of the tokens that end an answer."""
        return tuple(self._ends)


class _TokenStream:
    """What generate calls for each token: feeds the ticket, and says when to stop."""

    def __init__(self, engine: ReferenceEngine, ticket: Ticket) -> None:
        self._engine = engine
        self._ticket = ticket
        self._made = -1  # generate first puts the prompt itself
        self._done = False

    def put(self, value: Any) -> None:
        """Take the prompt (first call), then one new token id at a time."""
        self._made += 1
        if self._made == 0 or self._done:
            return
        token = int(value.reshape(-1)[0])
        reason: FinishReason | None = None
        if token in self._engine.ends:
            reason = "stop"
        elif self._made >= self._ticket.request.sampling.max_tokens:
            reason = "length"
        self._ticket.add([token])
        texts = (
            self._engine.decode(rows) if (rows := self._ticket.windows(reason is not None)) else []
        )
        piece = self._ticket.piece(texts, reason)
        if piece is not None:
            self._done = piece.finish_reason is not None
            self._ticket.loop.call_soon_threadsafe(self._ticket.put, piece)

    def end(self) -> None:
        """Required of a streamer; the last token has already ended the answer."""

    def ended(self, ids: Any, scores: Any, **_: Any) -> Any:
        """Tell generate to stop: a stop string was reached or the client went away."""
        import torch

        stop = self._done or self._ticket.withdrawn
        return torch.full((ids.shape[0],), stop, dtype=torch.bool)


def _end_ids(configured: int | list[int] | None) -> list[int]:
    if configured is None:
        raise UnavailableError("the bundle's model names no end token; build the bundle again")
    return [configured] if isinstance(configured, int) else list(configured)
