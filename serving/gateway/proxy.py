"""One request from its draw to its outcome: endpoint, retries, deadline, and what is counted."""

import asyncio
import time
from collections.abc import Collection, Iterator

import msgspec

from serving.gateway.balancer import Arm, Balancer, Choice, Endpoint
from serving.gateway.config import GatewayConfig
from serving.gateway.exposition import family
from serving.gateway.health import Health
from serving.gateway.job import Job
from serving.gateway.limits import Full
from serving.gateway.outcomes import Outcome
from serving.gateway.relay import answer_headers, relay
from serving.gateway.reply import Refusal, Reply
from serving.gateway.response_ids import RESPONSE_ID_HEADER, ResponseIds
from serving.gateway.retry_budget import RetryBudget
from serving.gateway.sending import Fetched, Sender
from serving.gateway.settlement import UNANSWERED_SECONDS
from serving.gateway.shadow import Shadow
from serving.gateway.upstream import AttemptFailed, Upstream

BLOCKED_HEADER = "x-serin-blocked"
"""An answer that safety rules held back says so with this header (any value but 0)."""


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
        self._ids = ids
        self._shadow = shadow
        self._budget = RetryBudget(config.retry_share_max, config.retries_per_second_min)
        self._sender = Sender(config, balancer, health, upstream, self._budget)

    def lines(self) -> Iterator[str]:
        """Yield waits, retries and hedges in Prometheus' text format."""
        name, text = "serin_gateway_upstream_waiting", "Requests that wait for a place at a server."
        yield from family(name, "gauge", text, [("", self._balancer.places.waiting)])
        yield from self._budget.lines()
        yield from self._sender.lines()

    async def answer(self, job: Job, reply: Reply) -> None:
        """Answer the client and count the outcome for the drawn arm, exactly once."""
        job.series.draw()
        self._budget.asked(job.service)
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
        if job.named == arm.place:
            return
        job.named = arm.place
        mark = job.mark
        if arm.place != job.arm.place:
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
        began = asyncio.get_running_loop().time()
        while True:
            arm, endpoint = await self._endpoint(job, avoid, began)
            if arm.place != job.arm.place and not job.failed:
                job.failed = True
                job.series.retry("diverted")
            self._name(job, reply, arm)
            try:
                fetched = await self._sender.fetch(job, arm, endpoint, sends + 1)
                return await self._deliver(job, reply, fetched)
            except AttemptFailed as failure:
                job.failed = True
                if not failure.eject:
                    avoid.append(endpoint)
                if reply.started:
                    return "error"
                sends += failure.sent
                text = "the model's server did not answer; send the request again"
                if sends >= self._config.sends_max:
                    raise Refusal(502, text, failure.reason) from failure
                if failure.sent and not self._budget.take(job.service):
                    raise Refusal(502, text, "retries_used_up", retry_after_seconds=1) from failure
                job.series.retry(failure.reason)

    async def _endpoint(
        self, job: Job, avoid: Collection[Endpoint], began: float
    ) -> tuple[Arm, Endpoint]:
        """Choose an endpoint; while there is none, hold the request: one may come back."""
        patience = began + self._config.waiting_seconds_max
        try:
            async with asyncio.timeout_at(began + self._config.hold_seconds_max) as hold:
                while True:
                    found = self._choose(job, avoid) or self._choose(job)
                    if found is None:
                        await self._balancer.changed()
                    elif found.endpoint is None:
                        await self._balancer.places.wait(found.arm.place, patience)
                    else:
                        return found.arm, found.endpoint
        except TimeoutError:
            assert hold.expired()
            text = f"no server of {job.service} is ready; try again"
            raise Refusal(503, text, "not_ready", retry_after_seconds=1) from None
        except Full as full:
            text = f"the servers of {job.service} are full ({full.reason}); try again"
            raise Refusal(429, text, full.reason, retry_after_seconds=1) from None

    def _choose(self, job: Job, avoid: Collection[Endpoint] = ()) -> Choice | None:
        return self._balancer.choose(job.service, job.arm, avoid, job.stays)

    async def _deliver(self, job: Job, reply: Reply, fetched: Fetched) -> Outcome:
        """Pass an answer on. Raises AttemptFailed; `reply.started` tells if a part has left."""
        answer = fetched.answer
        try:
            job.blocked = answer.headers.get(BLOCKED_HEADER, "0") != "0"
            given = answer.headers.get(RESPONSE_ID_HEADER)
            if given and fetched.arm.region:  # the other region's gateway knows its own ids
                reply.set_header(RESPONSE_ID_HEADER.encode(), given.encode("latin-1"))
            whole = fetched.whole
            if whole:
                job.answer_head = answer.status, answer_headers(answer)
                await reply.whole(*job.answer_head, fetched.start)
                job.answer = fetched.start
            else:
                whole = await relay(answer, fetched.start, reply)
                job.blocked = job.blocked or reply.held_back
            return _outcome(answer.status) if whole else "error"
        except AttemptFailed as failure:
            self._health.eject(fetched.endpoint, failure.reason)
            raise
        finally:
            self._sender.close(fetched)


def _outcome(status: int) -> Outcome:
    if status < 400:
        return "ok"
    return "client_error" if status < 500 and status != 429 else "error"
