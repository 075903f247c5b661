"""The predictor's own routes: OpenAI-style chat, text and models, identity and metrics."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from observability.tracing import Tracing
from serving import request_traces
from serving.answering import Answering, Prepared
from serving.answers import DONE, AnswerForm, Choice, model_card
from serving.api_errors import ApiError, draining, model_not_found, safety_headers
from serving.auditing import Record
from serving.connections import (
    CLIENT_GONE_STATUS,
    ClientGone,
    Ending,
    EventStream,
    error_response,
    read_body,
    unless_gone,
)
from serving.edge import RECORD
from serving.lifecycle import Identity, Lifecycle
from serving.openapi import DEADLINE_HEADER, JSON, RESPONSE_ID_HEADER, describe
from serving.predictor_config import PredictorConfig
from serving.predictor_metrics import PredictorMetrics
from serving.protocol import Job, parse_chat, parse_text
from serving.safety.gate import Gate

if TYPE_CHECKING:
    from fastapi import FastAPI

RESPONSE_ID = re.compile(r"[A-Za-z0-9_-]{16,512}")
Parse = Callable[[bytes, tuple[str, ...], PredictorConfig], Job]


class PredictorApi:
    """Answers requests with one model."""

    def __init__(
        self,
        identity: Identity,
        config: PredictorConfig,
        answering: Answering,
        metrics: PredictorMetrics,
        lifecycle: Lifecycle,
        gate: Gate,
        tracing: Tracing,
    ) -> None:
        self._identity = identity
        self._tracing = tracing
        self._gate = gate
        self._config = config
        self._answering = answering
        self._metrics = metrics
        self._lifecycle = lifecycle
        self._created = int(time.time())

    def add_to(self, app: "FastAPI") -> None:
        """Register every route of this file, and describe all of the predictor's."""
        post: dict[str, Any] = {"methods": ["POST"], "response_model": None}
        get: dict[str, Any] = {"methods": ["GET"], "response_model": None}
        app.add_api_route("/openai/v1/chat/completions", self.chat, **post)
        app.add_api_route("/openai/v1/completions", self.text, **post)
        app.add_api_route("/openai/v1/models", self.models, **get)
        app.add_api_route("/openai/v1/models/{name}", self.model, **get)
        app.add_api_route("/serin/identity", self.identity, **get)
        app.add_api_route("/metrics", self.metrics, **get)
        document = describe(self._identity, self._config)
        vars(app)["openapi"] = lambda: document

    async def chat(self, request: Request) -> Response:
        """POST /openai/v1/chat/completions."""
        return await self._serve(request, parse_chat)

    async def text(self, request: Request) -> Response:
        """POST /openai/v1/completions."""
        return await self._serve(request, parse_text)

    async def models(self) -> Response:
        """GET /openai/v1/models."""
        cards = [model_card(name, self._created) for name in self._identity.names]
        return Response(msgspec.json.encode({"object": "list", "data": cards}), media_type=JSON)

    async def model(self, name: str) -> Response:
        """GET /openai/v1/models/NAME."""
        if name not in self._identity.names:
            return error_response(model_not_found(name, self._identity.names))
        return Response(msgspec.json.encode(model_card(name, self._created)), media_type=JSON)

    async def identity(self) -> Response:
        """GET /serin/identity: which bundle this process answers with, under which policy."""
        now = replace(self._identity, policy_hash=self._gate.policy_hash)
        return Response(msgspec.json.encode(now), media_type=JSON)

    async def metrics(self, request: Request) -> Response:
        """GET /metrics, for Prometheus."""
        body, content_type = self._metrics.exposition(request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type})

    async def _serve(self, request: Request, parse: Parse) -> Response:
        ending = Ending(self._metrics)
        headers, began = request.headers, ending.arrived_seconds
        request_traces.begin(self._tracing, headers, self._identity, began)
        record: Record = request.scope[RECORD]
        try:
            if self._lifecycle.draining:
                raise draining()
            deadline_seconds = self._deadline(request)
            body = await read_body(request, self._config.body_bytes_max)
            record.asked(body)
            job = parse(body, self._identity.names, self._config)
            request_traces.asked(job)
            prepared = await self._answering.prepare(job, record, began, deadline_seconds)
            form = AnswerForm(self._identity.served_as, job.chat, _response_id(request))
            record.response_id = form.id
            if job.stream:
                return await self._stream(request, prepared, form, ending, record)
            answer = await unless_gone(request.receive, self._whole(prepared, form))
            ending.finish("ok")
            return answer
        except ApiError as error:
            record.reason = error.code or error.kind
            ending.finish(error.outcome)
            return error_response(error)
        except ClientGone:
            record.reason = "client_gone"
            ending.finish("cancelled")
            return Response(status_code=CLIENT_GONE_STATUS)
        except asyncio.CancelledError:  # the drain's time is over; whoever cancels ends the process
            ending.finish("error")
            return error_response(draining())
        except Exception:
            ending.finish("error")
            raise

    async def _whole(self, prepared: Prepared, form: AnswerForm) -> Response:
        job = prepared.job
        choices = [Choice() for _ in range(len(job.prompts) * job.choices)]
        async with aclosing(self._answering.answer(prepared)) as pieces:
            async for index, piece in pieces:
                choices[index].add(piece)
        completion_tokens = sum(choice.tokens for choice in choices)
        self._metrics.tokens(prepared.prompt_tokens, completion_tokens)
        reasons = [str(choice.finish_reason) for choice in choices]
        request_traces.answered(form.id, prepared.prompt_tokens, completion_tokens, reasons)
        held_back = sum(choice.finish_reason == "content_filter" for choice in choices)
        headers = safety_headers(prepared.screened.policy_hash, held_back)
        body = form.whole(choices, prepared.prompt_tokens)
        return Response(body, headers=headers, media_type=JSON)

    async def _stream(
        self,
        request: Request,
        prepared: Prepared,
        form: AnswerForm,
        ending: Ending,
        record: Record,
    ) -> Response:
        held_back: set[int] = set()
        events = _noted(self._events(prepared, form, held_back), record)
        try:
            first = await unless_gone(request.receive, _next(events))
        except BaseException:
            await events.aclose()
            raise
        headers = safety_headers(prepared.screened.policy_hash, len(held_back))
        return EventStream(first, events, prepared.ends_at, ending, headers)

    async def _events(
        self, prepared: Prepared, form: AnswerForm, held_back: set[int]
    ) -> AsyncGenerator[bytes, None]:
        """Yield the answer's events; notes in `held_back` which choices were blocked so far."""
        tokens: dict[int, int] = {}
        reasons: list[str] = []
        async with aclosing(self._answering.answer(prepared)) as pieces:
            async for index, piece in pieces:
                opening = b"" if index in tokens else form.opening(index)
                tokens[index] = piece.completion_tokens
                if piece.finish_reason is not None:
                    reasons.append(piece.finish_reason)
                if piece.finish_reason == "content_filter":
                    held_back.add(index)
                yield opening + form.piece(index, piece)
        completion_tokens = sum(tokens.values())
        self._metrics.tokens(prepared.prompt_tokens, completion_tokens)
        request_traces.answered(form.id, prepared.prompt_tokens, completion_tokens, reasons)
        last = b""
        if prepared.job.include_usage:
            last = form.counts(prepared.prompt_tokens, completion_tokens)
        yield last + DONE

    def _deadline(self, request: Request) -> float:
        text = request.headers.get(DEADLINE_HEADER)
        if text is None:
            return self._config.deadline_seconds
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds > 0):
            raise ApiError(
                f"{DEADLINE_HEADER} must be a number of seconds above 0.", param=DEADLINE_HEADER
            )
        return min(seconds, self._config.deadline_seconds)


def _response_id(request: Request) -> str:
    """The id that the gateway gave this answer; empty without one, or for one that it cannot be."""
    text = request.headers.get(RESPONSE_ID_HEADER, "")
    return text if RESPONSE_ID.fullmatch(text) else ""


async def _noted(
    events: AsyncGenerator[bytes, None], record: Record
) -> AsyncGenerator[bytes, None]:
    """Pass events on; the record keeps why they ended early."""
    try:
        async with aclosing(events):
            async for event in events:
                yield event
    except ApiError as error:
        record.reason = error.code or error.kind
        raise


async def _next(events: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(events)
