"""From a checked job to pieces of its answers: encode, screen, wait for a slot, generate, guard.

Every prompt enters through `Answering.prepare` and every piece leaves through `Answering.answer`:
one place for what comes in, one for what goes out; both pass the safety chain. Knows no HTTP.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from core.errors import InputError, UnavailableError
from serving import request_traces
from serving.admission import Admission
from serving.api_errors import ApiError, blocked, deadline_passed, engine_failed
from serving.engines.engine import Engine, GenerationRequest, Piece, Prompt
from serving.predictor_metrics import PredictorMetrics
from serving.protocol import Job
from serving.safety.gate import ChoiceGuard, Gate, Screened, Witness

INLINE_CHARACTERS_MAX = 4096
"""Longer prompts are encoded in a thread, so that other requests go on meanwhile."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A job whose prompts passed the safety chain, are encoded and known to fit.

    Times from time.perf_counter().
    """

    job: Job
    screened: Screened
    prompt_ids: tuple[tuple[int, ...], ...]
    witness: Witness
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


@dataclass(slots=True)
class Times:
    """When parts of an answer were made, of time.perf_counter(); 0 before."""

    began: float = 0.0
    first_token: float = 0.0
    last_piece: float = 0.0
    checked: float = 0.0
    checking_seconds: float = 0.0

    def add(self, piece: Piece, came: float, checked: float) -> None:
        """Note a piece that came from the engine, and that it was checked."""
        self.first_token = self.first_token or piece.first_token_seconds
        self.last_piece, self.checked = came, checked
        self.checking_seconds += checked - came

    def trace(self) -> None:
        """Tell the request's trace, once the answer is over; a stream was checked piece by piece.

        What the engine did before its first token is one stage: its own wait and the prompt.
        """
        if not self.began:
            return
        request_traces.stage("prefill", self.began, self.first_token or None)
        if self.first_token:
            request_traces.stage("decode", self.first_token, self.last_piece)
            began = self.checked - self.checking_seconds
            request_traces.stage("safety output", began, self.checked)


class Answering:
    """One engine behind one bounded queue and one gate."""

    def __init__(
        self, engine: Engine, admission: Admission, metrics: PredictorMetrics, gate: Gate
    ) -> None:
        self._engine = engine
        self._gate = gate
        self._admission = admission
        self._metrics = metrics

    async def prepare(
        self, job: Job, witness: Witness, arrived_seconds: float, deadline_seconds: float
    ) -> Prepared:
        """Encode and screen the prompts; `witness` is told of all that is decided.

        Raises ApiError 400 for one that does not fit the context, or that the policy blocks.
        """
        began = time.perf_counter()
        rows = await self._rows(job)  # first, so that the chain reads no more than the model could
        checking = time.perf_counter()
        request_traces.stage("tokenize", began, checking)
        screened = await self._gate.screen(job.prompts, witness)
        request_traces.stage("safety input", checking, serin__policy=screened.policy_hash)
        if screened.blocked is not None:
            raise blocked(screened.blocked.category, screened.policy_hash, job.chat)
        if screened.prompts != job.prompts:
            job = replace(job, prompts=screened.prompts)
            rows = await self._rows(job)
        return Prepared(job, screened, rows, witness, arrived_seconds, deadline_seconds)

    async def answer(self, prepared: Prepared) -> AsyncGenerator[tuple[int, Piece], None]:
        """Yield (choice index, piece) once they are checked; closing it early frees every slot.

        Raises ApiError: 429 queue full, 503 engine failed, 504 too late.
        """
        requests = self._requests(prepared)
        choices, screened, witness = prepared.job.choices, prepared.screened, prepared.witness
        guards = [
            self._gate.guard(screened, at // choices, at, witness) for at in range(len(requests))
        ]
        stopped: set[int] = set()
        times = Times()
        try:
            async with aclosing(self._pieces(requests, stopped, times)) as pieces:
                ends_at = prepared.ends_at
                while len(stopped) < len(requests):
                    async with asyncio.timeout_at(ends_at):
                        item = await anext(pieces, None)
                        if item is None:
                            return
                        index, piece = item
                        came = time.perf_counter()
                        passed = await _guarded(guards[index], piece)
                    if not times.first_token:
                        seconds = piece.first_token_seconds - prepared.arrived_seconds
                        self._metrics.first_token(seconds)
                    times.add(piece, came, time.perf_counter())
                    if piece.finish_reason is not None and piece.completion_tokens > 1:
                        seconds = came - piece.first_token_seconds
                        self._metrics.between_tokens(seconds / (piece.completion_tokens - 1))
                    if index in stopped:
                        continue
                    if passed.finish_reason == "content_filter":
                        stopped.add(index)
                    if passed.text or passed.finish_reason is not None:
                        yield index, passed
        except TimeoutError as error:
            raise deadline_passed(prepared.deadline_seconds) from error
        except UnavailableError as error:
            raise engine_failed(str(error)) from error
        finally:
            times.trace()

    async def _rows(self, job: Job) -> tuple[tuple[int, ...], ...]:
        rows = [await self._encode(prompt) for prompt in job.prompts]
        for row in rows:
            self._check_length(len(row), job.chat)
        return tuple(rows)

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
        self, requests: list[GenerationRequest], stopped: set[int], times: "Times"
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        asked = time.perf_counter()
        async with self._admission.slots(len(requests)):
            times.began = time.perf_counter()
            self._metrics.began(times.began - asked, self._engine.load().answers + len(requests))
            request_traces.stage("queue", asked, times.began)
            if len(requests) == 1:
                async with aclosing(self._engine.generate(requests[0])) as pieces:
                    async for piece in pieces:
                        yield 0, piece
                return
            async with aclosing(self._side_by_side(requests, stopped)) as several:
                async for item in several:
                    yield item

    async def _side_by_side(
        self, requests: list[GenerationRequest], stopped: set[int]
    ) -> AsyncGenerator[tuple[int, Piece], None]:
        """Merge several answers' pieces in order of arrival; a stopped one is generated no more."""
        merged: asyncio.Queue[tuple[int, Piece | None]] = asyncio.Queue()

        async def read(index: int) -> None:
            async with aclosing(self._engine.generate(requests[index])) as pieces:
                async for piece in pieces:
                    if index in stopped:
                        return
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


async def _guarded(guard: ChoiceGuard, piece: Piece) -> Piece:
    """Return what may leave of a piece; a blocked answer ends with nothing more of it."""
    release = await guard.feed(piece.text, piece.finish_reason is not None)
    if release.blocked is not None:
        return replace(piece, text="", finish_reason="content_filter")
    return replace(piece, text=release.text)
