"""Regions as real processes: killed, hung, slow, failing or full, and one that is a gateway."""

import signal
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from gateway_world import Predictor, World, until

from serving.gateway.tokens import hash_token

REVISION = "assistant-00001"
QUICK = {
    "probe_seconds": 0.1,
    "probes_missed_max": 3,
    "patience_seconds": 0.3,
    "rest_seconds_first": 0.5,
    "return_seconds": 1.0,
    "judged_seconds": 2.0,
    "judged_requests_min": 3,
}
Start = Callable[..., tuple[World, Predictor, Predictor]]


def region(answer: httpx.Response) -> str:
    found: str = answer.headers["x-serin-region"]
    return found


def share(world: World, name: str) -> float:
    found: float = world.metric("serin_gateway_region_share", region=name)
    return found


def regions_asked(world: World, count: int = 30) -> Counter[str]:
    answers = [world.ask() for _ in range(count)]
    assert {answer.status_code for answer in answers} == {200}
    return Counter(map(region, answers))


@pytest.fixture
def start(world: World) -> Start:
    """Start a home region and eu, each a predictor, and a gateway that knows both."""

    def begin(
        eu: dict[str, Any] | None = None, regions: dict[str, Any] | None = None, **config: Any
    ) -> tuple[World, Predictor, Predictor]:
        home, away = world.predictor(REVISION, "1"), world.predictor("eu-00007", "1")
        other = {"name": "eu", "models": {"assistant": [away.url]}, **(eu or {})}
        world.start_gateway(regions={**QUICK, "others": [other], **(regions or {})}, **config)
        world.route(home)
        until(lambda: world.metric("serin_gateway_region_health") == 2)
        return world, home, away

    return begin


def test_both_regions_serve_at_once_and_a_killed_ones_share_moves(start: Start) -> None:
    world, home, away = start()
    assert min(regions_asked(world).values()) >= 5  # of 30: fewer 1 time in 30,000
    assert "authorization" in home.seen()["headers"]
    assert "authorization" not in away.seen()["headers"]  # home's token is none of its business
    load = world.load(30)
    until(lambda: away.seen()["requests"] > 10)
    away.kill()
    until(lambda: share(world, "eu") == 0)
    assert set(regions_asked(world, 10)) == {"home"}
    report = load.stop()
    assert report.failed == report.limited == 0
    assert world.metric("serin_gateway_region_moves_total", region="eu", direction="away") == 1
    assert world.metric("serin_gateway_region_share", region="home") == 1


def test_a_hung_regions_requests_go_elsewhere_and_its_share_comes_back(start: Start) -> None:
    world, _, away = start(probe_seconds_max=0.3)
    load = world.load(20)
    until(lambda: away.seen()["requests"] > 5)
    away.signal(signal.SIGSTOP)
    until(lambda: share(world, "eu") == 0)
    assert set(regions_asked(world, 10)) == {"home"}
    away.signal(signal.SIGCONT)
    until(lambda: share(world, "eu") > 0)
    until(lambda: share(world, "eu") == 0.5)
    report = load.stop()
    assert report.failed == report.limited == 0
    assert world.metric("serin_gateway_region_retries_total", region="eu") >= 1


def test_a_slow_region_is_left_alone_while_it_is_slow(start: Start) -> None:
    world, _, away = start(regions={"slow_seconds": 0.5})
    away.behave(delay=1.5)
    load = world.load(20)
    until(lambda: share(world, "eu") == 0)
    away.behave()
    until(lambda: share(world, "eu") == 0.5)
    report = load.stop()
    assert report.failed == report.limited == 0


def test_a_failing_region_is_left_alone_and_its_failures_are_answered_at_home(
    start: Start,
) -> None:
    world, _, away = start()
    away.behave(status=500)
    load = world.load(20)
    until(lambda: share(world, "eu") == 0)
    assert load.stop().failed == 0


def test_a_home_region_that_dies_is_answered_from_elsewhere(start: Start) -> None:
    world, home, _ = start(regions={"failover_only": True})
    assert regions_asked(world, 10) == {"home": 10}
    load = world.load(20)
    until(lambda: home.seen()["requests"] > 5)
    home.kill()
    until(lambda: share(world, "eu") == 1)
    assert regions_asked(world, 10) == {"eu": 10}
    successor = world.predictor(REVISION, "1")
    world.route(successor)
    until(lambda: share(world, "home") == 1)
    assert regions_asked(world, 10) == {"home": 10}
    assert load.stop().failed == 0


def test_a_full_region_sheds_and_pulls_nobody_else_down(start: Start) -> None:
    world, home, away = start(
        eu={"concurrency_max": 2}, waiting_max=1, waiting_seconds_max=30, concurrency_max=20
    )
    away.behave(delay=4)
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(world.ask(timeout=60))) for _ in range(30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Counter((region(answer), answer.status_code) for answer in answers)
    assert found["eu", 200] == 3  # two at once, and one that waited
    assert found["eu", 429] == sum(
        answer.json().get("error", {}).get("code") == "region_full" for answer in answers
    )
    assert found["eu", 429] > 0
    assert found["home", 200] == 30 - found["eu", 200] - found["eu", 429]
    assert home.seen()["requests"] == found["home", 200]
    assert world.metric("serin_gateway_region_shed_total", region="eu") == found["eu", 429]


def test_conversations_and_where_asked_clients_stay_in_their_region(start: Start) -> None:
    world, _, _ = start(regions={"affinity": "client"}, guard={"trusted_proxies": ["127.0.0.0/8"]})

    def home_of(**headers: str) -> str:
        (found,) = {region(world.ask(headers=headers)) for _ in range(5)}
        return found

    clients = {home_of(**{"x-forwarded-for": f"192.0.2.{number}"}) for number in range(20)}
    talks = {home_of(**{"x-serin-conversation": f"talk {number}"}) for number in range(20)}
    assert clients == talks == {"home", "eu"}


def test_a_canary_is_compared_with_the_stable_of_its_own_region_only(
    start: Start, world: World
) -> None:
    _, home, away = start()
    canary = world.predictor("assistant-00002", "2")
    world.route(home, canary, percent=40)
    answers = [world.ask() for _ in range(120)]
    places = Counter((region(item), item.headers["x-serin-arm"]) for item in answers)
    assert set(places) == {("eu", "stable"), ("home", "stable"), ("home", "canary")}
    assert away.seen()["requests"] == places["eu", "stable"]
    counters = world.counters()
    (found,) = counters.strata
    assert found.stable.requests == places["home", "stable"]
    assert found.canary.requests == places["home", "canary"]
    assert counters.stable is not None
    assert counters.stable.draws == places["home", "stable"]
    canary.behave(status=500)  # a bad canary is the judge's business: home keeps its share
    for _ in range(60):
        world.ask()
    assert share(world, "home") == 0.5


def test_another_regions_gateway_answers_with_its_own_keys_and_ids(
    world: World, tmp_path: Path
) -> None:
    far = World(tmp_path / "far")
    far.home.mkdir()
    try:
        (far.home / "keys.yaml").write_text(f"near: {hash_token('key of far')}\n")
        behind = far.predictor("far-00003", "9")
        onward = {"name": "onward", "weight": 9, "models": {"assistant": [behind.url]}}
        far.start_gateway(regions={"name": "far", "others": [onward]})
        far.route(behind)
        key_file = tmp_path / "far.key"
        key_file.write_text("key of far\n")
        key_file.chmod(0o600)
        other = {"name": "far", "models": {"assistant": [far.url]}, "key_file": str(key_file)}
        world.start_gateway(regions={**QUICK, "others": [other]})
        until(lambda: share(world, "far") == 1)  # nothing is served at home
        answer = world.ask(headers={"authorization": "Bearer a client's"})
        assert answer.status_code == 200
        assert region(answer) == "far"
        assert answer.headers["x-serin-model-version"] == "9"
        assert answer.json()["id"] == answer.headers["x-serin-response-id"]
        seen = behind.seen()["headers"]
        assert "x-serin-region" not in seen
        assert "key of far" not in seen["authorization"]
        for _ in range(20):  # the far gateway answers in its own region, whatever its weights
            world.ask()
        assert far.metric("serin_gateway_draws_total") == 21
        assert world.metric("serin_gateway_region_requests_total", outcome="ok") == 21
    finally:
        far.close()


def test_readiness_tells_another_gateway_whether_to_come(world: World, stable: Predictor) -> None:
    world.start_gateway()

    def ready() -> int:
        return httpx.get(world.url + "/v2/health/ready", trust_env=False).status_code

    assert ready() == 503
    world.route(stable)
    assert ready() == 200
    world.route(stable, ready=False)
    assert ready() == 503
