"""Answers given again: which requests may be, under which key, and one asking for equal ones.

A service with a canary is left alone: an answer from here would be no observation of either arm.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from hashlib import blake2b
from typing import Any

import msgspec

from serving.gateway.balancer import Arm, Service
from serving.gateway.cache_store import CacheStore, KeptAnswer
from serving.gateway.config import GatewayConfig
from serving.gateway.exposition import family, labels
from serving.gateway.memory_store import MemoryStore

CACHE_HEADER = b"x-serin-cache"
"""From a client: `allow` for a request that is not deterministic, `bypass` for one that shall be
answered anew. To a client: `hit` or `miss`."""
TENANT_HEADERS = (b"authorization", b"x-api-key")
KEY_BYTES = 32


class Asked(msgspec.Struct):
    """The part of a request's body that the gateway needs; the predictor checks all of it."""

    model: str
    temperature: Any = None
    stream: Any = False


class ResponseCache:
    """Finds and keeps whole answers; counts what it did."""

    def __init__(self, store: CacheStore | None) -> None:
        self._store = store
        self._working: dict[bytes, asyncio.Future[KeptAnswer | None]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    @property
    def keeps(self) -> bool:
        """Whether there is a place for answers."""
        return self._store is not None

    def key(
        self,
        service: Service,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes,
        asked: Asked,
        policy: str | None,
        always: bool = False,
    ) -> bytes | None:
        """Return the key of a request's answer, or None when it must be made anew.

        The key holds who asks (a digest of the credentials), what answers (model version and
        bundle) under which safety policy, and the request itself, whatever the order of its
        fields. `policy` is the digest of the one in force, None while it is not known. With
        `always` the request need not be deterministic.
        """
        parts = None
        if policy is not None:
            parts = self._parts(service, path, headers, body, asked, always)
        if parts is None:
            self._count(service.name, "bypass")
            return None
        digest = blake2b(digest_size=KEY_BYTES)
        for part in ((policy or "").encode(), *parts):
            digest.update(len(part).to_bytes(8) + part)
        return digest.digest()

    def _parts(
        self,
        service: Service,
        path: str,
        headers: dict[bytes, bytes],
        body: bytes,
        asked: Asked,
        always: bool,
    ) -> tuple[bytes, ...] | None:
        wish = headers.get(CACHE_HEADER, b"").lower()
        control = headers.get(b"cache-control", b"").lower()
        if self._store is None or len(service.arms) > 1 or asked.stream or wish == b"bypass":
            return None
        if b"no-cache" in control or b"no-store" in control:
            return None
        if asked.temperature != 0 and wish != b"allow" and not always:
            return None
        try:
            request = msgspec.json.encode(msgspec.json.decode(body), order="sorted")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None  # the predictor says what is wrong with it
        tenant = (headers.get(name, b"") for name in TENANT_HEADERS)
        return (path.encode(), *answerer(service.arms[0]), *tenant, request)

    async def answer(
        self,
        service: str,
        key: bytes,
        deadline: float,
        make: Callable[[], Awaitable[KeptAnswer | None]],
    ) -> KeptAnswer | None:
        """Return a kept answer, or None after `make` has answered the client itself.

        Of equal requests at the same time one is made, and the others wait for its answer until
        their `deadline` (loop time; TimeoutError after); if it is not to be kept they go on by
        themselves. `make` gives what to keep, or None.
        """
        assert self._store is not None
        while True:
            kept = await self._store.get(key)
            if kept is not None:
                self._count(service, "hit")
                return kept
            working = self._working.get(key)
            if working is None:
                self._count(service, "miss")
                await self._lead(key, make)
                return None
            async with asyncio.timeout_at(deadline):
                await asyncio.wait([working])
            if working.cancelled():
                continue  # its client left or was refused: another takes its place
            kept = working.result()
            self._count(service, "miss" if kept is None else "joined")
            if kept is None:
                await make()
            return kept

    async def close(self) -> None:
        """Close the place where answers are kept."""
        if self._store is not None:
            await self._store.close()

    def lines(self) -> Iterator[str]:
        """Yield what the cache did, in Prometheus' text format."""
        yield from family(
            "serin_gateway_cache_total",
            "counter",
            "Requests by what the response cache did.",
            (
                (labels(service=service, outcome=outcome), count)
                for (service, outcome), count in self._counts.items()
            ),
        )
        if self._store is None:
            return
        name = "serin_gateway_cache_entries"
        yield from family(name, "gauge", "Answers kept in memory.", [("", self._store.entries)])
        name, text = "serin_gateway_cache_errors_total", "Calls that the cache's server failed."
        yield from family(name, "counter", text, [("", self._store.errors)])

    async def _lead(self, key: bytes, make: Callable[[], Awaitable[KeptAnswer | None]]) -> None:
        assert self._store is not None
        working = asyncio.get_running_loop().create_future()
        self._working[key] = working
        try:
            kept = await make()
            if kept is not None:
                await self._store.put(key, kept)
            working.set_result(kept)
        finally:
            working.cancel()  # without effect once it has a result
            del self._working[key]

    def _count(self, service: str, outcome: str) -> None:
        name = (service, outcome)
        self._counts[name] = self._counts.get(name, 0) + 1


def answerer(arm: Arm) -> tuple[bytes, bytes]:
    """What makes an arm's answers its own: model version and bundle."""
    return arm.model_version.encode(), arm.bundle_digest.encode()


def open_store(config: GatewayConfig, password: str | None) -> CacheStore | None:
    """Return the configured place for answers, None when nothing shall be kept."""
    if config.cache_seconds == 0:
        return None
    if config.cache_url:
        from serving.gateway.redis_store import RedisStore

        return RedisStore(
            config.cache_url, password, config.cache_seconds, config.cache_call_seconds_max
        )
    return MemoryStore(config.cache_seconds, config.cache_bytes_max)
