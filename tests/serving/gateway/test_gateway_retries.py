"""Predictors that die, hang, break off or refuse: what the client sees and what is counted."""

import signal
import time
from typing import Any

import httpx
import pytest
from gateway_world import ASK, CHAT, CLIENT, Predictor, World, until

Calm = tuple[World, Predictor, Predictor]
STABLE = {"arm": "stable"}
CANARY = {"arm": "canary"}


def outcomes(world: World, **labels: str) -> dict[str, float]:
    """Counts by outcome, of the series with these labels."""
    return {
        outcome: world.metric("serin_gateway_requests_total", outcome=outcome, **labels)
        for outcome in ("ok", "error", "client_error", "cancelled")
    }


def grown(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    return {name: after[name] - before[name] for name in after if after[name] != before[name]}


def stream(world: World) -> httpx.Response:
    answer: httpx.Response = CLIENT.post(world.url + CHAT, json={**ASK, "stream": True})
    return answer


@pytest.mark.parametrize(
    "mood",
    [
        {"drop": True},
        {"cut_body": True},
        {"status": 500},
        {"status": 503},
        {"revision": "somebody-else"},
    ],
    ids=str,
)
def test_the_other_arm_answers_and_the_drawn_arm_gets_the_error(
    calm: Calm, mood: dict[str, Any]
) -> None:
    world, stable, canary = calm
    canary.behave(**mood)
    world.route(stable, canary, percent=100)
    before = outcomes(world, revision=canary.revision), outcomes(world, revision=stable.revision)
    draws = world.metric("serin_gateway_draws_total", revision=canary.revision)
    answer = world.ask()
    assert answer.status_code == 200
    assert answer.headers["x-serin-arm"] == "canary"
    assert answer.headers["x-serin-revision"] == stable.revision
    assert (canary.seen()["requests"], stable.seen()["requests"]) == (1, 1)
    assert grown(before[0], outcomes(world, revision=canary.revision)) == {"error": 1}
    assert grown(before[1], outcomes(world, revision=stable.revision)) == {}
    assert world.metric("serin_gateway_draws_total", revision=canary.revision) == draws + 1
    assert world.metric("serin_gateway_retries_total", revision=canary.revision) >= 1


def test_a_stream_that_breaks_before_its_first_event_is_retried(calm: Calm) -> None:
    world, stable, canary = calm
    canary.behave(cut_stream_after=0)
    world.route(stable, canary, percent=100)
    answer = stream(world)
    assert answer.headers["x-serin-revision"] == stable.revision
    assert "[DONE]" in answer.text


@pytest.mark.parametrize("inside", [False, True], ids=["between-events", "inside-an-event"])
def test_a_stream_that_breaks_later_ends_with_an_error_event(calm: Calm, inside: bool) -> None:
    world, stable, _ = calm
    stable.behave(cut_stream_after=2, cut_inside_event=inside, gap=0.02)
    before = outcomes(world, **STABLE)
    answer = stream(world)
    events = [event for event in answer.text.split("\n\n") if event]
    assert answer.status_code == 200
    assert len(events) == 3
    assert events[2].startswith('data: {"error"')
    assert grown(before, outcomes(world, **STABLE)) == {"error": 1}
    assert stable.seen()["requests"] == 1


def test_a_stream_without_its_end_mark_counts_as_an_error(calm: Calm) -> None:
    world, stable, _ = calm
    stable.behave(done=False)
    before = outcomes(world, **STABLE)
    stream(world)
    assert grown(before, outcomes(world, **STABLE)) == {"error": 1}


def test_a_large_answer_that_breaks_off_is_cut_so_that_the_client_sees_it(calm: Calm) -> None:
    world, stable, _ = calm
    stable.behave(cut_body=True)
    with pytest.raises(httpx.RemoteProtocolError):
        _ask_with_small_buffer(world, stable)


def _ask_with_small_buffer(world: World, stable: Predictor) -> None:
    other = World(world.home)
    try:
        other.start_gateway(buffer_bytes_max=0)
        until(lambda: other.applied() == world.generation)
        other.ask()
    finally:
        other.close()


def test_a_request_is_sent_no_more_than_twice(calm: Calm) -> None:
    world, stable, canary = calm
    stable.behave(drop=True)
    canary.behave(drop=True)
    world.route(stable, canary, percent=50)
    answer = world.ask()
    assert answer.status_code == 502
    assert stable.seen()["requests"] + canary.seen()["requests"] == 2


def test_a_rejected_canary_never_answers_for_a_dead_stable(calm: Calm) -> None:
    world, stable, canary = calm
    stable.behave(status=503, ready=False)
    world.route(stable, canary, percent=0)
    assert world.ask().status_code == 503
    assert canary.seen()["requests"] == 0
    stable.behave()


def test_a_predictor_that_asks_for_another_token_fails_and_its_clients_are_not_told_so(
    calm: Calm,
) -> None:
    world, stable, canary = calm
    canary.behave(status=401)
    world.route(stable, canary, percent=100)
    answer = world.ask()
    assert answer.status_code == 200
    assert answer.headers["x-serin-revision"] == stable.revision


def test_a_full_arm_sheds_its_load_instead_of_moving_it_to_the_other(calm: Calm) -> None:
    world, stable, canary = calm
    canary.behave(status=429)
    world.route(stable, canary, percent=100)
    before = outcomes(world, **CANARY)
    assert world.ask().status_code == 429
    assert stable.seen()["requests"] == 0
    assert grown(before, outcomes(world, **CANARY)) == {"error": 1}


def test_a_second_server_of_the_same_arm_answers_first(calm: Calm) -> None:
    world, stable, canary = calm
    twin = world.predictor(stable.revision, "1")
    twin.behave(drop=True)
    world.route([stable, twin], canary, percent=50)
    answers = [world.ask() for _ in range(30)]
    assert {answer.status_code for answer in answers} == {200}
    for answer in answers:
        own = stable if answer.headers["x-serin-arm"] == "stable" else canary
        assert answer.headers["x-serin-revision"] == own.revision
    assert len({answer.headers["x-serin-arm"] for answer in answers}) == 2
    assert twin.seen()["requests"] >= 1
    twin.kill()


def test_a_canary_that_is_not_ready_has_share_zero(calm: Calm) -> None:
    world, stable, canary = calm
    world.route(stable, canary, percent=60, canary_ready=False)
    assert world.counters().share == 0
    assert {world.ask().headers["x-serin-arm"] for _ in range(10)} == {"stable"}
    assert canary.seen()["requests"] == 0


def test_an_ejected_server_gets_nothing_until_it_says_that_it_is_ready(calm: Calm) -> None:
    world, stable, canary = calm
    canary.behave(status=503, ready=False)
    world.route(stable, canary, percent=100)
    world.ask()
    canary.behave(ready=False)
    for _ in range(5):
        assert world.ask().headers["x-serin-revision"] == stable.revision
    assert canary.seen()["requests"] == 0
    canary.behave()
    until(lambda: world.ask().headers["x-serin-revision"] == canary.revision)


def test_a_killed_canary_under_load_costs_no_request(world: World) -> None:
    stable, canary = (
        world.predictor("assistant-00001", "1"),
        world.predictor("assistant-00002", "2"),
    )
    stable.behave(delay=0.02)
    canary.behave(delay=0.02)
    world.start_gateway(eject_seconds_first=0.05)
    world.route(stable, canary, percent=50)
    load = world.load(100, stream_share=0.3)
    until(lambda: canary.seen()["requests"] > 20)
    canary.kill()
    errors = until(lambda: outcomes(world, **CANARY)["error"])
    time.sleep(0.5)
    report = load.stop()
    broken = report.causes.get("broken_stream", 0)  # streams that had begun cannot be retried
    assert report.failed == broken <= 3
    assert report.ok + broken == report.sent > 50
    assert errors >= 1
    assert outcomes(world, **STABLE)["error"] == 0
    assert world.metric("serin_gateway_draws_total") == report.sent


def test_requests_are_held_while_the_only_server_starts_again(world: World) -> None:
    stable = world.predictor("assistant-00001", "1")
    world.start_gateway(eject_seconds_first=0.05)
    world.route(stable)
    load = world.load(40)
    until(lambda: stable.seen()["requests"] > 10)
    stable.kill()
    time.sleep(0.7)
    successor = world.predictor("assistant-00001", "1")
    world.route(successor)
    until(lambda: successor.seen()["requests"] > 40)
    report = load.stop()
    assert report.failed == report.limited == 0
    assert report.ok == report.sent


def test_a_stopped_server_is_found_out_and_its_requests_go_elsewhere(world: World) -> None:
    stable, canary = (
        world.predictor("assistant-00001", "1"),
        world.predictor("assistant-00002", "2"),
    )
    world.start_gateway(suspect_seconds=0.3, probe_seconds_max=0.2, hung_probes=3)
    world.route(stable, canary, percent=50)
    assert world.ask().status_code == 200
    canary.signal(signal.SIGSTOP)
    load = world.load(20)
    until(lambda: world.metric("serin_gateway_ejections_total", reason="hung") == 1)
    canary.signal(signal.SIGCONT)
    until(lambda: canary.seen()["requests"] > 5)
    report = load.stop()
    assert report.failed == 0
    assert report.total.p99_seconds is not None
    assert report.total.p99_seconds < 4
    assert outcomes(world, **STABLE)["error"] == 0
    assert outcomes(world, **CANARY)["error"] >= 1


def test_a_server_silent_for_too_long_is_given_up(world: World) -> None:
    stable, canary = (
        world.predictor("assistant-00001", "1"),
        world.predictor("assistant-00002", "2"),
    )
    world.start_gateway(silence_seconds_max=0.5)
    world.route(stable, canary, percent=100)
    canary.behave(delay=30)
    started = time.monotonic()
    answer = world.ask()
    assert answer.headers["x-serin-revision"] == stable.revision
    assert time.monotonic() - started < 3
    assert world.metric("serin_gateway_retries_total", reason="silent") == 1


@pytest.mark.parametrize(("gap", "whole"), [(30.0, False), (0.2, True)])
def test_a_stream_may_take_long_but_not_be_silent_for_long(
    world: World, stable: Predictor, gap: float, whole: bool
) -> None:
    world.start_gateway(silence_seconds_max=0.5)
    world.route(stable)
    stable.behave(chunks=5, gap=gap)
    started = time.monotonic()
    text = world.ask(stream=True).text
    assert text.rstrip().endswith("data: [DONE]") is whole
    assert ("answer_broken" in text) is not whole
    assert time.monotonic() - started < 5
    assert world.metric("serin_gateway_ejections_total", reason="silent") == (0 if whole else 1)


def test_a_slow_but_answering_server_is_not_taken_for_hung(world: World, stable: Predictor) -> None:
    world.start_gateway(suspect_seconds=0.2, probe_seconds_max=0.2, hung_probes=2)
    world.route(stable)
    stable.behave(delay=1.5)
    assert world.ask().status_code == 200
    assert world.metric("serin_gateway_ejections_total") == 0
    assert stable.seen()["ready_asked"] >= 2
