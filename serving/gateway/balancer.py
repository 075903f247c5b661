"""Which arm a request is drawn for, and which endpoint answers it: pure choices over live state.

The arm is drawn by the declared share alone; health and load only choose inside the arms.
Source: the project's canary judge needs known, independent assignment (Kohavi et al., 2020, ch. 4).
"""

import asyncio
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple

from serving.gateway.limits import Full
from serving.gateway.places import Places
from serving.gateway.pools import Pool
from serving.gateway.routes import ArmRoute, Routes, ServiceRoute

RAMP_SHARE_FIRST = 0.1
"""What an endpoint that has just come back gets of its share."""


class Endpoint:
    """One predictor process as seen from here; lives as long as the routes name it."""

    __slots__ = (
        "ejected",
        "failed_at_seconds",
        "failures",
        "gone",
        "missed_probes",
        "outstanding",
        "pool",
        "ready",
        "region",
        "revision",
        "url",
        "waiting",
    )

    def __init__(self, revision: str, url: str, region: str = "") -> None:
        self.revision = revision
        self.region = region
        """Another region's name; empty in the gateway's own."""
        self.url = url.rstrip("/")
        self.ready = True
        self.ejected = False
        self.gone = False
        self.outstanding = 0
        self.failures = 0
        self.failed_at_seconds = float("-inf")
        self.missed_probes = 0
        self.pool: Pool | None = None
        """Where its region's health is counted; None for a canary, or without other regions."""
        self.waiting: dict[asyncio.Timeout, float] = {}
        """Requests without a byte of answer: their time limit -> loop time of sending."""

    @property
    def where(self) -> str:
        """What a person knows it by: its revision, or elsewhere its region."""
        return self.region or self.revision

    @property
    def available(self) -> bool:
        """Whether a request may be sent here."""
        return self.ready and not self.ejected


@dataclass(frozen=True, slots=True)
class Arm:
    """One arm of one generation of the routes."""

    name: str
    revision: str
    model_version: str
    percent: float
    endpoints: tuple[Endpoint, ...]
    bundle_digest: str = ""
    region: str = ""
    """Another region's name; empty for the gateway's own, whose arms are the routes'."""

    @property
    def place(self) -> str:
        """What tells it from every other arm: its revision, or elsewhere its region."""
        return self.region or self.revision

    @property
    def trusted(self) -> bool:
        """Whether requests drawn for the other arm may come here when that one cannot answer.

        A canary at 0 % was rejected or has not begun: it gets no traffic, whatever happens.
        """
        return self.name == "stable" or self.percent > 0


@dataclass(frozen=True, slots=True)
class Service:
    """The arms of a service and the share of requests drawn for the canary, in 0..1."""

    name: str
    arms: tuple[Arm, ...]
    share: float
    elsewhere: tuple[Arm, ...] = ()
    """Its servers in other regions, one arm each."""

    def arm(self, name: str) -> Arm | None:
        """The arm called `name`, if there is one."""
        return next((arm for arm in self.arms if arm.name == name), None)


class Choice(NamedTuple):
    """Who may answer; without an endpoint a place at the arm must be waited for."""

    arm: Arm
    endpoint: Endpoint | None


@dataclass(frozen=True, slots=True)
class Rules:
    """How endpoints are chosen: what one may have in work, who may wait, how one comes back."""

    outstanding_max: int = 256
    waiting_max: int = 64
    ramp_seconds: float = 10.0


class Balancer:
    """The applied routes, the draw, and the choice of an endpoint."""

    def __init__(
        self,
        conversation_key: str = "serin",
        seed: int | None = None,
        rules: Rules = Rules(),
        elsewhere: Mapping[str, tuple[Arm, ...]] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.routes = Routes()
        self.services: dict[str, Service] = {}
        self.places = Places(rules.waiting_max)
        self._conversation_key = conversation_key.encode()
        self._random = random.Random(seed)
        self._rules = rules
        self._elsewhere = elsewhere or {}
        self._clock = clock
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._ramps: dict[Endpoint, float] = {}
        """Endpoints that came back lately -> when."""
        self._changed = asyncio.Event()

    def apply(self, routes: Routes) -> None:
        """Replace all routes at once; endpoints named before and now keep their state."""
        endpoints: dict[tuple[str, str], Endpoint] = {}
        services = {
            name: self._service(name, route, endpoints)
            for name, route in routes.services.items()
            if route.arms
        }
        for name, arms in self._elsewhere.items():
            services.setdefault(name, Service(name, (), 0.0, arms))
        for key, endpoint in self._endpoints.items():
            endpoint.gone = key not in endpoints
        self.routes, self.services, self._endpoints = routes, services, endpoints
        self.notify()

    def _service(
        self, name: str, route: ServiceRoute, endpoints: dict[tuple[str, str], Endpoint]
    ) -> Service:
        arms = tuple(self._arm(arm, endpoints) for arm in route.arms)
        canary = next((arm for arm in arms if arm.name == "canary"), None)
        ready = canary is not None and any(endpoint.ready for endpoint in canary.endpoints)
        share = canary.percent / 100 if canary is not None and ready else 0.0
        return Service(name, arms, share, self._elsewhere.get(name, ()))

    def _arm(self, route: ArmRoute, endpoints: dict[tuple[str, str], Endpoint]) -> Arm:
        found = []
        for item in route.endpoints:
            key = (route.revision, item.url)
            known = self._endpoints.get(key)
            endpoint = known or Endpoint(*key)
            if known is not None and item.ready and not known.ready:
                self.returned(known)
            endpoint.ready = item.ready
            endpoints[key] = endpoint
            found.append(endpoint)
        return Arm(
            route.arm,
            route.revision,
            route.model_version,
            route.percent,
            tuple(found),
            route.bundle_digest,
        )

    def endpoints(self) -> Iterator[Endpoint]:
        """Every endpoint that the routes or other regions name."""
        yield from self._endpoints.values()
        for arms in self._elsewhere.values():
            for arm in arms:
                yield from arm.endpoints

    def draw(self, service: Service, conversation: str | None = None) -> Arm:
        """Draw the arm of one request, by the share alone; a conversation always draws the same.

        A conversation's number depends on the canary's revision, not on the share: raising the
        share never moves it back, and another release asks other conversations first.
        """
        stable, canary = service.arm("stable"), service.arm("canary")
        assert stable is not None  # routes without a stable arm are refused
        if canary is None or service.share <= 0:
            return stable
        if conversation is None:
            number = self._random.random()
        else:
            text = f"{service.name}\0{canary.revision}\0{conversation}".encode()
            key = blake2b(self._conversation_key, digest_size=32).digest()
            digest = blake2b(text, digest_size=8, key=key).digest()
            number = int.from_bytes(digest) / 2**64
        return canary if number < service.share else stable

    def choose(
        self, service_name: str, drawn: Arm, avoid: Collection[Endpoint] = (), stays: bool = False
    ) -> Choice | None:
        """Choose an endpoint: inside the drawn arm if one is available, else in the other arm, else
        (unless the request `stays`) in another region.

        A full arm keeps its requests: they wait for a place there, and pull nobody else down. None
        when no endpoint can take the request now. Raises Full when only other regions could, and
        have no place. `drawn` may be of older routes: its revision counts.
        """
        service = self.services.get(service_name)
        if service is None:
            return None
        arms = (*service.arms, *service.elsewhere)
        own = [arm for arm in arms if arm.place == drawn.place and arm.region == drawn.region]
        others = [arm for arm in service.arms if arm not in own and arm.trusted]
        for arm in own if drawn.region else (*own, *others):
            found = self._choose(arm, avoid)
            if found is not None:
                return found
        return None if stays else self._abroad(service, drawn, avoid)

    def _abroad(self, service: Service, drawn: Arm, avoid: Collection[Endpoint]) -> Choice | None:
        """Choose in another region; the gateway's own stable servers come first."""
        if not service.elsewhere:
            return None
        arms = [arm for arm in service.elsewhere if arm.region != drawn.region]
        stable = service.arm("stable")
        if drawn.region and stable is not None:
            arms.insert(0, stable)
        full = False
        for arm in arms:
            found = self._choose(arm, avoid)
            if found is None:
                continue
            pool = arm.endpoints[0].pool
            if found.endpoint is not None and pool is not None and pool.open:
                return found
            full = True
        if full:
            raise Full("regions_full")
        return None

    def _choose(self, arm: Arm, avoid: Collection[Endpoint]) -> Choice | None:
        """The better of two random available endpoints (Mitzenmacher, 2001)."""
        found = [item for item in arm.endpoints if item.available and item not in avoid]
        if not found:
            return None
        most = self._rules.outstanding_max
        open_ = [item for item in found if item.outstanding < most]
        if self._ramps and len(open_) > 1:
            open_ = self._warm(open_)
        if len(open_) <= 1:
            return Choice(arm, open_[0] if open_ else None)
        first, second = self._random.sample(open_, 2)
        return Choice(arm, first if first.outstanding <= second.outstanding else second)

    def _warm(self, found: list[Endpoint]) -> list[Endpoint]:
        """Leave out endpoints that came back lately, the less often the longer they are back."""
        now, seconds = self._clock(), self._rules.ramp_seconds
        self._ramps = {item: at for item, at in self._ramps.items() if now - at < seconds}
        ramps = self._ramps
        warm = [
            item
            for item in found
            if item not in ramps
            or self._random.random() < max(RAMP_SHARE_FIRST, (now - ramps[item]) / seconds)
        ]
        return warm or found

    def returned(self, endpoint: Endpoint) -> None:
        """An endpoint is back: beside others it gets its share of requests by and by."""
        if self._rules.ramp_seconds > 0:
            self._ramps[endpoint] = self._clock()

    def release(self, arm: Arm, endpoint: Endpoint) -> None:
        """An endpoint has finished a request."""
        endpoint.outstanding -= 1
        self.places.free(arm.place)

    def notify(self) -> None:
        """Wake whoever waits for an endpoint: routes or health changed."""
        self._changed.set()
        self._changed = asyncio.Event()
        self.places.free_all()

    async def changed(self) -> None:
        """Wait for the next `notify`."""
        await self._changed.wait()
