"""Answers given again: only equal deterministic ones, one made for many, never in a canary."""

import threading
import time
from typing import Any

import httpx
import pytest
from gateway_world import Predictor, World, until

Calm = tuple[World, Predictor, Predictor]
ALLOW = {"x-serin-cache": "allow"}


def fixed(world: World, **more: Any) -> httpx.Response:
    """Ask a deterministic question."""
    answer: httpx.Response = world.ask(**{"temperature": 0, **more})
    return answer


def serve(world: World, predictor: Predictor) -> None:
    """Give one predictor all traffic, and wait until its policy is known."""
    world.route(predictor)
    until(world.keeps_answers)


@pytest.fixture
def question(request: pytest.FixtureRequest) -> dict[str, Any]:
    """A question that no other test asks: the shared gateway keeps its answers."""
    name = f"{request.node.name} {time.time()}"
    return {"messages": [{"role": "user", "content": name}]}


def test_an_equal_question_gets_the_same_answer_with_its_id_and_age(
    calm: Calm, question: dict[str, Any]
) -> None:
    world, stable, _ = calm
    serve(world, stable)
    first = fixed(world, **question)
    # the same object with its fields in another order is the same question
    again = fixed(world, **{"max_tokens": 5, **question, "top_p": 1})
    other_order = fixed(world, **{"top_p": 1, **question, "max_tokens": 5})
    second = fixed(world, **question)
    assert [answer.headers["x-serin-cache"] for answer in (first, again, other_order, second)] == [
        "miss", "miss", "hit", "hit",
    ]  # fmt: skip
    assert second.json() == first.json()
    assert second.headers["x-serin-response-id"] == first.headers["x-serin-response-id"]
    assert second.headers["x-serin-model-version"] == stable.version
    assert second.headers["content-type"] == first.headers["content-type"]
    assert second.headers["x-request-id"] != first.headers["x-request-id"]
    assert int(second.headers["age"]) < 30
    assert stable.seen()["requests"] == 2


@pytest.mark.parametrize(
    ("more", "headers"),
    [
        ({}, {}),
        ({"temperature": 0.2}, {}),
        ({"temperature": "0"}, {}),
        ({"temperature": 0, "stream": True}, {}),
        ({"temperature": 0}, {"x-serin-cache": "bypass"}),
        ({"temperature": 0}, {"cache-control": "no-cache"}),
        ({"temperature": 0}, {"cache-control": "max-age=0, No-Store"}),
    ],
)
def test_other_requests_are_answered_anew(
    calm: Calm, question: dict[str, Any], more: dict[str, Any], headers: dict[str, str]
) -> None:
    world, stable, _ = calm
    serve(world, stable)
    answers = [world.ask(**question, **more, headers=headers) for _ in range(2)]
    assert all("x-serin-cache" not in answer.headers for answer in answers)
    assert stable.seen()["requests"] == 2


def test_a_client_may_ask_for_it_where_answers_differ(calm: Calm, question: dict[str, Any]) -> None:
    world, stable, _ = calm
    serve(world, stable)
    answers = [world.ask(**question, temperature=1, headers=ALLOW) for _ in range(2)]
    assert answers[1].headers["x-serin-cache"] == "hit"
    assert "x-serin-cache" not in stable.seen()["headers"]


def test_nobody_gets_what_another_tenant_was_answered(calm: Calm, question: dict[str, Any]) -> None:
    world, stable, _ = calm
    serve(world, stable)
    tenants: list[dict[str, str]] = [
        {}, {"authorization": "Bearer a"}, {"authorization": "Bearer b"}, {"x-api-key": "Bearer a"},
    ]  # fmt: skip
    outcomes = [
        fixed(world, **question, headers=tenant).headers["x-serin-cache"]
        for _ in range(2)
        for tenant in tenants
    ]
    assert outcomes == ["miss"] * 4 + ["hit"] * 4


@pytest.mark.parametrize("mood", [{"blocked": "1"}, {"status": 400}, {"status": 500}])
def test_blocked_and_failed_answers_are_not_kept(
    calm: Calm, question: dict[str, Any], mood: dict[str, Any]
) -> None:
    world, stable, _ = calm
    serve(world, stable)
    stable.behave(**mood)
    fixed(world, **question)
    stable.behave()
    until(world.keeps_answers)
    assert fixed(world, **question).headers["x-serin-cache"] == "miss"
    assert stable.seen()["requests"] == 1


def test_another_version_answers_anew(calm: Calm, question: dict[str, Any]) -> None:
    world, stable, canary = calm
    serve(world, stable)
    fixed(world, **question)
    serve(world, canary)
    answer = fixed(world, **question)
    assert answer.headers["x-serin-cache"] == "miss"
    assert answer.headers["x-serin-model-version"] == canary.version


@pytest.fixture
def own(world: World) -> Predictor:
    """A predictor that no other test uses: it may change its policy."""
    return world.predictor("assistant-00001", "1")


def test_a_changed_policy_ends_what_was_kept_under_the_one_before(
    world: World, own: Predictor, question: dict[str, Any]
) -> None:
    world.start_gateway()
    serve(world, own)
    fixed(world, **question)
    assert fixed(world, **question).headers["x-serin-cache"] == "hit"
    own.behave(policy="p2")
    answer = until(lambda: not_kept(fixed(world, **question)))
    assert answer.headers["x-serin-policy"] == "p2"
    until(lambda: fixed(world, **question).headers.get("x-serin-cache") == "hit")
    assert fixed(world, **question).headers["x-serin-policy"] == "p2"


def test_nothing_kept_is_given_while_the_policy_is_not_known(
    world: World, own: Predictor, question: dict[str, Any]
) -> None:
    world.start_gateway(policy_seconds_max=0.5)
    serve(world, own)
    fixed(world, **question)
    own.behave(hides_policy=True)
    until(lambda: not world.keeps_answers())
    assert "x-serin-cache" not in fixed(world, **question).headers
    own.behave(policy="")
    assert not world.keeps_answers()
    assert "x-serin-cache" not in fixed(world, **question).headers
    own.behave()
    until(lambda: fixed(world, **question).headers.get("x-serin-cache") == "hit")


def test_predictors_under_two_policies_give_nothing_kept(
    world: World, own: Predictor, question: dict[str, Any]
) -> None:
    second = world.predictor(own.revision, own.version)
    world.start_gateway()
    world.route([own, second])
    until(world.keeps_answers)
    second.behave(policy="p2")
    until(lambda: not world.keeps_answers())
    assert "x-serin-cache" not in fixed(world, **question).headers
    own.behave(policy="p2")
    until(world.keeps_answers)


def test_equal_questions_at_once_are_asked_once(calm: Calm, question: dict[str, Any]) -> None:
    world, stable, _ = calm
    serve(world, stable)
    stable.behave(delay=0.6)
    answers = ask_at_once(world, question, 12)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.headers["x-serin-response-id"] for answer in answers}) == 1
    assert stable.seen()["requests"] == 1


def test_when_the_first_of_equal_questions_leaves_another_takes_its_place(
    calm: Calm, question: dict[str, Any]
) -> None:
    world, stable, _ = calm
    serve(world, stable)
    stable.behave(delay=1.0)
    left: list[str] = []

    def leave() -> None:
        try:
            fixed(world, **question, timeout=0.5)
        except httpx.TimeoutException:
            left.append("left")

    first = threading.Thread(target=leave)
    first.start()
    until(lambda: stable.seen()["requests"] == 1)
    answers = ask_at_once(world, question, 5)
    first.join()
    assert left == ["left"]
    assert {answer.status_code for answer in answers} == {200}
    assert stable.seen()["requests"] == 2


def test_who_waits_for_an_equal_question_waits_no_longer_than_allowed(
    calm: Calm, question: dict[str, Any]
) -> None:
    world, stable, _ = calm
    serve(world, stable)
    stable.behave(delay=3.0)
    first = threading.Thread(target=fixed, args=(world,), kwargs=question)
    first.start()
    until(lambda: stable.seen()["requests"] == 1)
    answer = fixed(world, **question, headers={"x-serin-deadline-seconds": "0.2"})
    assert answer.status_code == 504
    assert answer.json()["error"]["code"] == "deadline_passed"
    first.join()


def test_a_canary_is_judged_on_answers_that_were_made_for_it(
    calm: Calm, question: dict[str, Any]
) -> None:
    """A/A with the cache on: both arms answer the same few questions, and each answer counts."""
    world, stable, canary = calm
    serve(world, stable)
    for _ in range(3):
        fixed(world, **question)
    assert stable.seen()["requests"] == 1
    world.route(stable, canary, percent=47)
    answers = [fixed(world, **question) for _ in range(120)]
    assert all("x-serin-cache" not in answer.headers for answer in answers)
    (found,) = [item for item in world.counters().strata if item.share == 0.47]
    assert found.stable.requests + found.canary.requests == 120
    assert found.canary.requests == canary.seen()["requests"]
    assert found.stable.requests == stable.seen()["requests"] - 1
    world.route(stable, canary, percent=0)
    assert "x-serin-cache" not in fixed(world, **question).headers
    serve(world, stable)
    assert fixed(world, **question).headers["x-serin-cache"] == "hit"


def test_what_the_cache_did_is_counted(calm: Calm, question: dict[str, Any]) -> None:
    world, stable, _ = calm
    serve(world, stable)
    names = ("hit", "miss", "bypass")
    before = [world.metric("serin_gateway_cache_total", outcome=name) for name in names]
    drawn = world.metric("serin_gateway_draws_total")
    for temperature in (0, 0, 0, 1):
        world.ask(**question, temperature=temperature)
    after = [world.metric("serin_gateway_cache_total", outcome=name) for name in names]
    assert [new - old for new, old in zip(after, before, strict=True)] == [2, 1, 1]
    assert world.metric("serin_gateway_draws_total") - drawn == 2
    assert world.metric("serin_gateway_cache_entries") > 0


def not_kept(answer: httpx.Response) -> httpx.Response | None:
    return None if answer.headers.get("x-serin-cache") == "hit" else answer


def ask_at_once(world: World, question: dict[str, Any], count: int) -> list[httpx.Response]:
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(target=lambda: answers.append(fixed(world, **question)))
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers
