"""Which endpoints rest after a failure, and when they may return: passive ejection, active probes.

Knows endpoints and a probe; opens no connection itself.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from serving.gateway.balancer import Balancer, Endpoint
from serving.gateway.config import GatewayConfig

log = logging.getLogger(__name__)

FORGET_SECONDS = 30.0
"""An endpoint that did not fail for this long starts again with the shortest rest."""

Probe = Callable[[Endpoint], Awaitable[bool]]
"""probe(endpoint) -> whether its readiness route answered 200 in time; raises nothing."""


class Health:
    """Ejects endpoints that fail or hang; asks their readiness before requests go there again."""

    def __init__(self, config: GatewayConfig, balancer: Balancer, probe: Probe) -> None:
        self._config = config
        self._balancer = balancer
        self._probe = probe
        self._tasks: set[asyncio.Task[None]] = set()
        self.ejections: dict[str, int] = {}
        """Ejections so far by reason."""

    def start(self) -> None:
        """Begin to look for hung endpoints on the running loop."""
        self._spawn(self._watch())

    async def close(self) -> None:
        """Stop all probing."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def eject(self, endpoint: Endpoint, reason: str) -> None:
        """Send nothing to `endpoint` until it rested and answers its readiness route."""
        if endpoint.ejected:
            return
        now = asyncio.get_running_loop().time()
        if now - endpoint.failed_at_seconds > FORGET_SECONDS:
            endpoint.failures = 0
        endpoint.ejected = True
        self.ejections[reason] = self.ejections.get(reason, 0) + 1
        log.warning("%s (%s) ejected: %s", endpoint.url, endpoint.where, reason)
        self._balancer.notify()
        self._spawn(self._return_when_ready(endpoint))

    async def _return_when_ready(self, endpoint: Endpoint) -> None:
        config, loop = self._config, asyncio.get_running_loop()
        while not endpoint.gone:
            endpoint.failed_at_seconds = loop.time()
            rest = config.eject_seconds_first * 2 ** min(endpoint.failures, 16)
            endpoint.failures += 1
            await asyncio.sleep(min(rest, config.eject_seconds_max))
            if await self._probe(endpoint):
                break
        endpoint.ejected = False
        endpoint.missed_probes = 0
        self._balancer.returned(endpoint)
        if not endpoint.gone:
            log.warning("%s (%s) is back", endpoint.url, endpoint.where)
        self._balancer.notify()

    async def _watch(self) -> None:
        """A stopped process keeps its connections: only its readiness route tells it from a slow
        one. Where requests may go to other regions, every endpoint is asked, else only those that
        left a request without a byte for long."""
        config, loop = self._config, asyncio.get_running_loop()
        every = bool(config.regions.others)
        pause = min(config.suspect_seconds, config.probe_seconds_max)
        while True:
            await asyncio.sleep(config.regions.probe_seconds if every else pause)
            before = loop.time() - config.suspect_seconds
            asked = [
                item
                for item in self._balancer.endpoints()
                if not item.ejected
                and (
                    (every and item.ready)
                    or next(iter(item.waiting.values()), loop.time()) < before
                )
            ]
            await asyncio.gather(*(self._examine(endpoint) for endpoint in asked))

    async def _examine(self, endpoint: Endpoint) -> None:
        if await self._probe(endpoint):
            endpoint.missed_probes = 0
            return
        endpoint.missed_probes += 1
        config = self._config
        most = config.regions.probes_missed_max if config.regions.others else config.hung_probes
        if endpoint.missed_probes < most:
            return
        now = asyncio.get_running_loop().time()
        self.eject(endpoint, "hung")
        for limit in list(endpoint.waiting):
            if not limit.expired():
                limit.reschedule(now)  # these requests may be sent elsewhere

    def _spawn(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
