"""Which region is chosen: by weight, by client or in order, and only while it is well."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from core.errors import ConfigurationError
from serving.gateway.balancer import Balancer, Rules
from serving.gateway.config import GatewayConfig
from serving.gateway.limits import Full
from serving.gateway.regions import Regions, read_authorizations
from serving.gateway.routes import parse_routes

ROUTES = b"""{"generation": 1, "services": {"assistant": {"arms": [
    {"arm": "stable", "revision": "a-1", "percent": 90,
     "endpoints": [{"url": "http://127.0.0.1:1"}]},
    {"arm": "canary", "revision": "a-2", "percent": 10,
     "endpoints": [{"url": "http://127.0.0.1:2"}]}]}}}"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Map:
    """Regions home, eu and us of one service, without processes."""

    def __init__(self, **regions: Any) -> None:
        others = [
            {"name": "eu", "models": {"assistant": ["http://eu:1"]}, "weight": 2},
            {"name": "us", "models": {"assistant": ["http://us:1"], "other": ["http://us:2"]}},
        ]
        given = {"others": others, **regions}
        self.config = GatewayConfig(regions=given, concurrency_max=9, seed=3)
        self.clock = Clock()
        self.regions = Regions(self.config, {}, self.clock)
        self.balancer = Balancer("key", 1, Rules(), self.regions.arms, self.clock)
        self.balancer.apply(parse_routes(ROUTES))
        self.regions.apply(self.balancer.services.values())
        self.pools = {pool.region.name: pool for pool in self.regions.pools["assistant"]}

    def look(self, seconds: float) -> None:
        """Let time pass, looking ten times a second."""
        for _ in range(round(seconds * 10)):
            self.clock.now += 0.1
            for pool in self.pools.values():
                pool.look(self.clock.now)

    def chosen(self, count: int = 4000, client: str | None = None) -> Counter[str]:
        found = (self.regions.choose("assistant", client, False) for _ in range(count))
        return Counter(region.name for region in found if region is not None)

    def homes(self) -> list[str]:
        """The region of each of 500 clients."""
        return [next(iter(self.chosen(1, f"client {number}"))) for number in range(500)]


def test_healthy_regions_serve_at_once_by_weight() -> None:
    found = Map().chosen()
    assert found["eu"] == pytest.approx(2000, abs=130)  # 4 standard deviations
    assert found["home"] == pytest.approx(1000, abs=110)
    assert found["us"] == pytest.approx(1000, abs=110)


def test_a_client_stays_and_only_clients_of_a_region_that_is_ill_move() -> None:
    world = Map()
    before = world.homes()
    assert Counter(before)["eu"] == pytest.approx(250, abs=45)
    assert world.homes() == before
    world.pools["eu"].endpoints[0].ejected = True
    world.look(1.5)
    after = world.homes()
    assert "eu" not in after
    assert all(old == new for old, new in zip(before, after, strict=True) if old != "eu")
    world.pools["eu"].endpoints[0].ejected = False
    world.look(15)
    between = world.homes()
    assert 0 < between.count("eu") < before.count("eu")
    assert all(old == "eu" for old, new in zip(before, between, strict=True) if new == "eu")
    world.look(60)
    assert world.homes() == before


def test_a_share_leaves_within_five_seconds_and_comes_back_by_and_by() -> None:
    world = Map()
    eu = world.pools["eu"]
    for _ in range(20):
        eu.note(True, 0.1, world.clock.now)
    for _ in range(30):
        eu.note(False, 0.1, world.clock.now)
    world.look(2)
    assert world.chosen()["eu"] == 0
    assert eu.moves == {"away": 1, "back": 0}
    shares = []
    for _ in range(8):
        world.look(5)
        shares.append(world.chosen(2000)["eu"])
    assert 0 < shares[0] < shares[2] < shares[-1]
    assert shares[-1] == pytest.approx(1000, abs=90)


def test_a_relapse_doubles_the_rest() -> None:
    world = Map()
    eu = world.pools["eu"]
    rests: list[float] = []
    for _ in range(3):
        world.look(0.1)
        for _ in range(10):
            eu.note(False, 0.1, world.clock.now)
        world.look(1.2)
        assert eu.rests
        began = world.clock.now
        while eu.rests:
            world.look(0.1)
        rests.append(world.clock.now - began)
    assert rests == pytest.approx([5, 10, 20], abs=0.5)


def test_slow_answers_count_before_they_are_there() -> None:
    world = Map(slow_seconds=2.0)
    eu = world.pools["eu"]
    for number in range(5):
        eu.endpoints[0].waiting[number] = world.clock.now  # type: ignore[index]
    world.look(1.9)
    assert eu.health(world.clock.now) == 1
    world.look(1.5)
    assert eu.rests
    other = Map(slow_seconds=2.0).pools["eu"]
    for _ in range(5):
        other.note(True, 2.5, 1000.0)
    assert other.health(1000.0) == 0


def test_a_few_failures_say_nothing() -> None:
    world = Map()
    for _ in range(4):
        world.pools["eu"].note(False, 0.1, world.clock.now)
    world.look(3)
    assert not world.pools["eu"].rests


def test_when_no_region_is_well_the_weights_alone_count() -> None:
    world = Map()
    for pool in world.pools.values():
        pool.endpoints[0].ejected = True
    world.look(2)
    assert all(pool.rests for pool in world.pools.values())
    assert world.chosen()["eu"] == pytest.approx(2000, abs=130)


def test_in_order_the_first_healthy_region_gets_everything() -> None:
    world = Map(failover_only=True)
    assert world.chosen(100) == {"home": 100}
    world.pools["home"].endpoints[0].ejected = True
    world.look(1.5)
    assert world.chosen(100) == {"eu": 100}
    world.pools["eu"].endpoints[0].ejected = True
    world.look(1.5)
    assert world.chosen(100) == {"us": 100}
    world.pools["home"].endpoints[0].ejected = False
    world.look(15)
    found = world.chosen(1000)
    assert set(found) == {"home", "us"}
    world.look(60)
    assert world.chosen(100) == {"home": 100}


def test_the_canary_neither_moves_a_share_nor_is_it_drawn_elsewhere() -> None:
    world = Map()
    stable, canary = world.balancer.services["assistant"].arms
    assert stable.endpoints[0].pool is world.pools["home"]
    assert canary.endpoints[0].pool is None
    assert {arm.name for arm in world.balancer.services["assistant"].elsewhere} == {"stable"}


def test_a_request_that_another_gateway_sent_stays_here() -> None:
    world = Map()
    assert {world.regions.choose("assistant", None, True) for _ in range(50)} == {
        world.regions.home
    }
    assert world.regions.choose("other", None, True) is None
    assert world.regions.choose("other", None, False) is not world.regions.home


def test_another_region_helps_out_only_with_a_free_place() -> None:
    world = Map()
    service = world.balancer.services["assistant"]
    stable, canary = service.arms
    stable.endpoints[0].ejected = canary.endpoints[0].ejected = True
    found = world.balancer.choose("assistant", stable)
    assert found is not None
    assert found.arm.region == "eu"
    assert world.balancer.choose("assistant", stable, stays=True) is None
    assert world.pools["eu"].region.places.free == 3  # 9 places for three regions
    for name in ("eu", "us"):
        while world.pools[name].region.places.try_enter():
            pass
    with pytest.raises(Full, match="regions_full"):
        world.balancer.choose("assistant", stable)
    elsewhere = service.elsewhere[0]
    elsewhere.endpoints[0].ejected = True
    stable.endpoints[0].ejected = False
    found = world.balancer.choose("assistant", elsewhere)
    assert found is not None
    assert found.arm is stable


def test_shares_and_health_are_shown() -> None:
    world = Map()
    world.pools["eu"].endpoints[0].ejected = True
    world.look(1.5)
    text = "\n".join(world.regions.lines())
    assert 'serin_gateway_region_share{service="assistant",region="eu"} 0.0' in text
    assert 'serin_gateway_region_share{service="assistant",region="us"} 0.5' in text
    assert 'serin_gateway_region_health{service="assistant",region="eu"} 0.0' in text
    assert 'moves_total{service="assistant",region="eu",direction="away"} 1' in text
    assert 'requests_total{service="assistant",region="us",outcome="ok"} 0' in text
    assert 'requests_total{service="assistant",region="home"' not in text


@pytest.mark.parametrize(
    ("regions", "says"),
    [
        ({"others": [{"name": "home", "models": {"a": ["http://b"]}}]}, "same name"),
        ({"others": [{"name": "EU", "models": {"a": ["http://b"]}}]}, "name"),
        ({"others": [{"name": "eu", "models": {"a": ["ftp://b"]}}]}, "is no http"),
        ({"others": [{"name": "eu", "models": {"a": []}}]}, "no address"),
        ({"others": [{"name": "eu", "models": {}}]}, "models"),
        ({"weight": 0}, "weight 0"),
        ({"concurrency_max": 1000}, "do not fit"),
    ],
)
def test_regions_that_make_no_sense_are_refused(regions: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        GatewayConfig(regions=regions)


def test_a_regions_key_is_read_from_a_private_file(tmp_path: Path) -> None:
    file = tmp_path / "eu.key"
    eu = {"name": "eu", "models": {"a": ["http://b"]}, "key_file": str(file)}
    config = GatewayConfig(regions={"others": [eu]}).regions
    with pytest.raises(ConfigurationError, match="region eu"):
        read_authorizations(config)
    file.write_text("a key\n")
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        read_authorizations(config)
    file.chmod(0o600)
    assert read_authorizations(config) == {"eu": "Bearer a key"}
    file.write_text("two\nlines")
    with pytest.raises(ConfigurationError, match="one line") as refused:
        read_authorizations(config)
    assert "two" not in str(refused.value)
