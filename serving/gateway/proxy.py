"""One request from its draw to its outcome: endpoint, retries, deadline, and what is counted."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass

import aiohttp
import msgspec
from multidict import CIMultiDict

from serving.gateway import traces
from serving.gateway.balancer import Arm, Balancer, Endpoint
from serving.gateway.cache_store import KeptAnswer
from serving.gateway.config import GatewayConfig
from serving.gateway.health import Health
from serving.gateway.metrics import Outcome, Series
from serving.gateway.relay import answer_headers, read_start, relay
from serving.gateway.reply import Header, Refusal, Reply
from serving.gateway.response_ids import PREFIXES, RESPONSE_ID_HEADER, Mark, ResponseIds
from serving.gateway.settlement import UNANSWERED_SECONDS, Draw
from serving.gateway.shadow import Shadow
from serving.gateway.upstream import (
    DEADLINE_HEADER,
    READING,
    REVISION_HEADER,
    AttemptFailed,
    Upstream,
)

BLOCKED_HEADER = "x-serin-blocked"
"""An answer that safety rules held back says so with this header (any value but 0)."""


@dataclass(slots=True)
class Job:
    """One request that has been drawn. `deadline` is in loop time.

    `draw` is None for a request that is no observation; `mark` is what its id says of the drawn
    arm's answer.
    """

    service: str
    arm: Arm
    series: Series
    draw: Draw | None
    mark: Mark
    path: str
    headers: CIMultiDict[str]
    body: bytes
    deadline: float
    failed: bool = False
    """The drawn arm failed it: an error of that arm, even if another endpoint answers."""
    blocked: bool = False
    """The answer was held back by safety rules."""
    named: str = ""
    """The revision that the answer's id names now."""
    answer: bytes | None = None
    """The drawn arm's answer, where the client got it whole."""
    answer_head: tuple[int, list[Header]] = (0, [])
    """Status and headers of that answer."""

    def kept(self) -> KeptAnswer | None:
        """Return the answer as it may be given to others; None for any but a plain, whole one."""
        status, headers = self.answer_head
        plain = not self.failed and not self.blocked and self.named == self.arm.revision
        if self.answer is None or status != 200 or not plain:
            return None
        return KeptAnswer(headers, self.response_id, self.answer, time.time())

    @property
    def response_id(self) -> bytes:
        """The answer's id as clients see it."""
        return f"{PREFIXES['chat/' not in self.path]}{self.headers[RESPONSE_ID_HEADER]}".encode()

    def settle(self, outcome: Outcome, seconds: float) -> None:
        """Give the observation its outcome; only the first call counts."""
        if self.draw is not None:
            self.draw.finish(self.failed or outcome == "error", self.blocked, seconds)


class Proxy:
    """Sends requests to endpoints until one answers or nothing safe is left to try."""

    def __init__(
        self,
        config: GatewayConfig,
        balancer: Balancer,
        health: Health,
        upstream: Upstream,
        ids: ResponseIds,
        shadow: Shadow,
    ) -> None:
        self._config = config
        self._balancer = balancer
        self._health = health
        self._upstream = upstream
        self._ids = ids
        self._shadow = shadow

    async def answer(self, job: Job, reply: Reply) -> None:
        """Answer the client and count the outcome for the drawn arm, exactly once."""
        job.series.draw()
        started = time.monotonic()  # the loop's own clock counts whole milliseconds
        outcome: Outcome = "error"
        try:
            self._name(job, reply, job.arm)
            async with asyncio.timeout_at(job.deadline):
                outcome = await self._answer(job, reply)
        except TimeoutError:
            job.settle("error", UNANSWERED_SECONDS)  # others in the line need not wait for the 504
            await reply.refuse(Refusal(504, "the deadline has passed", "deadline_passed"))
        except Refusal as refusal:
            await reply.refuse(refusal)
        except asyncio.CancelledError:
            outcome = "cancelled" if reply.gone else "error"
            raise
        finally:
            seconds = time.monotonic() - started
            job.settle(outcome, seconds)
            job.series.finish("error" if job.failed else outcome, seconds)
        if outcome == "ok" and not job.failed and job.arm.name == "stable" and job.answer:
            self._shadow.offer(job.service, job.arm, job.path, job.headers, job.body, job.answer)

    def _name(self, job: Job, reply: Reply, arm: Arm) -> None:
        """Let the answer's id name the revision that is asked for it.

        An answer of the other arm is no observation of the drawn one's quality: its score must
        not hide that the drawn arm gave none.
        """
        if job.named == arm.revision:
            return
        job.named = arm.revision
        mark = job.mark
        if arm.revision != mark.revision:
            mark = msgspec.structs.replace(
                mark,
                arm=arm.name,
                revision=arm.revision,
                model_version=arm.model_version,
                observed=False,
            )
        job.headers[RESPONSE_ID_HEADER] = self._ids.sign(mark)
        reply.set_header(RESPONSE_ID_HEADER.encode(), job.response_id)

    async def _answer(self, job: Job, reply: Reply) -> Outcome:
        """Try endpoints; a request that may have begun somewhere is sent `sends_max` times."""
        sends = 0
        avoid: list[Endpoint] = []
        hold_until = asyncio.get_running_loop().time() + self._config.hold_seconds_max
        while True:
            arm, endpoint = await self._endpoint(job, avoid, hold_until)
            if arm.revision != job.arm.revision and not job.failed:
                job.failed = True
                job.series.retry("diverted")
            self._name(job, reply, arm)
            try:
                return await self._attempt(job, reply, arm, endpoint, sends + 1)
            except AttemptFailed as failure:
                job.failed = True
                if failure.eject:
                    self._health.eject(endpoint, failure.reason)
                else:
                    avoid.append(endpoint)
                if reply.started:
                    return "error"
                sends += failure.sent
                if sends >= self._config.sends_max:
                    text = "the model's server did not answer; send the request again"
                    raise Refusal(502, text, failure.reason) from failure
                job.series.retry(failure.reason)

    async def _endpoint(
        self, job: Job, avoid: Collection[Endpoint], hold_until: float
    ) -> tuple[Arm, Endpoint]:
        """Choose an endpoint; while there is none, hold the request: one may come back."""
        choose = self._balancer.choose
        try:
            async with asyncio.timeout_at(hold_until) as hold:
                while True:
                    found = choose(job.service, job.arm, avoid) or choose(job.service, job.arm)
                    if found is not None:
                        return found
                    await self._balancer.changed()
        except TimeoutError:
            assert hold.expired()
            text = f"no server of {job.service} is ready; try again"
            raise Refusal(503, text, "not_ready", retry_after_seconds=1) from None

    async def _attempt(
        self, job: Job, reply: Reply, arm: Arm, endpoint: Endpoint, sending: int
    ) -> Outcome:
        """Send once. Raises AttemptFailed; `reply.started` tells if the client got a part."""
        now = asyncio.get_running_loop().time()
        job.headers[DEADLINE_HEADER] = f"{max(job.deadline - now, 0.001):.3f}"
        answer: aiohttp.ClientResponse | None = None
        call = traces.sending(job.headers, endpoint, sending)
        endpoint.outstanding += 1
        try:
            with READING:
                async with asyncio.timeout(self._config.silence_seconds_max) as limit:
                    endpoint.waiting[limit] = now
                    try:
                        answer = await self._upstream.post(
                            endpoint, job.path, job.headers, job.body
                        )
                        self._check(job, arm, endpoint, answer, sending)
                        start, whole = await read_start(answer, self._config.buffer_bytes_max)
                    finally:
                        del endpoint.waiting[limit]
            job.blocked = answer.headers.get(BLOCKED_HEADER, "0") != "0"
            if whole:
                job.answer_head = answer.status, answer_headers(answer)
                await reply.whole(*job.answer_head, start)
                job.answer = start
            else:
                whole = await relay(answer, start, reply)
                job.blocked = job.blocked or reply.held_back
            return _outcome(answer.status) if whole else "error"
        finally:
            endpoint.outstanding -= 1
            traces.sent(call, answer.status if answer is not None else None)
            if answer is not None:
                answer.close()  # keeps the connection for others when the answer was read whole

    def _check(
        self,
        job: Job,
        arm: Arm,
        endpoint: Endpoint,
        answer: aiohttp.ClientResponse,
        sending: int,
    ) -> None:
        """Raise AttemptFailed for an answer that another endpoint should give instead."""
        revision = answer.headers.get(REVISION_HEADER)
        if revision and revision != endpoint.revision:
            raise AttemptFailed("wrong_revision", sent=True)  # its port belongs to another now
        if answer.status in (401, 503):  # another token, draining or not ready: not begun
            raise AttemptFailed(f"status_{answer.status}", sent=False)
        if sending >= self._config.sends_max or answer.status not in (429, 500, 502):
            return
        other = self._balancer.choose(job.service, job.arm, (endpoint,))
        if other is None or (answer.status == 429 and other[0].revision != arm.revision):
            return  # a full arm sheds its load; it must not pull the other one down
        raise AttemptFailed(f"status_{answer.status}", sent=True, eject=False)


def _outcome(status: int) -> Outcome:
    if status < 400:
        return "ok"
    return "client_error" if status < 500 and status != 429 else "error"
