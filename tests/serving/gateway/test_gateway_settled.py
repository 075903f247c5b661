"""The gateway's settled outcomes in real traffic: by the arm drawn, in their order."""

import signal
import threading
from typing import Any

import httpx
import pytest
from gateway_world import ASK, CHAT, CLIENT, Predictor, World, until

from core.contracts import (
    LATENCY_BUCKET_COUNT,
    LATENCY_BUCKETS_SECONDS,
    ArmOutcomes,
    CounterSample,
    Stratum,
)

Calm = tuple[World, Predictor, Predictor]


def stratum(world: World, share: float) -> Stratum:
    found = [item for item in world.counters().strata if item.share == share]
    return found[0] if found else Stratum(share)


def requests(found: Stratum) -> int:
    return found.stable.requests + found.canary.requests


def completed(sample: CounterSample) -> int:
    return sum(arm.requests for arm in (sample.stable, sample.canary) if arm is not None)


def ask_drawn_for(world: World, arm: str, **more: Any) -> httpx.Response:
    """Ask until a request is drawn for `arm`, and return its answer."""
    answer: httpx.Response = world.ask(**more)
    while answer.headers["x-serin-arm"] != arm:
        answer = world.ask(**more)
    return answer


@pytest.fixture
def share() -> float:
    """A share that no other test has used: the shared gateway keeps its counts."""
    return next(SHARES)


# Odd ones that survive the way to percent and back exactly.
SHARES = iter(n / 1000 for n in range(413, 600, 10) if 100 * (n / 1000) / 100 == n / 1000)


def test_slow_answers_hold_the_counts_back_until_they_are_there(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    canary.behave(delay=1.0)
    before = completed(world.counters())
    world.route(stable, canary, percent=100 * share)

    def held_back() -> bool:
        sample = world.counters()
        found = next((item for item in sample.strata if item.share == share), Stratum(share))
        return 0 < requests(found) < completed(sample) - before - 20

    load = world.load(150, seconds=3, arrivals="uniform")
    until(held_back)
    report = load.wait()
    found = until(lambda: done if requests(done := stratum(world, share)) == report.sent else 0)
    assert found.canary.requests == report.by_arm["canary"].ok
    assert found.stable.requests == report.by_arm["stable"].ok
    assert sum(found.canary.latencies.values()) == found.canary.requests
    assert min(LATENCY_BUCKETS_SECONDS[index] for index in found.canary.latencies) >= 1.0


def test_two_shares_are_two_strata_in_order(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    first, second = share, share / 2
    for declared in (first, second):
        world.route(stable, canary, percent=100 * declared)
        for _ in range(5):
            world.ask()
    found = [item for item in world.counters().strata if item.share in (first, second)]
    assert [item.share for item in found] == [first, second]
    assert [requests(item) for item in found] == [5, 5]


def test_a_diverted_request_is_an_error_of_the_arm_drawn(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    canary.behave(drop=True)
    world.route(stable, canary, percent=100 * share)
    answer = ask_drawn_for(world, "canary")
    assert answer.status_code == 200
    assert answer.headers["x-serin-revision"] == stable.revision
    found = stratum(world, share)
    assert (found.canary.requests, found.canary.errors) == (1, 1)
    assert found.stable.errors == 0


def test_a_request_unanswered_at_its_deadline_is_an_error_beyond_all_buckets(
    calm: Calm, share: float
) -> None:
    world, stable, canary = calm
    canary.behave(delay=10)
    world.route(stable, canary, percent=100 * share)
    answer = ask_drawn_for(world, "canary", headers={"x-serin-deadline-seconds": "0.2"})
    assert answer.status_code == 504
    assert stratum(world, share).canary == ArmOutcomes(1, 1, 0, {LATENCY_BUCKET_COUNT: 1}, {})


def test_a_client_that_leaves_is_no_error(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    for predictor in (stable, canary):
        predictor.behave(delay=5)
    world.route(stable, canary, percent=100 * share)
    with pytest.raises(httpx.ReadTimeout):
        world.ask(timeout=0.3)
    found = until(lambda: done if requests(done := stratum(world, share)) else None)
    arm = found.canary if found.canary.requests else found.stable
    assert arm.errors == 0
    (index,) = arm.latencies
    assert 0.2 < LATENCY_BUCKETS_SECONDS[index] < 3


@pytest.mark.parametrize(("said", "blocks"), [("1", 1), ("violence", 1), ("0", 0)])
def test_blocked_answers_are_counted(calm: Calm, share: float, said: str, blocks: int) -> None:
    world, stable, canary = calm
    canary.behave(blocked=said)
    world.route(stable, canary, percent=100 * share)
    ask_drawn_for(world, "canary")
    found = stratum(world, share)
    assert (found.canary.blocks, found.canary.errors, found.stable.blocks) == (blocks, 0, 0)


@pytest.mark.parametrize(("said", "blocks"), [("content_filter", 1), ("stop", 0)])
def test_a_stream_that_is_blocked_on_its_way_is_counted(
    calm: Calm, share: float, said: str, blocks: int
) -> None:
    world, stable, canary = calm
    canary.behave(finish=said, blocked="0")
    world.route(stable, canary, percent=100 * share)
    ask_drawn_for(world, "canary", stream=True)
    found = stratum(world, share)
    assert (found.canary.blocks, found.canary.errors, found.stable.blocks) == (blocks, 0, 0)


def test_a_conversation_is_one_observation(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    world.route(stable, canary, percent=100 * share)
    for name in ("one", "two"):
        arms = {
            world.ask(headers={"x-serin-conversation": f"{share} {name}"}).headers["x-serin-arm"]
            for _ in range(4)
        }
        assert len(arms) == 1
    world.ask()
    assert requests(stratum(world, share)) == 3


def test_nothing_is_settled_at_0_or_100_percent(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    world.route(stable, canary, percent=100 * share)
    world.ask()
    before = world.counters().strata
    for percent in (0, 100):
        world.route(stable, canary, percent=percent)
        world.ask()
        assert world.counters().strata == before
    world.route(stable)
    world.ask()
    assert world.counters().strata == ()


def test_other_revisions_are_another_comparison_and_a_restart_another_process(
    world: World, stable: Predictor, canary: Predictor
) -> None:
    process = world.start_gateway(seed=3)
    world.route(stable, canary, percent=50)
    for _ in range(4):
        world.ask()
    first = world.counters()
    assert requests(first.strata[0]) == 4
    third = Predictor("assistant-00003", "3", canary.process, canary.url)
    canary.behave(revision="assistant-00003")
    world.route(stable, third, percent=50)
    assert world.counters().strata == ()
    world.ask()
    assert requests(world.counters().strata[0]) == 1
    assert world.counters().process == first.process
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    world.start_gateway(seed=3)
    until(lambda: world.applied() == world.generation)
    again = world.counters()
    assert again.process
    assert again.process != first.process
    assert again.strata == ()


def test_a_gateway_without_its_key_says_so(world: World) -> None:
    (world.home / "control").mkdir()
    (world.home / "control" / "response.key").write_bytes(b"damaged")
    process = world.start_gateway("--port", "0")
    assert process.wait(15) == 1


def test_requests_in_flight_are_not_counted_yet(calm: Calm, share: float) -> None:
    world, stable, canary = calm
    stable.behave(delay=0.5)
    canary.behave(delay=0.5)
    world.route(stable, canary, percent=100 * share)
    threads = [
        threading.Thread(target=CLIENT.post, args=(world.url + CHAT,), kwargs={"json": ASK})
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    until(lambda: stable.seen()["requests"] + canary.seen()["requests"] == 3)
    assert requests(stratum(world, share)) == 0
    for thread in threads:
        thread.join()
    assert requests(stratum(world, share)) == 3
