"""Which region a request goes to: by weight, by who asks, or in order, and only to healthy ones.

The region is chosen before the arm and never by it: the canary lives in this gateway's own region,
and only its stable servers are judged, so that no canary moves a share.
"""

import asyncio
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from serving.gateway.balancer import Arm, Endpoint, Service
from serving.gateway.config import GatewayConfig
from serving.gateway.exposition import family, labels
from serving.gateway.limits import Admission
from serving.gateway.pools import Pool, Region
from serving.gateway.region_config import RegionsConfig

LOOK_SECONDS = 0.1
Number = Callable[[str], float]
"""number(region's name) -> at least 0, below 1: by chance, or the same each time for one client."""


def pick(pools: Sequence[Pool], now: float, number: Number) -> Pool:
    """Choose by weight: the region with the largest -weight / ln(number).

    By chance this is a draw in proportion to the weights; for one client it is its region as long
    as that one has its share, and a share that grows moves clients only there (weighted rendezvous
    hashing: Schindelhauer and Schomaker, 2005). When no region is well the weights alone count.
    """
    shares = [pool.region.weight * pool.ramp(now) for pool in pools]
    if not any(shares):
        shares = [pool.region.weight or 1e-9 for pool in pools]
    found = [(share, pool) for share, pool in zip(shares, pools, strict=True) if share > 0]
    if len(found) == 1:
        return found[0][1]
    scores = [share / -math.log(_inside(number(pool.region.name))) for share, pool in found]
    return found[scores.index(max(scores))][1]


def pick_first(pools: Sequence[Pool], now: float, number: Number) -> Pool:
    """Choose the first that is well; one that returns gets a growing part, the next the rest."""
    for pool in pools:
        if number(pool.region.name) < pool.ramp(now):
            return pool
    return max(pools, key=lambda pool: pool.ramp(now))


class Regions:
    """All pools by service and region; the first region is this gateway's own."""

    def __init__(
        self,
        config: GatewayConfig,
        authorizations: Mapping[str, str],
        clock: Callable[[], float],
    ) -> None:
        """`authorizations` are the headers that other regions ask for, by the region's name."""
        self._config = config.regions
        self._clock = clock
        self._random = random.Random(config.seed)
        self._pick = pick_first if self._config.failover_only else pick
        own = self._config
        given = [(own.name, own.weight), *((item.name, item.weight) for item in own.others)]
        regions = [
            Region(
                name,
                weight,
                Admission(places, config.waiting_max, config.waiting_seconds_max),
                authorizations.get(name, ""),
            )
            for (name, weight), places in zip(
                given, own.places(config.concurrency_max), strict=True
            )
        ]
        self.home, *others = regions
        self.shed = {region.name: 0 for region in regions}
        self._elsewhere: dict[str, list[Pool]] = {}
        self.arms: dict[str, tuple[Arm, ...]] = {}
        """The servers of other regions by service, as the balancer takes them."""
        for region, item in zip(others, own.others, strict=True):
            for service, urls in item.models.items():
                self._add(region, service, urls)
        self.pools: dict[str, list[Pool]] = {}
        self._home: dict[str, Pool] = {}
        self._looking: asyncio.Task[None] | None = None

    @property
    def several(self) -> bool:
        """Whether there is any region beside this gateway's own."""
        return bool(self._config.others)

    def _add(self, region: Region, service: str, urls: Iterable[str]) -> None:
        pool = Pool(region, self._config)
        pool.endpoints = tuple(Endpoint("", url, region.name) for url in urls)
        for endpoint in pool.endpoints:
            endpoint.pool = pool
        arm = Arm("stable", "", "", 100.0, tuple(pool.endpoints), region=region.name)
        self._elsewhere.setdefault(service, []).append(pool)
        self.arms[service] = (*self.arms.get(service, ()), arm)

    def apply(self, services: Iterable[Service]) -> None:
        """Note where the services' stable servers are; a service's counts outlive new routes."""
        if not self.several:
            return
        home, pools = self._home, dict(self._elsewhere)
        self._home = {}
        for service in services:
            stable = service.arm("stable")
            if stable is None:
                continue
            pool = self._home[service.name] = home.get(service.name) or Pool(
                self.home, self._config
            )
            pool.endpoints = stable.endpoints
            for arm in service.arms:
                for endpoint in arm.endpoints:
                    endpoint.pool = pool if arm is stable else None
            pools[service.name] = [pool, *self._elsewhere.get(service.name, ())]
        self.pools = pools

    def start(self) -> None:
        """Begin to look after the regions on the running loop."""
        if self.several:
            self._looking = asyncio.get_running_loop().create_task(self._keep_looking())

    async def close(self) -> None:
        """Stop looking."""
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)

    def choose(self, service: str, client: str | None, stays: bool) -> Region | None:
        """Choose a request's region; None where the service is not served.

        Requests of one `client` stay together. With `stays` it is for this region: another
        gateway has chosen.
        """
        pools = self.pools.get(service, [])
        if stays:
            return self.home if service in self._home else None
        if len(pools) <= 1:
            return pools[0].region if pools else None
        number = self._by_chance if client is None else _Hashed(client)
        return self._pick(pools, self._clock(), number).region

    def counts(self, service: str, region: str) -> Pool:
        """Where requests for another region are counted."""
        return next(pool for pool in self._elsewhere[service] if pool.region.name == region)

    @property
    def by_client(self) -> bool:
        """Whether each client stays in its region, not only conversations with a name."""
        return self._config.affinity == "client"

    def lines(self) -> Iterator[str]:
        """Yield every region's share, health and counts in Prometheus' text format."""
        now = self._clock()
        prefix = "serin_gateway_region_"
        rows = [
            (labels(service=service, region=pool.region.name), pool, share)
            for service, pools in self.pools.items()
            for pool, share in zip(pools, self._shares(pools, now), strict=True)
        ]
        text = "Share of a service's requests that go to the region, 0 to 1."
        yield from family(prefix + "share", "gauge", text, ((n, share) for n, _, share in rows))
        text = "Health of a service in the region, 0 to 1."
        values = ((names, pool.health(now)) for names, pool, _ in rows)
        yield from family(prefix + "health", "gauge", text, values)
        found: Iterable[tuple[str, int]]
        away = [(names, pool) for names, pool, _ in rows if pool.region is not self.home]
        text = "Requests assigned to another region, by outcome; home's are counted by their arms."
        found = _labelled("outcome", ((names, pool.outcomes) for names, pool in away))
        yield from family(prefix + "requests_total", "counter", text, found)
        text = "Requests assigned to another region that another server had to answer."
        found = _labelled("reason", ((names, pool.retries) for names, pool in away))
        yield from family(prefix + "retries_total", "counter", text, found)
        text = "Times that the region was left alone (away), and that it returned (back)."
        found = _labelled("direction", ((names, pool.moves) for names, pool, _ in rows))
        yield from family(prefix + "moves_total", "counter", text, found)
        if self.several:
            text = "Requests refused because the region had no place in time."
            shed = ((labels(region=name), count) for name, count in self.shed.items())
            yield from family(prefix + "shed_total", "counter", text, shed)

    def _shares(self, pools: Sequence[Pool], now: float) -> list[float]:
        if self._config.failover_only:
            left, shares = 1.0, []
            for pool in pools:
                shares.append(left * pool.ramp(now))
                left -= shares[-1]
            return shares
        weights = [pool.region.weight * pool.ramp(now) for pool in pools]
        total = sum(weights)
        return [weight / total if total else 0.0 for weight in weights]

    def _by_chance(self, _: str) -> float:
        return self._random.random()

    async def _keep_looking(self) -> None:
        while True:
            now = self._clock()
            for pools in self.pools.values():
                for pool in pools:
                    pool.look(now)
            await asyncio.sleep(LOOK_SECONDS)


class _Hashed:
    """Numbers that are the same each time for one client and region."""

    __slots__ = ("_client",)

    def __init__(self, client: str) -> None:
        self._client = client.encode()

    def __call__(self, region: str) -> float:
        digest = blake2b(self._client, digest_size=8, key=region.encode()).digest()
        return int.from_bytes(digest) / 2**64


def read_authorizations(config: RegionsConfig) -> dict[str, str]:
    """Return what each region's gateway asks for. Raises ConfigurationError for a bad key file."""
    found = {}
    for region in config.others:
        if region.key_file:
            path = Path(region.key_file)
            try:
                if path.stat().st_mode & 0o077:
                    raise ConfigurationError(f"{path} can be read by others; chmod 600 {path}")
                key = path.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigurationError(f"the key of region {region.name}: {error}") from error
            if not key.isprintable() or not key:
                raise ConfigurationError(f"{path} holds no API key in one line")
            found[region.name] = f"Bearer {key}"
    return found


def _inside(number: float) -> float:
    return min(max(number, 2.0**-64), 1 - 2.0**-53)


def _labelled(
    label: str, rows: Iterable[tuple[str, Mapping[Any, int]]]
) -> Iterator[tuple[str, int]]:
    for names, counts in rows:
        for value, count in counts.items():
            yield f'{names[:-1]},{label}="{value}"}}', count
