"""Which safety policy stable's predictors apply now: asked of them again and again, never assumed.

A kept answer may be given only under the policy that it was made under; without a recent and equal
word of every predictor of the arm the policy is unknown, and nothing kept is given.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator

from serving.gateway.balancer import Arm, Balancer, Endpoint
from serving.gateway.exposition import family, labels

AskPolicy = Callable[[Endpoint], Awaitable[str | None]]
"""ask(endpoint) -> digest of the policy in force there; None without an answer in time."""


class Policies:
    """Asks every available predictor of the stable arms for its policy."""

    def __init__(
        self,
        balancer: Balancer,
        ask: AskPolicy,
        poll_seconds: float,
        seconds_max: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """What a predictor said counts for `seconds_max`."""
        self._balancer = balancer
        self._ask = ask
        self._poll_seconds = poll_seconds
        self._seconds_max = seconds_max
        self._clock = clock
        self._said: dict[Endpoint, tuple[str, float]] = {}
        self._asking: set[Endpoint] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Begin to ask on the running loop."""
        self._begin(self._keep_asking())

    async def close(self) -> None:
        """Stop asking."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def current(self, arm: Arm) -> str | None:
        """The digest that all predictors of an arm reported lately; None if unknown."""
        since = self._clock() - self._seconds_max
        found: set[str] = set()
        for endpoint in arm.endpoints:
            policy, at = self._said.get(endpoint, ("", since))
            if at > since or endpoint.available:
                found.add(policy if at > since else "")
        return found.pop() or None if len(found) == 1 else None

    def lines(self) -> Iterator[str]:
        """Yield for which services a policy is known, in Prometheus' text format."""
        yield from family(
            "serin_gateway_policy_known",
            "gauge",
            "1 while all predictors of the service's stable arm apply one policy.",
            (
                (labels(service=service.name), int(self.current(arm) is not None))
                for service in self._balancer.services.values()
                if (arm := service.arm("stable")) is not None
            ),
        )

    def note(self, endpoint: Endpoint, policy: str) -> None:
        """Take over what a predictor says of its policy."""
        self._said[endpoint] = policy, self._clock()

    async def _keep_asking(self) -> None:
        while True:
            asked = {
                endpoint
                for service in self._balancer.services.values()
                if len(service.arms) == 1  # with a canary nothing kept is given
                for endpoint in service.arms[0].endpoints
                if endpoint.available
            }
            self._said = {item: said for item, said in self._said.items() if item in asked}
            for endpoint in asked - self._asking:
                self._asking.add(endpoint)
                self._begin(self._ask_one(endpoint))
            await asyncio.sleep(self._poll_seconds)

    async def _ask_one(self, endpoint: Endpoint) -> None:
        try:
            policy = await self._ask(endpoint)
            if policy is not None:
                self.note(endpoint, policy)
        finally:
            self._asking.discard(endpoint)

    def _begin(self, work: Awaitable[None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
