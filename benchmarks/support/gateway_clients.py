"""Clients of the gateway benchmark: timed arrivals, closed loops and streams, on one event loop.

Each answer and each chunk is timed here; what a target's processes cost is read elsewhere.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import msgspec
import uvloop

from benchmarks.support.gateway_upstream import SENT
from benchmarks.support.serving_predictors import MODEL

TIMEOUT_SECONDS = 120.0
SENT_BYTES = SENT.encode()
Work = Callable[[aiohttp.ClientSession], Awaitable[None]]


@dataclass(slots=True)
class Seen:
    """What clients saw, times in seconds: of whole answers, and of each chunk on its way."""

    latencies: list[float] = field(default_factory=list)
    chunks: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    seconds: float = 0.0


def body(number: int, stream: bool = False) -> bytes:
    """Return a request that no other request equals, so that nothing is answered from a cache."""
    turns = [
        {"role": "system", "content": "You are the assistant of a shop."},
        {"role": "user", "content": f"Where is my order {number}? It was sent on Tuesday."},
    ]
    content: dict[str, Any] = {"model": MODEL, "messages": turns, "max_tokens": 64}
    return msgspec.json.encode({**content, "stream": True} if stream else content)


def arrive(url: str, headers: dict[str, str], per_second: float, seconds: float) -> Seen:
    """Send a request each 1/per_second, whatever became of the earlier ones."""
    seen = Seen()

    async def work(session: aiohttp.ClientSession) -> None:
        start = time.perf_counter()

        async def one(number: int) -> None:
            await asyncio.sleep(start + number / per_second - time.perf_counter())
            await _ask(session, url, body(number), seen)

        await asyncio.gather(*(one(number) for number in range(round(per_second * seconds))))

    return _run(work, headers, seen)


def closed(url: str, headers: dict[str, str], clients: int, requests: int) -> Seen:
    """Keep `clients` asking without a pause until there were `requests` answers."""
    seen = Seen()

    async def work(session: aiohttp.ClientSession) -> None:
        numbers = iter(range(requests))

        async def talk() -> None:
            for number in numbers:
                await _ask(session, url, body(number), seen)

        await asyncio.gather(*(talk() for _ in range(clients)))

    return _run(work, headers, seen)


def stream(url: str, headers: dict[str, str], clients: int, streams: int) -> Seen:
    """Read `streams` streams of `clients` at a time; note how long each chunk was on its way."""
    seen = Seen()

    async def work(session: aiohttp.ClientSession) -> None:
        numbers = iter(range(streams))

        async def talk() -> None:
            for number in numbers:
                await _read(session, url, body(number, stream=True), seen)

        await asyncio.gather(*(talk() for _ in range(clients)))

    return _run(work, headers, seen)


async def _ask(session: aiohttp.ClientSession, url: str, content: bytes, seen: Seen) -> None:
    began = time.perf_counter()
    try:
        async with session.post(url, data=content) as answer:
            await answer.read()
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        _failed(seen, error)
        return
    seen.latencies.append(time.perf_counter() - began)


async def _read(session: aiohttp.ClientSession, url: str, content: bytes, seen: Seen) -> None:
    """Compare the time that stands in each chunk with the time at which it came."""
    try:
        async with session.post(url, data=content) as answer:
            if answer.status != 200:
                raise ValueError(f"status {answer.status}")
            async for line in answer.content:
                now = time.monotonic()
                _, found, rest = line.partition(SENT_BYTES)
                if found:
                    seen.chunks.append(now - float(rest.split(b" ", 1)[0]))
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        _failed(seen, error)


def _failed(seen: Seen, error: Exception) -> None:
    seen.failures.append(f"{type(error).__name__}: {error}"[:200])


def _run(work: Work, headers: dict[str, str], seen: Seen) -> Seen:
    async def main() -> None:
        timeout = aiohttp.ClientTimeout(total=TIMEOUT_SECONDS)
        connector = aiohttp.TCPConnector(limit=0)
        kind = {"content-type": "application/json", **headers}
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=kind, trust_env=False
        ) as session:
            await work(session)

    began = time.perf_counter()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    seen.seconds = time.perf_counter() - began
    return seen
