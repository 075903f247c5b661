"""A load generator: replays prompts at a steady rate against one address and counts every answer.

An HTTP client only, open loop (slow answers do not slow the arrivals), one attempt per request.
`python -m observability.load --url URL --prompts FILE --rps 10 --seconds 60 --json`
"""

import argparse
import asyncio
import itertools
import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import aiohttp
import msgspec
import uvloop
from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Message
from core.errors import InputError
from observability.tally import FailedRequest, LoadReport, Tally

CHAT_PATH = "/openai/v1/chat/completions"
HELD_BACK = b'"code":"content_filter"'
Prompt = str | Sequence[Message]


class LoadConfig(BaseModel):
    """Where the load goes and how much of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field(default="", description="address of the gateway, http://host:port")
    model: str = Field(default="assistant", description="model to ask, the service's name")
    rps: float = Field(default=5.0, gt=0, le=5000, description="requests per second, on average")
    seconds: float | None = Field(
        default=None, gt=0, description="how long to send; without it until stopped"
    )
    arrivals: Literal["poisson", "uniform"] = Field(
        default="poisson", description="random or even distances between requests"
    )
    stream_share: float = Field(
        default=0.0, ge=0, le=1, description="share of requests that ask for a stream"
    )
    max_tokens: int = Field(default=32, ge=1, description="longest answer, in tokens")
    timeout_seconds: float = Field(
        default=90.0, gt=0, description="time for one answer; a failed request after it"
    )
    in_flight_max: int = Field(
        default=512, ge=1, description="unanswered requests; further ones are skipped and counted"
    )
    reuse_connections: bool = Field(
        default=True, description="keep connections open; one per request otherwise"
    )
    cached: bool = Field(
        default=False, description="take answers from the gateway's cache; else each one is made"
    )
    headers: dict[str, str] = Field(
        default={}, description="sent with each request, an API key for example"
    )
    failures_max: int = Field(default=100, ge=0, description="failed requests listed one by one")
    seed: int = Field(default=1, description="seed of arrivals and choices")


@dataclass(frozen=True, slots=True)
class TimedPrompt:
    """One request of a trace: sent `at_seconds` after the start, with its own longest answer."""

    prompt: Prompt
    max_tokens: int
    at_seconds: float


class LoadGenerator:
    """Sends in a thread of its own between `start` and `stop`."""

    def __init__(
        self, config: LoadConfig, prompts: Sequence[Prompt], trace: Sequence[TimedPrompt] = ()
    ) -> None:
        """With a trace, its requests are sent once, at its times, in place of the prompts.

        Raises InputError without prompts or address.
        """
        if not (prompts or trace) or not config.url.startswith("http"):
            raise InputError("a load needs at least one prompt and the address of a gateway")
        self._config = config
        self._bodies = [
            *(_body(config, item.prompt, item.max_tokens) for item in trace),
            *(_body(config, prompt) for prompt in prompts if not trace),
        ]
        self._times = [item.at_seconds for item in trace]
        self._gaps = random.Random(config.seed)
        self._choices = random.Random(config.seed + 1)
        self._tally = Tally(config.failures_max, config.seed)
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Event()
        self._wake: asyncio.Event | None = None

    def use(self, prompts: Sequence[Prompt]) -> None:
        """Send these prompts from now on, without a pause."""
        if prompts:
            self._bodies = [_body(self._config, prompt) for prompt in prompts]

    def start(self) -> None:
        """Begin to send. Call once."""
        self._thread.start()

    def stop(self) -> LoadReport:
        """Send nothing more, wait for the open answers (bounded by their time-out), report."""
        self._stopping.set()
        if self._loop is not None and self._wake is not None and self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._wake.set)
        return self.wait()

    def wait(self) -> LoadReport:
        """Wait until `config.seconds` have passed and all answers are there; report."""
        if self._thread.ident is not None:
            self._thread.join()
        return self.report()

    def report(self) -> LoadReport:
        """What was counted so far; may be called at any time from any thread."""
        return self._tally.report()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(self._send_all())

    async def _send_all(self) -> None:
        config = self._config
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        timeout = aiohttp.ClientTimeout(total=config.timeout_seconds)
        connector = aiohttp.TCPConnector(limit=0, force_close=not config.reuse_connections)
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "serin-load",
            **self._config.headers,
        }
        if not self._config.cached:
            headers["X-Serin-Cache"] = "bypass"
        async with (
            aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                headers=headers,
                cookie_jar=aiohttp.DummyCookieJar(),
            ) as session,
            asyncio.TaskGroup() as group,
        ):
            started = next_at = time.monotonic()
            self._tally.begin()
            for index in itertools.count():
                if self._stopping.is_set() or (self._times and index == len(self._times)):
                    break
                next_at = started + self._times[index] if self._times else next_at + self._gap()
                if config.seconds is not None and next_at - started > config.seconds:
                    break
                await self._sleep(next_at - time.monotonic())
                if self._stopping.is_set():
                    break
                if self._tally.in_flight >= config.in_flight_max:
                    self._tally.skip()
                    continue
                self._tally.send()
                stream = self._choices.random() < config.stream_share
                body = self._bodies[index % len(self._bodies)][stream]
                group.create_task(self._send(session, body, stream))
        self._tally.end()

    def _gap(self) -> float:
        if self._config.arrivals == "uniform":
            return 1 / self._config.rps
        return self._gaps.expovariate(self._config.rps)

    async def _sleep(self, seconds: float) -> None:
        if seconds <= 0 or self._wake is None:
            return
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return

    async def _send(self, session: aiohttp.ClientSession, body: bytes, stream: bool) -> None:
        """Send one request once, and count what came of it."""
        began = time.monotonic()
        status, arm, version, request_id = 0, "", "", ""
        try:
            async with session.post(self._config.url + CHAT_PATH, data=body) as answer:
                status = answer.status
                arm = answer.headers.get("x-serin-arm", "")
                version = answer.headers.get("x-serin-model-version", "")
                request_id = answer.headers.get("x-request-id", "")
                cause = _flaw(status, await answer.read(), stream)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            cause = _cause(error)
        seconds = time.monotonic() - began
        if cause == "limited":
            self._tally.limited(arm, version)
        elif cause:
            failed = FailedRequest(round(time.time(), 3), cause, status, arm, version, request_id)
            self._tally.failed(failed)
        else:
            self._tally.ok(arm, version, seconds)


def read_prompts(path: Path) -> list[Prompt]:
    """Read prompts from a file: JSON lines with `messages`, `prompt` or `text`, or plain lines.

    Raises InputError when the file cannot be read or holds no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise InputError(f"--prompts {path} cannot be read: {error}") from error
    prompts = [_prompt(line) for line in lines if line.strip()]
    if not prompts:
        raise InputError(f"--prompts {path} holds no prompt")
    return prompts


def _prompt(line: str) -> Prompt:
    try:
        row = json.loads(line)
    except ValueError:
        return line
    if not isinstance(row, dict):
        return line
    if "messages" in row:
        try:
            turns = msgspec.convert(row["messages"], list[Message])
        except msgspec.ValidationError as error:
            raise InputError(f"prompt {line[:80]!r}: {error}") from error
        return turns[:-1] if len(turns) > 1 and turns[-1].role == "assistant" else turns
    text = row.get("prompt", row.get("text"))
    if not isinstance(text, str):
        raise InputError(f"prompt {line[:80]!r} has none of messages, prompt, text")
    return text


def _body(config: LoadConfig, prompt: Prompt, max_tokens: int | None = None) -> tuple[bytes, bytes]:
    """The request's bodies: not streaming, streaming."""
    turns = [Message("user", prompt)] if isinstance(prompt, str) else list(prompt)
    content = {
        "model": config.model,
        "messages": turns,
        "max_tokens": max_tokens or config.max_tokens,
        "temperature": 0,
    }
    return msgspec.json.encode(content), msgspec.json.encode({**content, "stream": True})


def _flaw(status: int, content: bytes, stream: bool) -> str:
    """What is wrong with an answer that came to its end; empty when nothing is.

    A prompt that the safety policy holds back was answered: with the policy's refusal.
    """
    if status == 429:
        return "limited"
    if status == 400 and HELD_BACK in content:
        return ""
    if status != 200:
        return f"status_{status}"
    if stream:
        whole = b"data: [DONE]" in content and b'data: {"error"' not in content
        return "" if whole else "broken_stream"
    try:
        choices = json.loads(content).get("choices")
    except (ValueError, AttributeError):
        return "broken_body"
    return "" if choices else "empty_body"


def _cause(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "not_connected"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "answer_cut"
    return "connection_lost"


def main(arguments: list[str] | None = None) -> int:
    """Run one load from the command line; 0 when no request failed, else 1."""
    parser = argparse.ArgumentParser(prog="python -m observability.load", description=__doc__)
    parser.add_argument("--url", required=True, help="address of the gateway, http://host:port")
    parser.add_argument("--prompts", type=Path, required=True, help="JSON lines or plain lines")
    parser.add_argument("--model", default="assistant")
    parser.add_argument("--rps", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--arrivals", choices=("poisson", "uniform"), default="poisson")
    parser.add_argument("--stream-share", type=float, default=0.0)
    parser.add_argument("--max-tokens", type=int, default=32)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = vars(parser.parse_args(arguments))
    as_json, path = options.pop("json"), options.pop("prompts")
    try:
        generator = LoadGenerator(LoadConfig(**options), read_prompts(path))
    except (InputError, ValueError) as error:
        print(f"load: {error}", file=sys.stderr)
        return 2
    generator.start()
    report = generator.wait()
    print(report.as_json() if as_json else report.as_text())
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
