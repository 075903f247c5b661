"""Shadow mode: asks the canary what stable has answered already, and compares the two answers.

Runs behind the client's back: bounded, never retried, outside every count that a client's request
is part of. The canary's answer is thrown away once it was compared.
"""

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from serving.gateway.balancer import Arm, Balancer, Endpoint, Service
from serving.gateway.config import GatewayConfig
from serving.gateway.exposition import family, labels
from serving.gateway.response_ids import RESPONSE_ID_HEADER
from serving.gateway.scoring import Prompt, Scores, read_bounded, read_prompt
from serving.gateway.settlement import Key, comparison_key
from serving.gateway.upstream import DEADLINE_HEADER, REVISION_HEADER

log = logging.getLogger(__name__)

SHADOW_HEADER = "x-serin-shadow"


class _Said(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Said | None = None
    text: str | None = None


class _Answer(msgspec.Struct):
    choices: tuple[_Choice, ...]


def answer_text(body: bytes) -> str | None:
    """The text of an OpenAI answer's first choice; None when there is none."""
    try:
        choices = msgspec.json.decode(body, type=_Answer).choices
    except (msgspec.MsgspecError, UnicodeError):
        return None
    if not choices:
        return None
    return choices[0].text if choices[0].message is None else choices[0].message.content


class Counts:
    """What shadow calls of one comparison have shown."""

    __slots__ = ("agreements", "failures", "left_at", "pairs", "prompts", "requests", "skipped")

    def __init__(self) -> None:
        self.requests = self.agreements = self.failures = 0
        self.skipped: dict[str, int] = {}
        self.pairs: dict[tuple[int, int], int] = {}
        """(canary's score, stable's score) in whole percent -> prompts."""
        self.prompts: set[bytes] = set()
        self.left_at: float | None = None


@dataclass(frozen=True, slots=True)
class Offer:
    """One request that stable has answered: what is sent again, and what the answer was."""

    key: Key
    path: str
    headers: CIMultiDict[str]
    body: bytes
    answer: bytes


class Shadow:
    """Takes offers of answered requests and works on some of them, a few at a time."""

    def __init__(
        self, config: GatewayConfig, balancer: Balancer, home: Path, authorization: str
    ) -> None:
        """`authorization` is the header that predictors ask for."""
        self._config = config
        self._balancer = balancer
        self._authorization = authorization
        self._scores = Scores(
            home / "probes.jsonl", config.shadow_scorer_url, config.shadow_scorer_seconds_max
        )
        self._random = random.Random(config.seed)  # its own: the draw of the arms stays as it was
        self._session: aiohttp.ClientSession | None = None
        self._waiting: deque[Offer] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._counts: dict[Key, Counts] = {}

    def start(self) -> None:
        """Open connections of its own on the running loop; without a share nothing is opened."""
        if self._config.shadow_share > 0:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding"),
            )

    async def close(self) -> None:
        """Give up what runs and what waits."""
        session, self._session = self._session, None
        self._waiting.clear()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if session is not None:
            await session.close()

    def apply(self, services: Iterable[Service]) -> None:
        """Note the routes in force; counts of other comparisons are kept a while, then dropped."""
        now = time.monotonic()
        in_force = {comparison_key(service) for service in services}
        for key, counts in self._counts.items():
            left = now if counts.left_at is None else counts.left_at
            counts.left_at = None if key in in_force else left
        gone = sorted(
            (counts.left_at, key)
            for key, counts in self._counts.items()
            if counts.left_at is not None
        )
        for index, (left_at, key) in enumerate(gone):
            surplus = index < len(gone) - self._config.series_max
            if surplus or now - left_at > self._config.series_keep_seconds:
                del self._counts[key]

    def offer(
        self,
        service_name: str,
        answered_by: Arm,
        path: str,
        headers: CIMultiDict[str],
        body: bytes,
        answer: bytes,
    ) -> None:
        """Maybe ask the canary too, later; returns at once, whatever happens to it."""
        config = self._config
        if self._session is None or self._random.random() >= config.shadow_share:
            return
        service = self._balancer.services.get(service_name)
        key = None if service is None else comparison_key(service)
        if service is None or key is None or key[2] != answered_by.revision:
            return
        counts = self._of(key)
        if len(body) + len(answer) > config.shadow_bytes_max:
            _skip(counts, "too_large")
        elif self._endpoint(key) is None:
            _skip(counts, "canary_busy_or_not_ready")
        elif len(self._tasks) < config.shadow_concurrency_max:
            self._begin(Offer(key, path, headers, body, answer))
        elif len(self._waiting) < config.shadow_waiting_max:
            self._waiting.append(Offer(key, path, headers, body, answer))
        else:
            _skip(counts, "queue_full")

    def _of(self, key: Key) -> Counts:
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = Counts()
        return found

    def _begin(self, offer: Offer) -> None:
        task = asyncio.get_running_loop().create_task(self._compare(offer))
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a shadow call ended unexpectedly", exc_info=error)
        while self._waiting and len(self._tasks) < self._config.shadow_concurrency_max:
            self._begin(self._waiting.popleft())

    def _endpoint(self, key: Key) -> Endpoint | None:
        """A canary's endpoint that may be bothered; None while clients need it.

        The least loaded one; work of clients alone counts as load, so that what is done here
        never moves a client's request elsewhere.
        """
        service = self._balancer.services.get(key[0])
        canary = service.arm("canary") if service and comparison_key(service) == key else None
        found = [endpoint for endpoint in canary.endpoints if endpoint.available] if canary else []
        if not found or sum(item.outstanding for item in found) > self._config.shadow_busy_max:
            return None
        return min(found, key=lambda item: item.outstanding)

    async def _compare(self, offer: Offer) -> None:
        """Ask once, compare, count; a pair is scored only where a reference exists."""
        counts = self._of(offer.key)
        endpoint, stable = self._endpoint(offer.key), answer_text(offer.answer)
        session = self._session
        if endpoint is None or stable is None or session is None:
            _skip(counts, "no_answer_to_compare" if endpoint else "canary_busy_or_not_ready")
            return
        counts.requests += 1
        canary = await self._ask(session, endpoint, offer)
        if canary is None:
            counts.failures += 1
            return
        counts.agreements += canary.strip() == stable.strip()
        prompt = read_prompt(offer.body)
        if prompt is None or not self._is_new(counts, prompt):
            return
        scores = await self._scores.score(session, prompt, (canary, stable))
        if scores is not None and self._is_new(counts, prompt):
            counts.prompts.add(prompt.digest)
            counts.pairs[scores] = counts.pairs.get(scores, 0) + 1

    def _is_new(self, counts: Counts, prompt: Prompt) -> bool:
        """Whether a prompt was not scored yet: asked a hundred times, it still is one observation.

        While as many as are kept were scored, further ones only cost evidence.
        """
        full = len(counts.prompts) >= self._config.shadow_prompts_max
        return not full and prompt.digest not in counts.prompts

    async def _ask(
        self, session: aiohttp.ClientSession, endpoint: Endpoint, offer: Offer
    ) -> str | None:
        """Send the request to the canary once; None without a usable answer in time."""
        config = self._config
        headers = offer.headers.copy()
        headers.popall(RESPONSE_ID_HEADER, None)  # it names stable's answer
        headers[SHADOW_HEADER] = "1"
        headers["authorization"] = self._authorization
        headers[DEADLINE_HEADER] = f"{config.shadow_seconds_max:.3f}"
        url = URL(endpoint.url + offer.path, encoded=True)
        limit = aiohttp.ClientTimeout(total=config.shadow_seconds_max)
        try:
            async with session.post(
                url,
                data=offer.body,
                headers=headers,
                timeout=limit,
                allow_redirects=False,
                skip_auto_headers=("Content-Type",),
            ) as reply:
                revision = reply.headers.get(REVISION_HEADER, "")
                if reply.status != 200 or revision not in ("", endpoint.revision):
                    return None
                content = await read_bounded(reply, config.shadow_bytes_max)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return None
        return None if content is None else answer_text(content)

    def lines(self) -> Iterator[str]:
        """Yield everything in Prometheus' text format."""
        rows = [(_names(key), counts) for key, counts in self._counts.items()]
        prefix = "serin_gateway_shadow_"
        for name, text in (
            ("requests", "Requests answered by stable that were sent to the canary too."),
            ("agreements", "Shadow calls whose answer was stable's, word for word."),
            ("failures", "Shadow calls without a usable answer in time."),
        ):
            values = ((labels(**names), getattr(counts, name)) for names, counts in rows)
            yield from family(f"{prefix}{name}_total", "counter", text, values)
        yield from family(
            prefix + "skipped_total",
            "counter",
            "Shadow calls that were not made, by reason.",
            (
                (labels(**names, reason=reason), count)
                for names, counts in rows
                for reason, count in counts.skipped.items()
            ),
        )
        yield from family(
            prefix + "pairs_total",
            "counter",
            "Prompts whose two answers have a reference score, by both scores in hundredths.",
            (
                (labels(**names, canary_score=str(canary), stable_score=str(stable)), count)
                for names, counts in rows
                for (canary, stable), count in sorted(counts.pairs.items())
            ),
        )


def _skip(counts: Counts, reason: str) -> None:
    counts.skipped[reason] = counts.skipped.get(reason, 0) + 1


def _names(key: Key) -> dict[str, str]:
    service, canary, stable = key
    return {"service": service, "canary": canary, "stable": stable}
