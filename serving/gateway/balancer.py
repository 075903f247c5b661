"""Which arm a request is drawn for, and which endpoint answers it: pure choices over live state.

The arm is drawn first, by the declared share alone; health and load only choose inside the arms.
Source: the project's canary judge needs known, independent assignment (Kohavi et al., 2020, ch. 4).
"""

import asyncio
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from hashlib import blake2b

from serving.gateway.routes import ArmRoute, Routes, ServiceRoute


class Endpoint:
    """One predictor process as seen from here; lives as long as the routes name it."""

    __slots__ = (
        "ejected",
        "failed_at_seconds",
        "failures",
        "gone",
        "missed_probes",
        "outstanding",
        "ready",
        "revision",
        "url",
        "waiting",
    )

    def __init__(self, revision: str, url: str) -> None:
        self.revision = revision
        self.url = url.rstrip("/")
        self.ready = True
        self.ejected = False
        self.gone = False
        self.outstanding = 0
        self.failures = 0
        self.failed_at_seconds = float("-inf")
        self.missed_probes = 0
        self.waiting: dict[asyncio.Timeout, float] = {}
        """Requests without a byte of answer: their time limit -> loop time of sending."""

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

    def arm(self, name: str) -> Arm | None:
        """The arm called `name`, if there is one."""
        return next((arm for arm in self.arms if arm.name == name), None)


class Balancer:
    """The applied routes, the draw, and the choice of an endpoint."""

    def __init__(self, conversation_key: str = "serin", seed: int | None = None) -> None:
        self.routes = Routes()
        self.services: dict[str, Service] = {}
        self._conversation_key = conversation_key.encode()
        self._random = random.Random(seed)
        self._endpoints: dict[tuple[str, str], Endpoint] = {}
        self._changed = asyncio.Event()

    def apply(self, routes: Routes) -> None:
        """Replace all routes at once; endpoints named before and now keep their state."""
        endpoints: dict[tuple[str, str], Endpoint] = {}
        services = {
            name: self._service(name, route, endpoints)
            for name, route in routes.services.items()
            if route.arms
        }
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
        return Service(name, arms, share)

    def _arm(self, route: ArmRoute, endpoints: dict[tuple[str, str], Endpoint]) -> Arm:
        found = []
        for item in route.endpoints:
            key = (route.revision, item.url)
            endpoint = self._endpoints.get(key) or Endpoint(*key)
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
        """Every endpoint that the routes name."""
        return iter(self._endpoints.values())

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
        self, service_name: str, drawn: Arm, avoid: Collection[Endpoint] = ()
    ) -> tuple[Arm, Endpoint] | None:
        """Choose an endpoint: inside the drawn arm if one is available, else in the other arm.

        None when no endpoint can take the request now. `drawn` may be of older routes: its
        revision counts.
        """
        service = self.services.get(service_name)
        if service is None:
            return None
        own = [arm for arm in service.arms if arm.revision == drawn.revision]
        others = [arm for arm in service.arms if arm.revision != drawn.revision and arm.trusted]
        for arm in (*own, *others):
            endpoint = self._least_loaded(arm, avoid)
            if endpoint is not None:
                return arm, endpoint
        return None

    def _least_loaded(self, arm: Arm, avoid: Collection[Endpoint]) -> Endpoint | None:
        """The better of two random available endpoints (Mitzenmacher, 2001)."""
        found = [item for item in arm.endpoints if item.available and item not in avoid]
        if len(found) <= 1:
            return found[0] if found else None
        first, second = self._random.sample(found, 2)
        return first if first.outstanding <= second.outstanding else second

    def notify(self) -> None:
        """Wake whoever waits for an endpoint: routes or health changed."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Wait for the next `notify`."""
        await self._changed.wait()
