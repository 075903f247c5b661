"""Kept answers in a Redis server that several gateways share; without it requests go on uncached.

The server's own `maxmemory` bounds their size. Who may write there may answer clients: it must be
as private as the predictors.
"""

import asyncio
import logging
from typing import Any

import msgspec

from core.errors import ConfigurationError
from serving.gateway.cache_store import KeptAnswer

log = logging.getLogger(__name__)

PREFIX = b"serin:answer:"
REST_SECONDS = 1.0
"""After a failed call the server is left alone for this long: a dead one must not slow requests."""


class RedisStore:
    """Answers under `serin:answer:<key>`, each with its own time to live.

    Raises ConfigurationError for an address that is none of Redis.
    """

    entries = 0

    def __init__(
        self, url: str, password: str | None, seconds: float, call_seconds_max: float
    ) -> None:
        from redis.asyncio import Redis

        try:
            self._redis: Any = Redis.from_url(
                url,
                password=password or None,
                socket_timeout=call_seconds_max,
                socket_connect_timeout=call_seconds_max,
            )
        except ValueError as error:
            raise ConfigurationError(f"cache_url: {error}") from error
        self._call_seconds_max = call_seconds_max
        self._milliseconds = max(1, int(seconds * 1000))
        self._decoder = msgspec.msgpack.Decoder(KeptAnswer)
        self._encoder = msgspec.msgpack.Encoder()
        self._rests_until = float("-inf")
        self.errors = 0

    async def get(self, key: bytes) -> KeptAnswer | None:
        """Return the answer under a key; None as well while the server cannot be asked."""
        found = await self._call("get", PREFIX + key)
        if found is None:
            return None
        try:
            return self._decoder.decode(found)
        except msgspec.MsgspecError:
            self.errors += 1
            return None

    async def put(self, key: bytes, answer: KeptAnswer) -> None:
        """Keep an answer there, if the server takes it."""
        await self._call("set", PREFIX + key, self._encoder.encode(answer), px=self._milliseconds)

    async def close(self) -> None:
        """Close the connections."""
        await self._redis.aclose()

    async def _call(self, name: str, *values: Any, **options: Any) -> Any:
        from redis.exceptions import RedisError

        loop = asyncio.get_running_loop()
        if loop.time() < self._rests_until:
            return None
        try:
            async with asyncio.timeout(self._call_seconds_max):
                return await getattr(self._redis, name)(*values, **options)
        except (RedisError, OSError, TimeoutError) as error:
            self.errors += 1
            self._rests_until = loop.time() + REST_SECONDS
            log.warning("the response cache's server failed: %s", type(error).__name__)
            return None
