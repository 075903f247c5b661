"""The CPU engine: OpenVINO GenAI's continuous batching on a bundle's compiled graph.

Of the pipeline's calls `step` keeps Python's lock, `generate` gives it up (openvino-genai 2026.4).
So each busy period is one `generate` in a thread of its own, of an answer that nobody reads: it
steps until every answer that is added meanwhile has ended, and requests are read, checked and
written beside it. Answers are added once it has stepped: at its start it takes all that waits for
its own.
"""

import asyncio
import contextlib
import functools
import itertools
import logging
import os
import random
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.contracts import Message
from core.errors import InputError, UnavailableError
from core.manifests import BundleManifest
from serving.engines.engine import (
    EngineLoad,
    FinishReason,
    GenerationRequest,
    Piece,
    Prompt,
    Sampling,
)
from serving.engines.openvino_limits import SMALL, cache_blocks, is_small, step_limits
from serving.engines.ticket import Ticket
from serving.engines.tokens import BundleTokenizer
from serving.predictor_config import PredictorConfig

log = logging.getLogger("serin.openvino")

WARM_UP_TOKENS = 4
WARM_UP_PROMPT_TOKENS = 64
WARM_UP_ROWS = 16
SEED_BITS = 32
POLL_SECONDS = 0.001
"""Between two looks at what the steps made: a step of a small model takes about as long."""
CARRIER_IDS = (0,)
CARRIER_TOKENS = 64
"""Of the answer that nobody reads; it ends as soon as others were added."""
FINISH_REASONS: dict[str, FinishReason] = {"STOP": "stop", "LENGTH": "length"}
DEFAULT_INFERENCE_PRECISION = "f32"
"""Answers then agree with the reference on every CPU; a bundle may ask for bf16 by its settings."""


@dataclass(slots=True)
class _Work:
    ticket: Ticket
    handle: Any


class OpenVinoEngine:
    """Batches all answers in work into each step of one pipeline."""

    name = "openvino"

    def __init__(self, bundle: Path, manifest: BundleManifest, config: PredictorConfig) -> None:
        self.context_length = manifest.context_length
        self._folder = bundle / "openvino"
        self._manifest = manifest
        self._config = config
        self._limits = step_limits(self._folder, manifest, config)
        self._tokenizer = BundleTokenizer(bundle / "weights")
        self._arrived: list[Ticket] = []
        self._active: dict[int, _Work] = {}
        self._numbers = itertools.count(1)
        self._cache_usage = 0.0
        self._failure: UnavailableError | None = None
        self._delivering: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "openvino")

    def start(self) -> None:
        """Load the graph, make a few tokens so that the first request pays nothing."""
        # Read when the library is loaded; its own number would keep far more than `kernels`.
        os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(self._limits.kernels))
        import openvino_genai

        self._genai = openvino_genai
        self._carrier = _carrier(openvino_genai)
        try:
            self._pipeline = openvino_genai.ContinuousBatchingPipeline(
                str(self._folder), self._scheduler(), "CPU", self._properties()
            )
            self._defaults = self._pipeline.get_config()
            self._warm_up()
        except RuntimeError as error:
            raise UnavailableError(
                f"OpenVINO cannot load {self._folder}: {_last_line(error)}; build the bundle again"
            ) from error

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt."""
        return self._tokenizer.encode(prompt)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of one answer; leaving early cancels it at the next step."""
        if self._failure is not None:
            raise self._failure
        ticket = Ticket(request)
        self._arrived.append(ticket)
        if self._delivering is None or self._delivering.done():
            self._delivering = asyncio.create_task(self._run())
        try:
            async for piece in ticket.pieces():
                yield piece
        finally:
            ticket.withdrawn = True

    def load(self) -> EngineLoad:
        """Return the answers in work and the share of the KV cache in use."""
        answers = len(self._active) + len(self._arrived)
        return EngineLoad(answers, self._cache_usage, self._failure is None)

    def stop(self) -> None:
        """Fail what is in work."""
        self._failure = self._failure or UnavailableError("the engine was stopped")
        self._fail_all(self._failure)
        self._thread.shutdown()

    def _scheduler(self) -> Any:
        settings = self._manifest.settings
        scheduler = self._genai.SchedulerConfig()
        scheduler.max_num_seqs = self._config.concurrency_for(self._manifest) + 1
        scheduler.max_num_batched_tokens = self._limits.tokens
        scheduler.enable_prefix_caching = bool(settings.get("prefix_caching", True))
        scheduler.dynamic_split_fuse = bool(settings.get("dynamic_split_fuse", True))
        scheduler.num_kv_blocks = cache_blocks(self._folder, self._manifest, self._config)
        return scheduler

    def _properties(self) -> dict[str, str | int]:
        settings = self._manifest.settings
        precision = settings.get("inference_precision") or DEFAULT_INFERENCE_PRECISION
        found: dict[str, str | int] = {
            "INFERENCE_PRECISION_HINT": str(precision),
            "CPU_RUNTIME_CACHE_CAPACITY": self._limits.kernels,
        }
        if cache := settings.get("kv_cache_precision"):
            found["KV_CACHE_PRECISION"] = str(cache)
        if self._config.threads:
            found["INFERENCE_NUM_THREADS"] = self._config.threads
        return found

    def _warm_up(self) -> None:
        """Answer alone and in company: each shape's kernels are compiled at its first use.

        A small model then meets every number of tokens that a step can have, for `warm_up_seconds`
        at most: the first minutes of a new version are then as fast as those of the version that
        it is compared with, and its memory no longer grows.
        """
        with contextlib.suppress(InputError):  # a template may want more than one turn
            self._tokenizer.decode([list(self.encode((Message("user", "warm up"),)))])
        length = min(WARM_UP_PROMPT_TOKENS, self.context_length - WARM_UP_TOKENS)
        company = self._config.concurrency_for(self._manifest)
        until = time.monotonic() + self._config.warm_up_seconds
        for rows in (1, min(WARM_UP_ROWS, company)):
            if not self._answers(rows, length, WARM_UP_TOKENS, None):
                raise UnavailableError(
                    f"{self._folder} gave no token at warm-up; raise cache_gigabytes or build it "
                    "again"
                )
        if not is_small(self._folder) or time.monotonic() >= until:
            return
        self._answers(company, 1, self.context_length - 1, until)
        for length in range(1, min(SMALL.tokens, self._limits.tokens, self.context_length - 1) + 1):
            if time.monotonic() < until:
                self._answers(1, length, 1, until)

    def _answers(self, rows: int, length: int, tokens_max: int, until: float | None) -> bool:
        """Make answers of 1, 2, 3, ... tokens, all at once; return whether every one had some."""
        handles = []
        for row in range(rows):
            start = (*divmod(length, WARM_UP_ROWS), row % WARM_UP_ROWS)  # no two share a prefix
            tokens = tokens_max if until is None else min(row + 1, tokens_max)
            handles.append(self._add(row, (start + (0,) * length)[:length], Sampling(tokens)))
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
            if until is not None and time.monotonic() > until:
                for handle in handles:
                    handle.cancel()
        return all(handle.can_read() for handle in handles)

    def _add(self, number: int, ids: tuple[int, ...], sampling: Sampling) -> Any:
        return self._pipeline.add_request(number, *self._request(ids, sampling))

    def _request(self, ids: tuple[int, ...], sampling: Sampling) -> tuple[Any, Any]:
        import numpy
        import openvino

        config = self._genai.GenerationConfig()
        config.eos_token_id = self._defaults.eos_token_id
        config.stop_token_ids = self._defaults.stop_token_ids
        config.max_new_tokens = sampling.max_tokens
        config.do_sample = not sampling.greedy
        if config.do_sample:
            config.temperature = sampling.temperature
            config.top_p = sampling.top_p
            seed = random.getrandbits(SEED_BITS) if sampling.seed is None else sampling.seed
            config.rng_seed = seed % (1 << SEED_BITS)
        return openvino.Tensor(numpy.array([ids], dtype=numpy.int64)), config

    async def _run(self) -> None:
        """Hand over what the steps make, until nothing is in work any more."""
        loop = asyncio.get_running_loop()
        try:
            while self._arrived or self._active:
                stepped, added = asyncio.Event(), threading.Event()
                tell = functools.partial(loop.call_soon_threadsafe, stepped.set)
                steps = loop.run_in_executor(self._thread, self._steps, tell, added)
                steps.add_done_callback(functools.partial(_set, stepped))
                await stepped.wait()
                while not steps.done():
                    self._admit()
                    added.set()
                    self._deliver()
                    await asyncio.sleep(POLL_SECONDS)
                steps.result()
                self._deliver()
                self._take_back()
        except (RuntimeError, MemoryError, ValueError) as error:
            log.error("the pipeline failed: %s", _last_line(error))
            self._failure = UnavailableError("the engine failed; the predictor must be restarted")
            self._fail_all(self._failure)

    def _steps(self, tell: Callable[[], object], added: threading.Event) -> None:
        """Step, without Python's lock, until all that was added has ended (own thread)."""
        tensor, config = self._request(CARRIER_IDS, Sampling(CARRIER_TOKENS))
        config.ignore_eos, config.stop_token_ids = True, set()
        self._pipeline.generate([tensor], [config], self._carrier(tell, added))

    def _take_back(self) -> None:
        """Let what came too late for the last step, and so has no token yet, arrive again."""
        left, self._active = list(self._active.values()), {}
        for work in left:
            work.handle.cancel()
            if work.ticket.begun:  # ended without a reason: its next token had no room
                work.ticket.put(_too_large())
        while self._pipeline.has_non_finished_requests():
            self._pipeline.step()
        self._arrived = [work.ticket for work in left if not work.ticket.begun] + self._arrived

    def _admit(self) -> None:
        """Add what arrived; cancel what was withdrawn (the next step frees its cache)."""
        arrived, self._arrived = self._arrived, []
        for ticket in arrived:
            if not ticket.withdrawn:
                number = next(self._numbers)
                handle = self._add(number, ticket.request.prompt_ids, ticket.request.sampling)
                self._active[number] = _Work(ticket, handle)
        for number, work in list(self._active.items()):
            if work.ticket.withdrawn:
                work.handle.cancel()
                del self._active[number]

    def _deliver(self) -> None:
        """Read what the step made; decode all windows in one batch; hand the pieces over."""
        rows: list[list[int]] = []
        read: list[tuple[int, FinishReason | None, int]] = []
        for number, work in list(self._active.items()):
            moved, reason = _read(work)
            if not moved and work.handle.get_status() == self._genai.GenerationStatus.IGNORED:
                work.ticket.put(_too_large())
                del self._active[number]
            if moved:
                windows = work.ticket.windows(reason is not None)
                rows.extend(windows)
                read.append((number, reason, len(windows)))
        texts = iter(self._tokenizer.decode(rows) if rows else [])
        for number, reason, count in read:
            work = self._active[number]
            piece = work.ticket.piece(list(itertools.islice(texts, count)), reason)
            if piece is None:
                continue
            work.ticket.put(piece)
            if piece.finish_reason is not None:
                del self._active[number]
                if reason is None:  # a stop string: the pipeline itself would go on
                    work.handle.cancel()
        self._cache_usage = self._pipeline.get_metrics().cache_usage / 100.0

    def _fail_all(self, failure: UnavailableError) -> None:
        tickets = [work.ticket for work in self._active.values()] + self._arrived
        for work in self._active.values():
            work.handle.cancel()
        self._active, self._arrived = {}, []
        for ticket in tickets:
            ticket.put(failure)


def _set(event: asyncio.Event, ended: object) -> None:
    event.set()


def _carrier(genai: Any) -> Any:
    """Return the streamer of the answer that nobody reads: the library is loaded by a start."""

    class Carrier(genai.StreamerBase):
        """Tells of its first token, and ends its answer when others were added."""

        def __init__(self, tell: Callable[[], object], added: threading.Event) -> None:
            super().__init__()
            self._tell, self._added, self._told = tell, added, False

        def write(self, token: object) -> Any:
            if not self._told:
                self._told = True
                self._tell()
            status = genai.StreamingStatus
            return status.STOP if self._added.is_set() else status.RUNNING

        def end(self) -> None:
            """Nobody reads it."""

    return Carrier


def _read(work: _Work) -> tuple[bool, FinishReason | None]:
    """Move a handle's new ids into its ticket; return whether it moved, and why it ended."""
    moved, reason = False, None
    while work.handle.can_read():
        for output in work.handle.read().values():
            work.ticket.add(output.generated_ids)
            reason = FINISH_REASONS.get(output.finish_reason.name)
            moved = True
    return moved, reason


def _too_large() -> UnavailableError:
    return UnavailableError("the prompt does not fit the KV cache; raise cache_gigabytes")


def _last_line(error: BaseException) -> str:
    """Return the telling line of OpenVINO's several lines: the last one that says something."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
