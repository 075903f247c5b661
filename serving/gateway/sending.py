"""One sending of a request: to an endpoint, and where it is allowed to a second one that may be
quicker. Says how it failed; knows neither retries nor arms' counts."""

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import aiohttp
from multidict import CIMultiDict

from observability.tracing import Call
from serving.gateway import traces
from serving.gateway.balancer import Arm, Balancer, Choice, Endpoint
from serving.gateway.config import GatewayConfig
from serving.gateway.exposition import family, labels
from serving.gateway.health import Health
from serving.gateway.job import Job
from serving.gateway.limits import Full
from serving.gateway.pools import Region
from serving.gateway.relay import read_start
from serving.gateway.retry_budget import RetryBudget
from serving.gateway.upstream import (
    DEADLINE_HEADER,
    READING,
    REGION_HEADER,
    REVISION_HEADER,
    AttemptFailed,
    Upstream,
)


@dataclass(slots=True)
class Fetched:
    """An answer that has begun: its head and first bytes are here. `close` it in any case."""

    arm: Arm
    endpoint: Endpoint
    answer: aiohttp.ClientResponse
    start: bytes
    whole: bool
    guest: Region | None
    """The region, other than the request's own, in which it has a place."""
    call: Call | None
    """Its part of the request's trace."""


class Sender:
    """Sends requests and reads the beginnings of their answers."""

    def __init__(
        self,
        config: GatewayConfig,
        balancer: Balancer,
        health: Health,
        upstream: Upstream,
        budget: RetryBudget,
    ) -> None:
        self._config = config
        self._balancer = balancer
        self._health = health
        self._upstream = upstream
        self._budget = budget
        self._hedges = {"sent": 0, "won": 0}

    async def fetch(self, job: Job, arm: Arm, endpoint: Endpoint, sending: int) -> Fetched:
        """Send a request for the `sending`th time. Raises AttemptFailed; who failed rests then."""
        if not job.hedged:
            return await self._fetch(job, arm, endpoint, sending)
        job.hedged = False
        tasks = [asyncio.create_task(self._fetch(job, arm, endpoint, sending))]
        winner: Fetched | None = None
        try:
            await asyncio.wait(tasks, timeout=self._config.hedge_seconds)
            second = None if tasks[0].done() else self._second(job, arm, endpoint)
            if second is not None:
                self._hedges["sent"] += 1
                tasks.append(asyncio.create_task(self._fetch(job, arm, second, sending)))
            winner = await _quickest(tasks)
            self._hedges["won"] += winner.endpoint is second
            return winner
        finally:
            for task in tasks:
                unused = not task.cancel() and not task.cancelled() and task.exception() is None
                if unused and task.result() is not winner:
                    self.close(task.result())

    def close(self, fetched: Fetched) -> None:
        """Let go of an answer; its connection is kept for others when it was read whole."""
        traces.sent(fetched.call, fetched.answer.status)
        fetched.answer.close()
        self._leave(fetched.arm, fetched.endpoint, fetched.guest)

    def lines(self) -> Iterator[str]:
        """Yield how often a second endpoint was asked, in Prometheus' text format."""
        yield from family(
            "serin_gateway_hedges_total",
            "counter",
            "Requests sent to a second endpoint while the first was slow, and those it answered.",
            ((labels(outcome=outcome), count) for outcome, count in self._hedges.items()),
        )

    def _second(self, job: Job, arm: Arm, first: Endpoint) -> Endpoint | None:
        """Another endpoint of the same arm, if one has a place and the budget has room."""
        service = self._balancer.services.get(job.service)
        if service is None or len(service.arms) > 1:
            return None  # a canary has begun: its judge shall see one sending a request
        found = self._other(job, first)
        if found is None or found.arm != arm or not self._budget.take(job.service):
            return None
        return found.endpoint

    def _other(self, job: Job, endpoint: Endpoint) -> Choice | None:
        """Who else could answer now."""
        with contextlib.suppress(Full):
            found = self._balancer.choose(job.service, job.arm, (endpoint,), job.stays)
            if found is not None and found.endpoint is not None:
                return found
        return None

    async def _fetch(self, job: Job, arm: Arm, endpoint: Endpoint, sending: int) -> Fetched:
        loop = asyncio.get_running_loop()
        now = loop.time()
        pool = endpoint.pool
        guest: Region | None = None
        if pool is not None and job.region is not None and pool.region is not job.region:
            guest = pool.region
        if guest is not None and not guest.places.try_enter():
            raise AttemptFailed("region_full", sent=False, eject=False)
        headers = self._headers(job, endpoint, now)
        call = traces.sending(headers, endpoint, sending)
        answer: aiohttp.ClientResponse | None = None
        good: bool | None = False
        fetched: Fetched | None = None
        endpoint.outstanding += 1
        try:
            with READING:
                async with asyncio.timeout(self._config.silence_seconds_max) as limit:
                    endpoint.waiting[limit] = now
                    try:
                        answer = await self._upstream.post(endpoint, job.path, headers, job.body)
                        good = answer.status < 500
                        self._check(job, arm, endpoint, answer, sending)
                        start, whole = await read_start(answer, self._config.buffer_bytes_max)
                    finally:
                        del endpoint.waiting[limit]
            fetched = Fetched(arm, endpoint, answer, start, whole, guest, call)
            return fetched
        except AttemptFailed as failure:
            good = good and not failure.eject
            if failure.eject:
                self._health.eject(endpoint, failure.reason)
            raise
        except asyncio.CancelledError:
            good = False
            if loop.time() < job.deadline:
                good = None  # nobody waits any more: it counts only if it was slow
            raise
        finally:
            seconds = loop.time() - now
            if pool is not None:
                pool.note(good, seconds, now + seconds)
            if fetched is None:
                self._leave(arm, endpoint, guest)
                traces.sent(call, answer.status if answer is not None else None)
                if answer is not None:
                    answer.close()

    def _headers(self, job: Job, endpoint: Endpoint, now: float) -> CIMultiDict[str]:
        """What this endpoint is to be told, beside what the client said."""
        headers = job.headers.copy()
        headers[DEADLINE_HEADER] = f"{max(job.deadline - now, 0.001):.3f}"
        pool = endpoint.pool
        authorization = self._upstream.authorization
        if pool is not None and endpoint.region:  # this region's token is not for others to see
            headers[REGION_HEADER] = self._config.regions.name
            authorization = pool.region.authorization
        if authorization:
            headers["authorization"] = authorization
        return headers

    def _leave(self, arm: Arm, endpoint: Endpoint, guest: Region | None) -> None:
        self._balancer.release(arm, endpoint)
        if guest is not None:
            guest.places.leave()

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
        if revision and not endpoint.region and revision != endpoint.revision:
            raise AttemptFailed("wrong_revision", sent=True)  # its port belongs to another now
        if answer.status in (401, 503):  # another token, draining or not ready: not begun
            raise AttemptFailed(f"status_{answer.status}", sent=False)
        if sending >= self._config.sends_max or answer.status not in (429, 500, 502):
            return
        other = self._other(job, endpoint)
        if other is None or (answer.status == 429 and other.arm.place != arm.place):
            return  # a full arm sheds its load; it must not pull the other one down
        if self._budget.room(job.service):
            raise AttemptFailed(f"status_{answer.status}", sent=True, eject=False)


async def _quickest(tasks: "list[asyncio.Task[Fetched]]") -> Fetched:
    """The first answer of several. Raises the last failure when all have failed."""
    left: set[asyncio.Task[Fetched]] = set(tasks)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task in done and (task.exception() is None or not left):
                return task.result()
