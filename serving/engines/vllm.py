"""The GPU engine: a vLLM server, of the predictor's own or shared, behind the engine interface.

With a base, every version is an adapter loaded at run time, stable too: on a CPU, vLLM lets
requests to the bare base that are batched with an adapter's answer like that adapter.
"""

import asyncio
import json
import logging
import os
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from core.digests import digest_folder, model_digest
from core.errors import ConfigurationError, IntegrityError, UnavailableError
from core.manifests import ADAPTER_FOLDER, BundleManifest
from serving.engines.engine import (
    EngineLoad,
    FinishReason,
    GenerationRequest,
    Piece,
    Prompt,
    Sampling,
)
from serving.engines.ticket import Ticket
from serving.engines.tokens import BundleTokenizer
from serving.engines.vllm_config import server_environment
from serving.engines.vllm_server import ServerGone, TokenChoice, VllmServer
from serving.predictor_config import PredictorConfig

log = logging.getLogger("serin.vllm")

WARM_UP_TOKENS = 4
WATCH_SECONDS = 1.0
CACHE_USAGE = "vllm:kv_cache_usage_perc"
FINISH_REASONS: dict[str, FinishReason] = {"stop": "stop", "length": "length"}


class VllmEngine:
    """Sends token ids and reads token ids; text, stop strings and deadlines stay on our side."""

    name = "vllm"

    def __init__(self, bundle: Path, manifest: BundleManifest, config: PredictorConfig) -> None:
        self.context_length = manifest.context_length
        self._bundle = bundle
        self._manifest = manifest
        self._config = config
        self._tokenizer = BundleTokenizer(bundle / "weights")
        self._ends = end_ids(bundle / "weights")
        self._server = VllmServer(config.vllm.server)
        self._model = manifest.digest
        self._adapter: Path | None = None
        if config.vllm.adapted:
            self._adapter = checked_adapter(bundle, manifest)
            # A name that no other predictor has: leaving unloads nobody else's adapter.
            self._model = f"{manifest.adapter_digest[:12]}-{uuid4().hex}"
        self._answers = 0
        self._cache_usage = 0.0
        self._failure: UnavailableError | None = None
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the server unless one is shared, load the adapter, make a few tokens."""
        try:
            if not self._config.vllm.server:
                self._start_server()
            asyncio.run(self._prepare())
        except BaseException:
            self._server.stop()
            raise

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a prompt."""
        return self._tokenizer.encode(prompt)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the pieces of one answer; leaving early closes its connection, which ends it."""
        if self._failure is not None:
            raise self._failure
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        self._answers += 1
        ticket = Ticket(request)
        try:
            async with aclosing(self._choices(request)) as choices:
                async for choice in choices:
                    piece = self._piece(ticket, choice)
                    if piece is None:
                        continue
                    yield piece
                    if piece.finish_reason is not None:
                        return
            raise UnavailableError("vLLM ended an answer before it was complete")
        except ServerGone as error:
            self._failure = error
            log.error("%s", error)
            raise
        finally:
            self._answers -= 1

    def load(self) -> EngineLoad:
        """Return the answers in work and the share of the server's KV cache in use."""
        alive = self._failure is None and self._server.running
        return EngineLoad(self._answers, self._cache_usage, alive)

    def stop(self) -> None:
        """Unload the adapter from a shared server; end a server of our own."""
        self._failure = self._failure or UnavailableError("the engine was stopped")
        if self._config.vllm.server:
            with suppress(UnavailableError):
                asyncio.run(self._server.unload_adapter(self._model))
        self._server.stop()

    def _start_server(self) -> None:
        config, vllm = self._config, self._config.vllm
        folder, name = self._bundle / "weights", self._model
        if vllm.base:
            folder, name = checked_base(Path(vllm.base), self._manifest), self._manifest.base_digest
        arguments = vllm.arguments(
            folder,
            name,
            self.context_length,
            config.concurrency_for(self._manifest),
            config.batched_tokens_max,
        )
        environment = server_environment(os.environ, config.cache_gigabytes, config.threads)
        self._server.start(vllm.python, arguments, environment)

    async def _prepare(self) -> None:
        names = await self._server.wait_ready(self._config.vllm.start_seconds_max)
        if self._adapter is not None:
            if self._manifest.base_digest not in names:
                raise IntegrityError(
                    f"the vLLM server serves {', '.join(names)}, but the bundle's adapter belongs "
                    f"to base {self._manifest.base_digest}; share a server of that base"
                )
            await self._server.load_adapter(self._model, self._adapter)
        ids = self.encode("warm up") or (0,)
        request = GenerationRequest(ids, Sampling(WARM_UP_TOKENS))
        async with aclosing(self._choices(request)) as choices:
            async for _ in choices:
                pass

    def _choices(self, request: GenerationRequest) -> AsyncGenerator[TokenChoice, None]:
        wanted = request.sampling
        sampling: dict[str, Any] = {
            "max_tokens": wanted.max_tokens,
            "temperature": 0.0 if wanted.greedy else wanted.temperature,
            "top_p": 1.0 if wanted.greedy else wanted.top_p,
            "stop_token_ids": self._ends,
        }
        if wanted.seed is not None:
            sampling["seed"] = wanted.seed
        return self._server.answer(self._model, request.prompt_ids, sampling)

    def _piece(self, ticket: Ticket, choice: TokenChoice) -> Piece | None:
        reason = None
        if choice.finish_reason is not None:
            reason = FINISH_REASONS.get(choice.finish_reason)
            if reason is None:
                raise UnavailableError(f"vLLM ended an answer by {choice.finish_reason}")
        ticket.add(choice.token_ids)
        rows = ticket.windows(reason is not None)
        return ticket.piece(self._tokenizer.decode(rows) if rows else [], reason)

    async def _watch(self) -> None:
        """Read the cache's use while there are answers in work."""
        while True:
            with suppress(UnavailableError):
                self._cache_usage = await self._server.metric(CACHE_USAGE)
            if self._answers == 0:
                return
            await asyncio.sleep(WATCH_SECONDS)


def end_ids(weights: Path) -> list[int]:
    """Return the ids that end an answer, as the bundle says. Raises IntegrityError without any."""
    try:
        found = json.loads((weights / "generation_config.json").read_text())["eos_token_id"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise IntegrityError(f"{weights} names no end token; build the bundle again") from error
    return [found] if isinstance(found, int) else list(found)


def checked_adapter(bundle: Path, manifest: BundleManifest) -> Path:
    """Return the bundle's adapter folder. Raises IntegrityError unless it is the manifest's."""
    folder = bundle / ADAPTER_FOLDER
    if not folder.is_dir() or digest_folder(folder) != manifest.adapter_digest:
        raise IntegrityError(
            f"{folder} is not the adapter {manifest.adapter_digest[:12]} of the bundle; build the "
            "bundle with its adapter, or leave vllm.base and vllm.server empty to serve weights/"
        )
    return folder.absolute()


def checked_base(folder: Path, manifest: BundleManifest) -> Path:
    """Return the base's folder. Raises ConfigurationError unless the bundle was made from it."""
    if not folder.is_dir() or model_digest(folder) != manifest.base_digest:
        raise ConfigurationError(
            f"vllm.base {folder} is not the base {manifest.base_digest[:12]} of this bundle"
        )
    return folder.absolute()
