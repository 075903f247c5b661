"""How much is sent again, who waits before full servers, and how a server comes back."""

import asyncio
import math

import pytest

from serving.gateway.balancer import Balancer, Rules
from serving.gateway.limits import Full
from serving.gateway.places import Places
from serving.gateway.retry_budget import RetryBudget
from serving.gateway.routes import parse_routes

TWO = b"""{"generation": 1, "services": {"assistant": {"arms": [
    {"arm": "stable", "revision": "a-1", "percent": 100,
     "endpoints": [{"url": "http://127.0.0.1:1"}, {"url": "http://127.0.0.1:2"}]}]}}}"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_share_of_the_requests_may_be_sent_again() -> None:
    clock = Clock()
    budget = RetryBudget(0.2, 0, clock)
    assert not budget.take("a")
    for _ in range(50):
        budget.asked("a")
    assert [budget.take("a") for _ in range(12)] == [True] * 10 + [False] * 2
    assert not budget.room("b")
    assert 'exhausted_total{service="a"} 3' in "\n".join(budget.lines())
    clock.now += 9
    for _ in range(5):
        budget.asked("a")
    assert budget.take("a")
    clock.now += 1.5  # the first second is forgotten, with what was asked and sent again in it
    assert not budget.take("a")


def test_a_few_may_always_be_sent_again() -> None:
    clock = Clock()
    budget = RetryBudget(0, 0.5, clock)
    assert [budget.take("a") for _ in range(6)] == [True] * 5 + [False]
    clock.now += 10
    assert budget.room("a")


async def test_places_are_given_in_order_and_handed_on() -> None:
    places, order = Places(3), list[str]()
    until = asyncio.get_running_loop().time() + 60

    async def wait(name: str) -> None:
        await places.wait("a", until)
        order.append(name)

    tasks = [asyncio.create_task(wait(name)) for name in "xyz"]
    await asyncio.sleep(0)
    assert places.waiting == 3
    with pytest.raises(Full, match="upstream_full"):
        await places.wait("a", until)
    places.free("b")
    places.free("a")
    tasks[0].cancel()  # its place came in the same moment
    await asyncio.sleep(0.01)
    assert order == ["y"]
    places.free_all()
    await asyncio.sleep(0.01)
    assert order == ["y", "z"]
    assert places.waiting == 0


async def test_a_wait_for_a_place_ends_in_time() -> None:
    places = Places(3)
    with pytest.raises(Full, match="upstream_full"):
        await places.wait("a", asyncio.get_running_loop().time() + 0.02)
    assert places.waiting == 0
    places.free("a")


def test_a_server_has_no_more_requests_than_it_may() -> None:
    balancer = Balancer("key", 1, Rules(outstanding_max=2))
    balancer.apply(parse_routes(TWO))
    stable = balancer.services["assistant"].arms[0]
    first, second = stable.endpoints
    first.outstanding, second.outstanding = 2, 1
    assert balancer.choose("assistant", stable) == (stable, second)
    second.outstanding = 2
    assert balancer.choose("assistant", stable) == (stable, None)
    balancer.release(stable, first)
    assert balancer.choose("assistant", stable) == (stable, first)


def test_a_server_that_came_back_gets_more_and_more() -> None:
    clock = Clock()
    balancer = Balancer("key", 1, Rules(ramp_seconds=10), clock=clock)
    balancer.apply(parse_routes(TWO))
    stable = balancer.services["assistant"].arms[0]
    back, other = stable.endpoints

    def share() -> float:
        chosen = [balancer.choose("assistant", stable) for _ in range(4000)]
        return sum(found is not None and found.endpoint is back for found in chosen) / 4000

    error = 4 * math.sqrt(0.25 / 4000)
    assert share() == pytest.approx(0.5, abs=error)
    back.ready = False
    balancer.apply(parse_routes(TWO))  # ready again
    assert share() == pytest.approx(0.05, abs=error)
    clock.now += 5
    assert share() == pytest.approx(0.25, abs=error)
    clock.now += 5
    assert share() == pytest.approx(0.5, abs=error)
    balancer.returned(back)
    other.ejected = True  # alone it gets everything at once
    assert share() == 1
