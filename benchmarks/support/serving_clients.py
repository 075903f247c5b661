"""Clients of the serving benchmark: closed loop and timed arrivals, each answer timed by token.

An HTTP client only; it checks that every answer has the tokens asked for, so that rows compare.
"""

import asyncio
import itertools
import math
import statistics
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import aiohttp
import msgspec
import uvloop

CHAT_PATH = "/openai/v1/chat/completions"
PIECE = b'"delta"'
TIMEOUT_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """One request: its prompt and the tokens of its answer, at `at_seconds` after the start."""

    prompt: str
    tokens: int
    at_seconds: float = 0.0

    def body(self, model: str, stream: bool) -> bytes:
        """Return the request's JSON."""
        turns = [{"role": "user", "content": self.prompt}]
        content: dict[str, Any] = {"model": model, "messages": turns, "temperature": 0}
        content["max_tokens"] = self.tokens
        if stream:
            content |= {"stream": True, "stream_options": {"include_usage": True}}
        return msgspec.json.encode(content)


@dataclass(frozen=True, slots=True)
class Answered:
    """One answer. Times in seconds; the last two only of a streamed answer, else NaN."""

    tokens: int
    ended_seconds: float
    latency_seconds: float
    first_token_seconds: float
    inter_token_seconds: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one load met, first answers of closed-loop clients left out, and the causes of fails."""

    answers: list[Answered]
    seconds: float
    failures: list[str]


class Server(Protocol):
    """A predictor: where it answers, and the token that it asks for."""

    url: str
    token: str


class Client:
    """Asks one predictor."""

    def __init__(self, server: Server, model: str, stream: bool) -> None:
        self._url, self._model, self._stream = server.url + CHAT_PATH, model, stream
        self._headers = {"Authorization": f"Bearer {server.token}"}
        self.answers: list[Answered] = []
        self.failures: list[str] = []

    async def ask(self, session: aiohttp.ClientSession, asked: Asked) -> None:
        """Send one request once and note its answer."""
        began = time.perf_counter()
        body = asked.body(self._model, self._stream)
        try:
            async with session.post(self._url, data=body, headers=self._headers) as answer:
                if self._stream:
                    first, last, tokens = await _read_stream(answer)
                else:
                    content = await answer.json()
                    first = last = math.nan
                    tokens = content["usage"]["completion_tokens"]
        except (aiohttp.ClientError, TimeoutError, OSError, KeyError, ValueError) as error:
            self._failed(f"{type(error).__name__}: {error}"[:200])
            return
        ended = time.perf_counter()
        if tokens != asked.tokens:
            self._failed(f"{tokens} tokens instead of {asked.tokens}")
            return
        gap = (last - first) / max(1, tokens - 1)
        self.answers.append(Answered(tokens, ended, ended - began, first - began, gap))

    def _failed(self, cause: str) -> None:
        self.failures.append(cause)
        print(f"{self._url}: {cause}", file=sys.stderr)


async def _read_stream(answer: aiohttp.ClientResponse) -> tuple[float, float, int]:
    """Return when the first and the last piece came, and the tokens that the end counts."""
    answer.raise_for_status()
    first = last = math.nan
    tail = b""
    async for chunk in answer.content.iter_any():
        if PIECE in chunk:
            last = time.perf_counter()
            first = last if math.isnan(first) else first
        tail = (tail + chunk)[-4096:]
    for event in tail.split(b"\n\n"):
        if b'"usage":{' in event:
            return first, last, int(msgspec.json.decode(event[6:])["usage"]["completion_tokens"])
    raise ValueError("the stream ended without its counts")


def closed_loop(
    server: Server, model: str, asked: Sequence[Asked], clients: int, rounds: int, stream: bool
) -> Outcome:
    """Each of `clients` asks `rounds` times without a pause, after one answer that is not counted.

    The clock runs from the moment when the last client has its first answer to the last answer.
    """
    client = Client(server, model, stream)
    prompts = itertools.cycle(asked)
    warm: list[float] = []

    async def talk(session: aiohttp.ClientSession, own: Iterator[Asked]) -> None:
        await client.ask(session, next(own))
        warm.append(time.perf_counter())
        for _ in range(rounds):
            await client.ask(session, next(own))

    ended = _together([(lambda session: talk(session, prompts)) for _ in range(clients)])
    began = max(warm)
    # Answers that began before all clients were there met less company: they do not count.
    steady = [
        item for item in client.answers if item.ended_seconds - item.latency_seconds >= min(warm)
    ]
    counted = [item for item in steady if item.ended_seconds > began]
    return Outcome(counted, ended - began, client.failures)


def open_loop(server: Server, model: str, asked: Sequence[Asked], stream: bool) -> Outcome:
    """Send each request at its time, whatever became of the earlier ones."""
    client = Client(server, model, stream)
    start = time.perf_counter()

    def sender(item: Asked) -> Any:
        async def send(session: aiohttp.ClientSession) -> None:
            await asyncio.sleep(start + item.at_seconds - time.perf_counter())
            await client.ask(session, item)

        return send

    ended = _together([sender(item) for item in asked])
    return Outcome(client.answers, ended - start, client.failures)


def _together(talks: Sequence[Any]) -> float:
    """Run all at once on one event loop; return when the last one ended."""

    async def run() -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        headers = {"Content-Type": "application/json"}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=headers
        ) as session:
            waits: list[Awaitable[None]] = [talk(session) for talk in talks]
            await asyncio.gather(*waits)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return time.perf_counter()


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share does not exceed; NaN of nothing."""
    found = sorted(values)
    return found[max(0, math.ceil(share * len(found)) - 1)] if found else math.nan


def figures(outcome: Outcome) -> dict[str, float]:
    """Return latencies in milliseconds, tokens per second and counts of one load."""
    answers = outcome.answers
    found = {"answers": float(len(answers)), "failures": float(len(outcome.failures))}
    found["seconds"] = outcome.seconds
    found["tokens_per_second"] = sum(item.tokens for item in answers) / outcome.seconds
    columns = {
        "latency": [item.latency_seconds for item in answers],
        "first_token": [item.first_token_seconds for item in answers],
        "inter_token": [item.inter_token_seconds for item in answers],
    }
    for name, values in columns.items():
        if not values or any(map(math.isnan, values)):
            continue
        for share in (50, 95, 99):
            found[f"{name}_ms_p{share}"] = 1000 * quantile(values, share / 100)
    return found


def medians(repeats: Sequence[dict[str, float]]) -> dict[str, float]:
    """Return each figure's median over the repeats; of failures the sum."""
    names = [name for name in repeats[0] if all(name in repeat for repeat in repeats)]
    found = {name: statistics.median(repeat[name] for repeat in repeats) for name in names}
    found["failures"] = sum(repeat["failures"] for repeat in repeats)
    return {name: round(value, 3) for name, value in found.items()}
