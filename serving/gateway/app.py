"""The gateway's ASGI application: its routes, and reading a request until it is here whole."""

import asyncio
import re
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from core.keys import bearer, read_key
from observability.tracing import Tracing
from serving.gateway import traces
from serving.gateway.auditing import GatewayAudit
from serving.gateway.balancer import Balancer, Rules
from serving.gateway.cache import ResponseCache
from serving.gateway.cache_store import CacheStore
from serving.gateway.config import GatewayConfig
from serving.gateway.connection import EXTENSION
from serving.gateway.evaluators import Evaluators
from serving.gateway.exposition import Counting
from serving.gateway.feedback import FEEDBACK_BYTES_MAX, Feedback
from serving.gateway.guard import Guard
from serving.gateway.handling import Handler, Question
from serving.gateway.health import Health
from serving.gateway.limits import Admission, Body, Budget
from serving.gateway.metrics import CONTENT_TYPE, Metrics
from serving.gateway.policies import Policies
from serving.gateway.prompt_counts import PromptCounts
from serving.gateway.proxy import Proxy
from serving.gateway.regions import Regions, read_authorizations
from serving.gateway.reply import JSON, Header, Message, Receive, Refusal, Reply, Send
from serving.gateway.response_ids import ResponseIds
from serving.gateway.routes import Routes, RoutesFile
from serving.gateway.settlement import Settlement
from serving.gateway.shadow import Shadow
from serving.gateway.upstream import DEADLINE_HEADER, READY_PATH, Upstream

PREFIX = "/openai/v1/"
GENERATING = frozenset((PREFIX + "chat/completions", PREFIX + "completions"))
MODELS = PREFIX + "models"
FEEDBACK = frozenset(("/v1/feedback", PREFIX + "feedback"))
REQUEST_ID = re.compile(rb"[!-~]{1,128}")
CLOSING: tuple[Header, ...] = ((b"connection", b"close"),)
SHOWN_SECONDS_MAX = 5.0
LINGER_SECONDS_MAX = 2.0
LINGER_BYTES_MAX = 8 << 20
"""How long, and how much, a refused body is still read: closing at once would reset the
connection before the client has read why."""


class Gateway:
    """One gateway process: wires routes, balancer, health, proxy and counters; is the ASGI app.

    Raises ConfigurationError when the key of the answers' ids can be neither read nor made.
    """

    def __init__(
        self,
        config: GatewayConfig,
        home: Path,
        store: CacheStore | None,
        guard: Guard,
        audit: GatewayAudit,
        tracing: Tracing,
        predictor_token: str,
    ) -> None:
        self._config = config
        self._tracing = tracing
        self._guard = guard
        self._audit = audit
        self._cache = ResponseCache(store)
        self._regions = Regions(config, read_authorizations(config.regions), _loop_seconds)
        rules = Rules(
            config.endpoint_concurrency_max, config.endpoint_waiting_max, config.ramp_seconds
        )
        self.balancer = Balancer(
            config.conversation_key, config.seed, rules, self._regions.arms, _loop_seconds
        )
        self.metrics = Metrics(config.series_max, config.series_keep_seconds)
        self.settlement = Settlement(
            config.series_max,
            config.series_keep_seconds,
            config.settling_max,
            config.conversations_max,
        )
        ids = ResponseIds(read_key(home / "control" / "response.key"))
        evaluators = Evaluators(home / "feedback.yaml")
        self._feedback = Feedback(ids, self.settlement, evaluators, config.scored_max)
        authorization = bearer(predictor_token)
        self._upstream = Upstream(config, authorization)
        self.health = Health(config, self.balancer, self._upstream.ready)
        self._policies = Policies(
            self.balancer,
            self._upstream.policy,
            config.policy_poll_seconds,
            config.policy_seconds_max,
        )
        self._shadow = Shadow(config, self.balancer, home, authorization)
        self._proxy = Proxy(config, self.balancer, self.health, self._upstream, ids, self._shadow)
        self._admission = Admission(
            config.concurrency_max, config.waiting_max, config.waiting_seconds_max
        )
        self._prompts = PromptCounts(config.prompt_share, config.seed)
        self._handler = Handler(
            self.balancer,
            guard,
            self._cache,
            audit,
            self._admission,
            self.settlement,
            self.metrics,
            self._proxy,
            self._policies,
            self._regions,
            config.hedge_seconds > 0,
            self._prompts,
        )
        self._counting: tuple[Counting, ...] = (
            self.settlement, self._shadow, self._cache, self._policies, self._regions, self._proxy,
            guard, audit, self._feedback.scores, self._prompts,
        )  # fmt: skip
        self._bodies = Budget(config.bodies_bytes_max)
        self._file = RoutesFile(home / "control" / "routes.json", self._apply)

    def _apply(self, routes: Routes) -> None:
        self.balancer.apply(routes)
        self.metrics.apply(routes.generation, self.balancer.services.values())
        self.settlement.apply(self.balancer.services.values())
        self._shadow.apply(self.balancer.services.values())
        self._regions.apply(self.balancer.services.values())

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope: the process's lifespan or one request."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            await self._request(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        self._tracing.start()
        await self._upstream.start()
        self._guard.start()
        self._audit.start()
        self._shadow.start()
        self.health.start()
        self.balancer.apply(Routes())
        self._regions.apply(self.balancer.services.values())
        self._regions.start()
        self._file.watch(self._config.routes_poll_seconds)
        if self._cache.keeps:
            self._policies.start()
        push = self._tracing.pushing(partial(self._shown_in, asyncio.get_running_loop()))
        push.start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        self._file.close()
        await self._regions.close()
        await self._policies.close()
        await self._shadow.close()
        await self.health.close()
        await self._upstream.close()
        await self._cache.close()
        await self._guard.close()
        await self._audit.close()
        await asyncio.to_thread(push.close)
        await asyncio.to_thread(self._tracing.close)
        await send({"type": "lifespan.shutdown.complete"})

    async def _request(self, scope: Message, receive: Receive, send: Send) -> None:
        headers: dict[bytes, bytes] = dict(scope["headers"])
        request_id = headers.get(b"x-request-id", b"")
        if not REQUEST_ID.fullmatch(request_id):
            request_id = secrets.token_hex(16).encode()
        abort = scope["extensions"][EXTENSION]["abort"]
        reply = Reply(send, abort, [(b"x-request-id", request_id)])
        has_body = b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"
        scores = scope["path"] in FEEDBACK
        size = self._config.body_bytes_max
        body = Body(self._bodies, min(size, FEEDBACK_BYTES_MAX) if scores else size)
        address = key = ""
        if scope["path"] in GENERATING:
            traces.begin(self._tracing, scope, headers)
        try:
            address = self._guard.address(scope, headers)
            if scope["path"] in GENERATING:
                _require(scope, "POST")
                caller = self._guard.identify(headers, address)
                key = caller.key
                deadline = asyncio.get_running_loop().time() + self._deadline_seconds(headers)
                if has_body:
                    await self._read(headers, receive, body)
                if not body.cut:
                    given = (scope["path"], scope["headers"], caller, body.content, deadline)
                    await self._watched(Question(*given, reply), receive)
            elif scores:
                await self._score(scope, headers, has_body, receive, body, reply)
            else:
                if scope["path"].startswith(PREFIX):
                    self._guard.identify(headers, address)
                answer = self._local(scope)
                reply.common += CLOSING if has_body else ()
                await reply.whole(*answer)
        except Refusal as refusal:
            self.metrics.refuse(refusal.code)
            if refusal.status == 401:
                self._guard.strike(address, "failed_authentication")
            if has_body and not body.whole and refusal.code != "banned":
                await _refuse_and_linger(refusal, receive, reply)
            else:
                await reply.refuse(refusal)
        finally:
            body.give_back()
            if reply.refusal is not None:
                self._audit.refused(reply.refusal, key, address)
            traces.end(reply)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, body: Body) -> None:
        """Read a request's body within its bounds. Raises Refusal."""
        body.announce(int(headers.get(b"content-length", b"0")))  # digits: the parser has checked
        try:
            async with asyncio.timeout(self._config.body_seconds_max):
                while not body.whole and not body.cut:
                    body.add(await receive())
        except TimeoutError:
            text = f"the request's body took longer than {self._config.body_seconds_max:g} s"
            raise Refusal(408, text, "body_too_slow") from None

    async def _score(
        self,
        scope: Message,
        headers: dict[bytes, bytes],
        has_body: bool,
        receive: Receive,
        body: Body,
        reply: Reply,
    ) -> None:
        """Take an evaluator's score; who is none has no body read. Raises Refusal."""
        _require(scope, "POST")
        self._feedback.authenticate(headers)
        try:
            async with asyncio.timeout(self._deadline_seconds(headers)):
                if has_body:
                    await self._read(headers, receive, body)
        except TimeoutError:
            raise Refusal(504, "the deadline has passed", "deadline_passed") from None
        if not body.cut:
            _, head, content = _json(self._feedback.take(body.content))
            await reply.whole(202, head, content)

    def _shown(self) -> bytes:
        """What the gateway counts, in Prometheus' text format."""
        more = [line for part in self._counting for line in part.lines()]
        more += traces.lines(self._tracing)
        return self.metrics.exposition(self.health.ejections, self._admission.waiting, more)

    def _shown_in(self, loop: asyncio.AbstractEventLoop) -> str:
        """The same for another thread: counts change on the loop alone."""

        async def show() -> str:
            return self._shown().decode()

        return asyncio.run_coroutine_threadsafe(show(), loop).result(SHOWN_SECONDS_MAX)

    def _local(self, scope: Message) -> tuple[int, list[Header], bytes]:
        """Answer what concerns the gateway itself."""
        path = scope["path"]
        known = path in ("/healthz", "/metrics", "/serin/routes", READY_PATH, MODELS)
        if not known and not path.startswith(MODELS + "/"):
            raise Refusal(404, f"there is nothing at {path[:200]!r}", "unknown_path")
        _require(scope, "GET")
        if path == "/metrics":
            return 200, [(b"content-type", CONTENT_TYPE)], self._shown()
        if path == "/healthz":
            return _json({"status": "ok", "generation": self.balancer.routes.generation})
        if path == READY_PATH:
            return self._ready()
        if path == "/serin/routes":
            return _json(self.balancer.routes)
        if path == MODELS:
            names = list(self.balancer.services)
            return _json({"object": "list", "data": [_model(name) for name in names]})
        return _json(_model(self._handler.service(path.removeprefix(MODELS + "/")).name))

    def _ready(self) -> tuple[int, list[Header], bytes]:
        """What another region's gateway asks: whether anything can be answered in this one."""
        found = any(
            endpoint.available
            for service in self.balancer.services.values()
            for arm in service.arms
            for endpoint in arm.endpoints
        )
        status, head, content = _json({"ready": found})
        return status if found else 503, head, content

    async def _watched(self, question: Question, receive: Receive) -> None:
        """Work on a request that is here whole; stop as soon as its client closes."""
        task = asyncio.current_task()
        assert task is not None
        reply = question.reply
        working = True

        def closed(_: asyncio.Future[Message]) -> None:
            if working and not reply.finished:
                reply.gone = True
                task.cancel()

        watch = asyncio.ensure_future(receive())
        watch.add_done_callback(closed)
        try:
            await self._handler.answer(question)
        except asyncio.CancelledError:
            task.uncancel()
            if not reply.gone:  # the drain took too long
                text = "the gateway stops; send the request again"
                await reply.refuse(Refusal(503, text, "stopping", retry_after_seconds=1))
        finally:
            working = False
            watch.cancel()

    def _deadline_seconds(self, headers: dict[bytes, bytes]) -> float:
        """The configured deadline, or less if the client asks for less."""
        asked = headers.get(DEADLINE_HEADER.encode())
        if asked is None:
            return self._config.deadline_seconds
        try:
            seconds = float(asked)
        except ValueError:
            seconds = 0.0
        if not seconds > 0:
            text = f"{DEADLINE_HEADER} must be a positive number of seconds"
            raise Refusal(400, text, "invalid_deadline")
        return min(seconds, self._config.deadline_seconds)


async def _refuse_and_linger(refusal: Refusal, receive: Receive, reply: Reply) -> None:
    """Send the whole refusal, then read on for a moment before the connection is closed."""
    reply.refusal = refusal
    length = (b"content-length", str(len(refusal.body)).encode())
    await reply.start(refusal.status, [*refusal.headers, length, *CLOSING])
    await reply.write(refusal.body)
    left = LINGER_BYTES_MAX
    try:
        async with asyncio.timeout(LINGER_SECONDS_MAX):
            more = True
            while more and left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                more = message.get("more_body", False)
    except TimeoutError:
        pass  # a client that neither sends nor closes
    await reply.end()


def _loop_seconds() -> float:
    return asyncio.get_running_loop().time()


def _require(scope: Message, method: str) -> None:
    found = scope["method"]
    if found != method and not (found == "HEAD" and method == "GET"):
        allow = (b"allow", method.encode())
        text = f"{scope['path']} takes {method}, not {found}"
        raise Refusal(405, text, "wrong_method", (allow,))


def _json(value: Any) -> tuple[int, list[Header], bytes]:
    return 200, [JSON], msgspec.json.encode(value)


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "serin"}
