"""Servers that are full, requests that are sent again, and a second server that is quicker."""

import threading
from collections import Counter
from typing import Any

import httpx
import pytest
from gateway_world import Predictor, World, until


@pytest.fixture
def pair(world: World) -> tuple[Predictor, Predictor]:
    """Two servers of the same revision."""
    return world.predictor("assistant-00001", "1"), world.predictor("assistant-00001", "1")


def at_once(world: World, count: int, **more: Any) -> list[httpx.Response]:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(world.ask(**more))) for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_a_full_servers_requests_wait_for_it_and_pull_no_other_arm_down(
    world: World, stable: Predictor, canary: Predictor
) -> None:
    world.start_gateway(endpoint_concurrency_max=1, endpoint_waiting_max=2)
    world.route(stable, canary, percent=50)
    world.route(stable, canary, percent=100)
    canary.behave(delay=2.0)
    answers = at_once(world, 6)
    statuses = Counter(answer.status_code for answer in answers)
    assert statuses == {200: 3, 429: 3}
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"upstream_full"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert stable.seen()["requests"] == 0
    assert canary.seen()["requests"] == 3


def test_a_wait_for_a_full_server_has_an_end(world: World, stable: Predictor) -> None:
    world.start_gateway(endpoint_concurrency_max=1, waiting_seconds_max=0.3)
    world.route(stable)
    stable.behave(delay=4.0)
    answers = at_once(world, 3)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 429: 2}


def test_without_a_budget_nothing_is_sent_again(
    world: World, pair: tuple[Predictor, Predictor]
) -> None:
    world.start_gateway(retry_share_max=0, retries_per_second_min=0, eject_seconds_first=0.05)
    world.route(list(pair))
    for predictor in pair:
        predictor.behave(status=500)
    answer = world.ask()
    assert (answer.status_code, answer.json()["error"]["message"]) == (500, "as told")
    for predictor in pair:
        predictor.behave(drop=True)
    answer = world.ask()
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "retries_used_up")
    assert sum(predictor.seen()["requests"] for predictor in pair) == 1
    assert world.metric("serin_gateway_retry_budget_exhausted_total") == 1
    for predictor in pair:
        predictor.behave()
    pair[0].kill()  # nothing has begun there, so the other may always be asked
    for _ in range(5):
        assert world.ask().status_code == 200


def test_a_second_server_is_asked_only_where_that_is_configured(
    world: World, pair: tuple[Predictor, Predictor]
) -> None:
    quick, slow = pair
    slow.behave(delay=3.0)
    world.start_gateway(hedge_seconds=0.15, cache_seconds=0)
    world.route(list(pair))
    answers = [world.ask(temperature=0) for _ in range(8)]
    assert {answer.status_code for answer in answers} == {200}
    sent = world.metric("serin_gateway_hedges_total", outcome="sent")
    assert sent == world.metric("serin_gateway_hedges_total", outcome="won") >= 1
    until(lambda: slow.seen()["left"] == sent)  # who is not needed any more may stop
    assert quick.seen()["requests"] == 8
    slow.behave(delay=0.5)
    quick.behave()
    for more in ({"temperature": 1}, {"temperature": 0, "stream": True}) * 3:
        assert world.ask(**more).status_code == 200
    assert slow.seen()["requests"] + quick.seen()["requests"] == 6
    assert world.metric("serin_gateway_hedges_total", outcome="sent") == sent


def test_a_failing_second_server_spoils_nothing(
    world: World, pair: tuple[Predictor, Predictor]
) -> None:
    failing, slow = pair
    slow.behave(delay=0.6)
    world.start_gateway(hedge_seconds=0.1, cache_seconds=0)
    world.route(list(pair))
    failing.behave(status=500)
    answers = [world.ask(temperature=0) for _ in range(6)]
    assert {answer.status_code for answer in answers} == {200}
    assert failing.seen()["requests"] >= 1


def test_while_a_canary_runs_nothing_is_asked_twice(
    world: World, pair: tuple[Predictor, Predictor], canary: Predictor
) -> None:
    for predictor in pair:
        predictor.behave(delay=0.3)
    world.start_gateway(hedge_seconds=0.05)
    world.route(list(pair), canary, percent=1)
    assert {world.ask(temperature=0).status_code for _ in range(6)} == {200}
    assert world.metric("serin_gateway_hedges_total", outcome="sent") == 0
    world.route(list(pair))
    world.ask(temperature=0)
    until(lambda: world.metric("serin_gateway_hedges_total", outcome="sent") == 1)
