"""The draw: by the declared share alone, sticky where asked, and counted as it was made."""

import math

import pytest
from gateway_world import Predictor, World, until

from core.contracts import CounterSample
from core.errors import InputError
from serving.gateway.balancer import Balancer
from serving.gateway.routes import Routes, parse_routes


def balancer(percent: float, seed: int = 1, canary_ready: bool = True) -> Balancer:
    found = Balancer("key", seed)
    found.apply(routes(percent, canary_ready))
    return found


def routes(percent: float, canary_ready: bool = True, canary: str = "assistant-00002") -> Routes:
    ready = "true" if canary_ready else "false"
    return parse_routes(
        f"""{{"generation": 1, "services": {{"assistant": {{"arms": [
        {{"arm": "stable", "revision": "assistant-00001", "percent": {100 - percent},
          "endpoints": [{{"url": "http://127.0.0.1:1", "ready": true}},
                        {{"url": "http://127.0.0.1:2", "ready": true}}]}},
        {{"arm": "canary", "revision": "{canary}", "percent": {percent},
          "endpoints": [{{"url": "http://127.0.0.1:3", "ready": {ready}}}]}}]}}}}}}""".encode()
    )


def canary_share(found: Balancer, draws: int) -> float:
    service = found.services["assistant"]
    return sum(found.draw(service).name == "canary" for _ in range(draws)) / draws


@pytest.mark.parametrize("percent", [1, 5, 15, 50, 90])
def test_draws_follow_the_declared_share(percent: float) -> None:
    share, draws = percent / 100, 40_000
    error = 4 * math.sqrt(share * (1 - share) / draws)  # 1 in 16,000 by chance
    assert canary_share(balancer(percent), draws) == pytest.approx(share, abs=error)


def test_draws_do_not_depend_on_the_ones_before() -> None:
    found = balancer(50)
    service = found.services["assistant"]
    drawn = [found.draw(service).name == "canary" for _ in range(40_000)]
    runs = 1 + sum(a != b for a, b in zip(drawn, drawn[1:], strict=False))
    assert abs(runs - 20_000) < 4 * 100  # Wald-Wolfowitz: sd of the runs is sqrt(n) / 2


@pytest.mark.parametrize(("percent", "share"), [(0, 0.0), (100, 1.0)])
def test_the_ends_of_the_scale_are_exact(percent: float, share: float) -> None:
    assert canary_share(balancer(percent), 1000) == share


def test_a_revision_that_is_not_ready_is_never_drawn() -> None:
    assert canary_share(balancer(50, canary_ready=False), 1000) == 0


def test_health_seen_here_does_not_touch_the_draw() -> None:
    found = balancer(50)
    for endpoint in found.endpoints():
        endpoint.ejected = True
    assert 0.4 < canary_share(found, 1000) < 0.6


def sticky(found: Balancer) -> set[int]:
    service = found.services["assistant"]
    return {n for n in range(4000) if found.draw(service, f"conversation {n}").name == "canary"}


def test_a_conversation_keeps_its_arm_and_never_moves_back_as_the_share_rises() -> None:
    found = balancer(5)
    before: set[int] = set()
    for percent in (5, 15, 50, 80):
        found.apply(routes(percent))
        canary = sticky(found)
        assert canary == sticky(found)
        assert canary >= before
        assert len(canary) / 4000 == pytest.approx(percent / 100, abs=0.035)
        before = canary


def test_another_release_asks_other_conversations_first() -> None:
    found = balancer(20)
    first = sticky(found)
    found.apply(routes(20, canary="assistant-00003"))
    second = sticky(found)
    assert len(first & second) < 0.5 * len(first)


def test_another_gateway_with_the_same_key_draws_conversations_alike() -> None:
    assert sticky(balancer(20, seed=1)) == sticky(balancer(20, seed=2))


def test_the_less_loaded_server_of_an_arm_is_chosen() -> None:
    found = balancer(0)
    first, second, _ = found.endpoints()
    stable = found.services["assistant"].arms[0]
    first.outstanding = 5
    assert found.choose("assistant", stable) == (stable, second)
    second.ejected = True
    assert found.choose("assistant", stable) == (stable, first)


def test_a_held_request_follows_its_revision_through_new_routes() -> None:
    found = balancer(50)
    drawn = found.services["assistant"].arms[1]
    found.apply(routes(60))
    arm, endpoint = found.choose("assistant", drawn) or pytest.fail("nothing chosen")
    assert endpoint is not None
    assert (arm.revision, endpoint.url) == ("assistant-00002", "http://127.0.0.1:3")
    found.apply(routes(60, canary="assistant-00003"))
    arm, _ = found.choose("assistant", drawn) or pytest.fail("nothing chosen")
    assert arm.revision == "assistant-00001"


def test_server_states_survive_new_routes() -> None:
    found = balancer(5)
    next(iter(found.endpoints())).ejected = True
    found.apply(routes(50))
    assert [endpoint.ejected for endpoint in found.endpoints()] == [True, False, False]


def arm_text(arm: str = "stable", percent: float = 100, more: str = "") -> str:
    arms = f'[{{"arm": "{arm}", "revision": "r", "percent": {percent}{more}}}]'
    return f'{{"generation": 1, "services": {{"a": {{"arms": {arms}}}}}}}'


@pytest.mark.parametrize(
    "text",
    [
        arm_text(arm="canary"),
        arm_text(arm="other"),
        arm_text(percent=90),
        arm_text(percent=250),
        arm_text(more=', "endpoints": [{"url": "file:///etc/passwd"}]'),
        '{"generation": "x"}',
        "\ufeff",
        "",
    ],
)
def test_impossible_routes_are_refused(text: str) -> None:
    assert parse_routes(arm_text().encode()).services["a"].arms[0].percent == 100
    with pytest.raises(InputError):
        parse_routes(text.encode())


def test_real_traffic_is_split_and_counted_as_declared(
    calm: tuple[World, Predictor, Predictor],
) -> None:
    world, stable, canary = calm
    world.route(stable, canary, percent=25)
    before = world.counters()
    load = world.load(400, seconds=4, arrivals="uniform")
    report = load.wait()
    sample = until(lambda: _settled(world))
    assert report.failed == 0
    assert sample.share == 0.25
    assert before.stable is not None
    assert before.canary is not None
    drawn = sample.canary.draws - before.canary.draws
    total = drawn + sample.stable.draws - before.stable.draws
    assert total == report.sent
    assert drawn == report.by_arm["canary"].ok == report.by_version["2"].ok
    assert canary.seen()["requests"] == drawn
    assert abs(drawn - total / 4) < 4 * math.sqrt(total * 0.25 * 0.75)


def _settled(world: World) -> CounterSample | None:
    sample = world.counters()
    arms = (sample.stable, sample.canary)
    return sample if all(arm and arm.draws == arm.requests for arm in arms) else None
