"""From a checked job to pieces of its answers: encode, wait for a slot, generate, count.

Every prompt enters through `Answering.prepare` and every piece leaves through `Answering.answer`:
one place for what comes in, one for what goes out. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from core.errors import InputError, UnavailableError
from serving.admission import Admission
from serving.api_errors import ApiError, deadline_passed, engine_failed
from serving.engines.engine import Engine, GenerationRequest, Piece, Prompt
from serving.predictor_metrics import PredictorMetrics
from serving.protocol import Job

INLINE_CHARACTERS_MAX = 4096
"""Longer prompts are encoded in a thread, so that other requests go on meanwhile."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job whose prompts are encoded and known to fit. Times from time.perf_counter()."""

    job: Job
    prompt_ids: tuple[tuple[int, ...], ...]
    arrived_seconds: float
    deadline_seconds: float

    @property
    def prompt_tokens(self) -> int:
        """Tokens of all prompts, each counted once."""
        return sum(map(len, self.prompt_ids))

    @property
    def ends_at(self) -> float:
        """Loop time at which the answer must be complete."""
        elapsed = time.perf_counter() - self.arrived_seconds
        return asyncio.get_running_loop().time() + self.deadline_seconds - elapsed


class Answering:
    """One engine behind one bounded queue."""

    def __init__(self, engine: Engine, admission: Admission, metrics: PredictorMetrics) -> None:
        self._engine = engine
        self._admission = admission
        self._metrics = metrics

    async def prepare(self, job: Job, arrived_seconds: float, deadline_seconds: float) -> Prepared:
        """Encode the prompts. Raises ApiError 400 for one that does not fit the context."""
        rows = [await self._encode(prompt) for prompt in job.prompts]
        for row in rows:
            self._check_length(len(row), job.chat)
        return Prepared(job, tuple(rows), arrived_seconds, deadline_seconds)

    async def answer(self, prepared: Prepared) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield (choice index, piece) as they come; closing it early frees every slot.

        Raises ApiError: 429 queue full, 503 engine failed, 504 too late.
        """
        requests = self._requests(prepared)
        first = True
        try:
            async with aclosing(self._pieces(requests)) as pieces:
                ends_at = prepared.ends_at
                while True:
                    async with asyncio.timeout_at(ends_at):
                        item = await anext(pieces, None)
                    if item is None:
                        return
                    if first:
                        first = False
                        seconds = item[1].first_token_seconds - prepared.arrived_seconds
                        self._metrics.first_token(seconds)
                    yield item
        except TimeoutError as error:
            raise deadline_passed(prepared.deadline_seconds) from error
        except UnavailableError as error:
            raise engine_failed(str(error)) from error

    async def _encode(self, prompt: Prompt) -> tuple[int, ...]:
        texts = (prompt,) if isinstance(prompt, str) else tuple(turn.content for turn in prompt)
        try:
            if sum(map(len, texts)) > INLINE_CHARACTERS_MAX:
                return await asyncio.to_thread(self._engine.encode, prompt)
            return self._engine.encode(prompt)
        except InputError as error:
            raise ApiError(f"{error}.") from error

    def _check_length(self, tokens: int, chat: bool) -> None:
        limit = self._engine.context_length
        if tokens >= limit:
            raise ApiError(
                f"The prompt has {tokens} tokens; this model's context holds {limit}, and the "
                "answer needs at least one of them. Shorten the prompt.",
                code="context_length_exceeded",
                param="messages" if chat else "prompt",
            )
        if tokens == 0:
            raise ApiError("The prompt has no tokens.", param="messages" if chat else "prompt")

    def _requests(self, prepared: Prepared) -> list[GenerationRequest]:
        """One request per choice. An answer never outgrows the context; choices differ by seed."""
        made = []
        sampling = prepared.job.sampling
        for ids in prepared.prompt_ids:
            tokens = min(sampling.max_tokens, self._engine.context_length - len(ids))
            for number in range(prepared.job.choices):
                seed = None if sampling.seed is None else sampling.seed + number
                drawn = replace(sampling, max_tokens=tokens, seed=seed)
                made.append(GenerationRequest(ids, drawn, prepared.job.stream))
        return made

    async def _pieces(
        self, requests: list[GenerationRequest]
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        async with self._admission.slots(len(requests)):
            if len(requests) == 1:
                async with aclosing(self._engine.generate(requests[0])) as pieces:
                    async for piece in pieces:
                        yield 0, piece
                return
            async with aclosing(self._side_by_side(requests)) as several:
                async for item in several:
                    yield item

    async def _side_by_side(
        self, requests: list[GenerationRequest]
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Merge several answers' pieces in order of arrival."""
        merged: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

        async def read(index: int) -> None:
            async with aclosing(self._engine.generate(requests[index])) as pieces:
                async for piece in pieces:
                    merged.put_nowait((index, piece))

        tasks = [asyncio.create_task(read(index)) for index in range(len(requests))]
        for task in tasks:
            task.add_done_callback(lambda _: merged.put_nowait((0, None)))
        try:
            ended = 0
            while ended < len(tasks):
                index, piece = await merged.get()
                if piece is not None:
                    yield index, piece
                    continue
                ended += 1
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
