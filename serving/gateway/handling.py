"""A request that is here whole, on its way to an answer: limits, cache, a place, and its draw.

Knows no HTTP but headers; refusals of the client come before the draw, so that none counts for an
arm.
"""

import time
from dataclasses import dataclass
from urllib.parse import quote

import msgspec
from multidict import CIMultiDict

from observability.tracing import current
from serving.gateway.auditing import GatewayAudit
from serving.gateway.balancer import Arm, Balancer, Service
from serving.gateway.cache import CACHE_HEADER, Asked, ResponseCache, answerer
from serving.gateway.cache_store import KeptAnswer
from serving.gateway.guard import Guard
from serving.gateway.job import Counts, Job
from serving.gateway.keys import Caller
from serving.gateway.limits import Admission, Full
from serving.gateway.metrics import Metrics
from serving.gateway.policies import Policies
from serving.gateway.pools import Region
from serving.gateway.prompt_counts import PromptCounts
from serving.gateway.proxy import Proxy
from serving.gateway.regions import Regions
from serving.gateway.reply import Header, Refusal, Reply
from serving.gateway.response_ids import RESPONSE_ID_HEADER, Mark, make_nonce
from serving.gateway.settlement import Draw, Settlement
from serving.gateway.shadow import SHADOW_HEADER
from serving.gateway.traces import waited
from serving.gateway.upstream import DEADLINE_HEADER, REGION_HEADER

CONVERSATION_HEADER = b"x-serin-conversation"
CONVERSATION_BYTES_MAX = 256
REGION_NAME = REGION_HEADER.encode()
KEY_HEADER = "x-serin-key"
CLIENT_HEADER = "x-serin-client"
"""Who asks, for the predictor's audit: it believes whoever has its token."""
NOT_PASSED = frozenset(
    (
        b"host", b"connection", b"keep-alive", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"content-length", b"expect", b"proxy-authorization", b"proxy-connection",
        b"accept-encoding", b"content-encoding", b"x-request-id", b"x-serin-arm",
        b"x-serin-revision", CACHE_HEADER, b"authorization", b"x-api-key",
        KEY_HEADER.encode(), CLIENT_HEADER.encode(),
        SHADOW_HEADER.encode(), REGION_NAME, DEADLINE_HEADER.encode(), RESPONSE_ID_HEADER.encode(),
    )
)  # fmt: skip
"""Headers that end here; a client's key is the gateway's business alone."""


@dataclass(slots=True)
class Question:
    """What a client asks: its path, headers and body, who it is, until when (loop time)."""

    path: str
    headers: list[Header]
    caller: Caller
    body: bytes
    deadline: float
    reply: Reply


class Handler:
    """Answers questions; wires the parts that decide about them."""

    def __init__(
        self,
        balancer: Balancer,
        guard: Guard,
        cache: ResponseCache,
        audit: GatewayAudit,
        admission: Admission,
        settlement: Settlement,
        metrics: Metrics,
        proxy: Proxy,
        policies: Policies,
        regions: Regions,
        hedges: bool,
        prompts: PromptCounts,
    ) -> None:
        """With `hedges` a deterministic request may be sent to a second endpoint."""
        self._balancer = balancer
        self._guard = guard
        self._cache = cache
        self._audit = audit
        self._admission = admission
        self._settlement = settlement
        self._metrics = metrics
        self._proxy = proxy
        self._policies = policies
        self._regions = regions
        self._hedges = hedges
        self._prompts = prompts
        self._decoder = msgspec.json.Decoder(Asked)

    async def answer(self, question: Question) -> None:
        """Answer from the cache where that is allowed, else by the drawn arm. Raises Refusal."""
        asked = self._asked(question.body)
        service = self.service(asked.model)
        question.body = self._guard.admit(
            question.caller, question.body, self._admission.busy_share
        )
        self._prompts.see(service.name, question.body)
        headers = dict(question.headers)
        always = self._guard.degraded
        hedged = self._hedges and asked.temperature == 0 and not asked.stream
        policy = self._policies.current(service.arms[0]) if len(service.arms) == 1 else None
        key = self._cache.key(service, question.path, headers, question.body, asked, policy, always)
        if key is None:
            await self._made(question, service, hedged)
            return
        wanted = answerer(service.arms[0])

        async def make() -> KeptAnswer | None:
            question.reply.common.append((CACHE_HEADER, b"miss"))
            job = await self._made(question, service, hedged)
            kept = job.kept() if answerer(job.arm) == wanted else None
            return kept if kept is not None and kept.policy == policy else None

        try:
            kept = await self._cache.answer(service.name, key, question.deadline, make)
        except TimeoutError:
            raise Refusal(504, "the deadline has passed", "deadline_passed") from None
        if kept is not None:
            request_id = question.reply.common[0][1].decode("ascii")
            self._audit.given_again(question.caller, request_id, question.body, kept)
            await _give_again(kept, question.reply)

    def _asked(self, body: bytes) -> Asked:
        """What the gateway needs to know of a request. Raises Refusal (400)."""
        try:
            if not body.isascii():
                body.decode()  # the decoder skips what it does not need, bad bytes included
            return self._decoder.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            text = f"the body is not a JSON object with a model: {error}"
            raise Refusal(400, text, "invalid_body") from None

    def service(self, model: str) -> Service:
        """Return the service of a model's name. Raises Refusal (404, 503)."""
        service = self._balancer.services.get(model)
        if service is not None:
            return service
        if not self._balancer.services or model in self._balancer.routes.services:
            text = "no model is served yet; try again"
            raise Refusal(503, text, "no_routes", retry_after_seconds=1)
        raise Refusal(404, f"the model {model[:200]!r} does not exist", "model_not_found")

    async def _made(self, question: Question, service: Service, hedged: bool) -> Job:
        """Choose a region, take a place there and here, and let the drawn arm answer."""
        stays = REGION_NAME in dict(question.headers)
        region = self._region(question, service, stays)
        trace = current()
        began = time.perf_counter() if trace is not None else 0.0
        await self._enter(region)
        try:
            waited(trace, began)
            elsewhere = ""
            if region is not None and region is not self._regions.home:
                elsewhere = region.name
            job = self._draw(question, service, elsewhere)
            job.region, job.stays, job.hedged = region, stays, hedged and job.draw is None
            await self._proxy.answer(job, question.reply)
        finally:
            self._leave(region)
        self._guard.charge(question.caller, question.body, job.answer, question.reply.events)
        if job.blocked and job.answer_head[0] >= 400:  # what was asked, not what was answered
            self._guard.strike(question.caller.address, "blocked")
        return job

    def _region(self, question: Question, service: Service, stays: bool) -> Region | None:
        """The region that the request goes to; None without other regions."""
        if not self._regions.several:
            return None
        region = self._regions.choose(service.name, self._client(question), stays)
        if region is None:
            text = f"{service.name} is not served in this region"
            raise Refusal(503, text, "not_in_this_region", retry_after_seconds=1)
        question.reply.common.append((REGION_NAME, region.name.encode()))
        return region

    def _client(self, question: Question) -> str | None:
        """Who shall stay in one region: a named conversation or, if so configured, a client."""
        for name, value in question.headers:
            if name == CONVERSATION_HEADER:
                return f"conversation {_conversation(value)}"
        caller = question.caller
        if self._regions.by_client:
            return f"key {caller.key}" if caller.key else f"client {caller.address}"
        return None

    async def _enter(self, region: Region | None) -> None:
        """Take a place in the region first: who waits for one there keeps nobody else out."""
        if region is not None:
            try:
                await region.places.enter()
            except Full as full:
                self._regions.shed[region.name] += 1
                text = f"the region is full ({full.reason}); try again"
                raise Refusal(429, text, "region_full", retry_after_seconds=1) from None
        try:
            await self._admission.enter()
        except BaseException as error:
            if region is not None:
                region.places.leave()
            if isinstance(error, Full):
                text = f"the gateway is full ({error.reason}); try again"
                raise Refusal(429, text, error.reason, retry_after_seconds=1) from None
            raise

    def _leave(self, region: Region | None) -> None:
        self._admission.leave()
        if region is not None:
            region.places.leave()

    def _draw(self, question: Question, service: Service, elsewhere: str) -> Job:
        """Draw the arm; a request for the region `elsewhere` is no observation of any arm here."""
        now = self._balancer.services.get(service.name)
        service = now if now is not None and now.arms else service  # as it is after the wait
        conversation = None
        passed: CIMultiDict[str] = CIMultiDict()
        for name, value in question.headers:
            if name == CONVERSATION_HEADER:
                conversation = _conversation(value)
            if name not in NOT_PASSED and value.isascii():
                passed.add(name.decode("ascii"), value.decode("ascii"))
        reply = question.reply
        passed[KEY_HEADER] = quote(question.caller.key)
        passed[CLIENT_HEADER] = question.caller.address
        passed["x-request-id"] = reply.common[0][1].decode("ascii")
        passed["accept-encoding"] = "identity"  # answers must be readable here and cheap
        series: Counts
        if elsewhere:
            arm = next(arm for arm in service.elsewhere if arm.region == elsewhere)
            draw, series = None, self._regions.counts(service.name, elsewhere)
        else:
            arm = self._balancer.draw(service, conversation)
            draw = self._settlement.draw(service, arm, conversation)
            series = self._metrics.series(service.name, arm)
        reply.common.append((b"x-serin-arm", arm.name.encode()))
        mark = self._mark(service, arm, draw)
        return Job(
            service.name, arm, series, draw, mark, question.path, passed, question.body,
            question.deadline,
        )  # fmt: skip

    def _mark(self, service: Service, arm: Arm, draw: Draw | None) -> Mark:
        """What the id of the drawn arm's answer says."""
        running = self._settlement.running(service.name)
        (_, canary, stable), share = running or (("", "", ""), 0.0)
        return Mark(
            nonce=make_nonce(),
            process=self._settlement.process,
            service=service.name,
            arm=arm.name,
            revision=arm.revision,
            model_version=arm.model_version,
            stable=stable,
            canary=canary,
            share=share,
            observed=draw is not None,
        )


def _conversation(value: bytes) -> str:
    return value[:CONVERSATION_BYTES_MAX].decode("latin-1")


async def _give_again(kept: KeptAnswer, reply: Reply) -> None:
    age = max(0, int(time.time() - kept.kept_at_seconds))
    reply.set_header(RESPONSE_ID_HEADER.encode(), kept.response_id)
    reply.common += [(CACHE_HEADER, b"hit"), (b"age", b"%d" % age), (b"x-serin-arm", b"stable")]
    await reply.whole(200, kept.headers, kept.body)
