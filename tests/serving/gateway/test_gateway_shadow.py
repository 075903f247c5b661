"""Shadow mode in real traffic: compared behind the client's back, never at its cost."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gateway_world import ASK, CLIENT, ROOT, Predictor, World, until

from core.contracts import ScoredPairs
from core.keys import bearer, predictor_token

Start = Callable[..., World]


@pytest.fixture
def start(world: World, stable: Predictor, canary: Predictor) -> Start:
    """Start a gateway that shadows everything; the canary is loaded and gets no client."""

    def started(**config: Any) -> World:
        given = {"shadow_share": 1.0, "seed": 3, **config}
        world.start_gateway(**given)
        world.route(stable, canary, percent=0)
        until(lambda: world.ask().status_code == 200)
        if given["shadow_share"]:
            until(lambda: canary.seen()["requests"] == 1 and shadow(world, "requests") == 1)
        return world

    return started


def shadow(world: World, name: str) -> float:
    found: float = world.metric(f"serin_gateway_shadow_{name}_total")
    return found


def write_probes(home: Path, text: str) -> None:
    temporary = home / "probes.new"
    temporary.write_text(text)
    os.replace(temporary, home / "probes.jsonl")


def probe(content: str, response: str) -> str:
    messages = [{"role": "user", "content": content}]
    return json.dumps({"messages": messages, "response": response, "slice": "any"}) + "\n"


def say(world: World, content: str) -> None:
    """Ask and wait until the shadow call is over."""
    before = shadow(world, "requests")
    world.ask(messages=[{"role": "user", "content": content}]).raise_for_status()
    until(lambda: shadow(world, "requests") > before)


def pairs(world: World) -> dict[tuple[int, int], int]:
    found = world.counters().pairs
    return {(item.canary_percent, item.stable_percent): item.count for item in found}


def test_a_canary_at_0_percent_is_asked_what_stable_has_answered(
    start: Start, stable: Predictor, canary: Predictor
) -> None:
    world = start()
    stable.behave(text="yes")
    canary.behave(text=" yes\n")
    answer = world.ask(headers={"x-serin-shadow": "1", "x-request-id": "abc"})
    until(lambda: shadow(world, "agreements") == 1)
    assert answer.headers["x-serin-arm"] == "stable"
    assert "x-serin-shadow" not in stable.seen()["headers"]
    seen = canary.seen()["headers"]
    assert (seen["x-serin-shadow"], seen["x-request-id"]) == ("1", "abc")
    assert seen["authorization"] == bearer(predictor_token(world.home))
    assert "x-serin-response-id" not in seen
    sample = world.counters()
    assert sample.stable is not None
    assert sample.canary is not None
    assert (sample.stable.draws, sample.stable.requests) == (2, 2)
    assert (sample.canary.draws, sample.canary.requests, sample.strata) == (0, 0, ())
    assert sample.pairs == ()
    assert shadow(world, "failures") == 0


def test_streams_and_the_canarys_own_requests_are_not_shadowed(
    start: Start, stable: Predictor, canary: Predictor
) -> None:
    world = start()
    assert b"[DONE]" in world.ask(stream=True).content
    world.route(stable, canary, percent=100)
    assert world.ask().headers["x-serin-arm"] == "canary"
    world.route(stable, canary, percent=0)
    stable.behave(status=400)
    assert world.ask().status_code == 400
    assert shadow(world, "requests") == 1
    assert sum(shadow(world, name) for name in ("skipped", "failures")) == 0


def test_a_hanging_canary_costs_clients_nothing(
    start: Start, stable: Predictor, canary: Predictor
) -> None:
    world = start(shadow_seconds_max=1.0, shadow_concurrency_max=2, shadow_waiting_max=3)
    canary.behave(delay=60)
    seconds = []
    for _ in range(40):
        began = time.monotonic()
        assert world.ask().status_code == 200
        seconds.append(time.monotonic() - began)
    assert sorted(seconds)[len(seconds) // 2] < 0.3
    assert canary.seen()["requests"] <= 8
    assert world.metric("serin_gateway_shadow_skipped_total", reason="queue_full") >= 25
    until(lambda: shadow(world, "failures") >= 2)
    until(lambda: canary.seen()["left"] >= 2)  # given up there too
    assert world.metric("serin_gateway_ejections_total") == 0
    assert world.metric("serin_gateway_requests_total", outcome="error") == 0
    assert world.gateway is not None
    until(lambda: world.ask().status_code == 200)
    world.gateway.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert world.gateway.wait(10) == 0
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(
    "mood",
    [{"status": 500}, {"drop": True}, {"cut_body": True}, {"revision": "another"},
     {"answer_bytes": 100_000}],
    ids=["error", "dropped", "cut", "another revision", "too large"],
)  # fmt: skip
def test_failures_of_shadow_calls_are_invisible(
    start: Start, stable: Predictor, canary: Predictor, mood: dict[str, Any]
) -> None:
    world = start()
    canary.behave(**mood)
    for _ in range(3):
        assert world.ask().status_code == 200
    until(lambda: shadow(world, "failures") == 3)
    assert canary.seen()["requests"] == 3  # never sent twice
    assert world.metric("serin_gateway_ejections_total") == 0
    assert world.metric("serin_gateway_retries_total") == 0
    assert world.metric("serin_gateway_draws_total", arm="canary") == 0


def test_nothing_is_sent_while_clients_need_the_canary(
    start: Start, stable: Predictor, canary: Predictor
) -> None:
    world = start(shadow_busy_max=0)
    canary.behave(delay=1.5)
    world.route(stable, canary, percent=50)
    load = world.load(40, seconds=1, arrivals="uniform")
    load.wait()
    skipped = world.metric("serin_gateway_shadow_skipped_total", reason="canary_busy_or_not_ready")
    assert skipped >= 5
    world.route(stable, canary, percent=0, canary_ready=False)
    before = shadow(world, "requests")
    assert world.ask().status_code == 200
    assert shadow(world, "requests") == before


def test_probes_score_both_answers_once_and_are_read_again(
    start: Start, world: World, stable: Predictor, canary: Predictor
) -> None:
    write_probes(world.home, probe("2+2?", " 4") + probe("capital of France?", "Paris"))
    start()
    stable.behave(text="4")
    canary.behave(text="5")
    say(world, "2+2?")
    until(lambda: pairs(world) == {(0, 100): 1})
    say(world, "2+2?")
    say(world, "no probe")
    canary.behave(text="4")
    say(world, "capital of France?")
    until(lambda: pairs(world) == {(0, 100): 1, (0, 0): 1})
    write_probes(world.home, "{")
    say(world, "new?")
    write_probes(world.home, probe("newer?", "4"))
    say(world, "newer?")
    until(lambda: pairs(world) == {(0, 100): 1, (0, 0): 1, (100, 100): 1})
    assert world.counters().pairs[0] == ScoredPairs(0, 0, 1)


def test_a_scorer_scores_what_has_no_probe_and_its_failure_is_no_score(
    start: Start, world: World, stable: Predictor, canary: Predictor
) -> None:
    scorer = world.predictor("scorer", "0")
    scorer.behave(scores={"good": 0.914, "bad": 0.25})
    start(shadow_scorer_url=scorer.url + "/score", shadow_scorer_seconds_max=1)
    stable.behave(text="good")
    canary.behave(text="bad")
    say(world, "first")
    until(lambda: pairs(world) == {(25, 91): 1})
    canary.behave(text="unknown to the scorer")
    say(world, "second")
    until(lambda: scorer.seen()["requests"] >= 4)
    scorer.kill()
    say(world, "third")
    canary.behave(text="bad")
    say(world, "fourth")
    assert pairs(world) == {(25, 91): 1}
    assert CLIENT.post(world.url + "/openai/v1/chat/completions", json=ASK).status_code == 200


def test_without_a_share_no_canary_is_asked(start: Start, canary: Predictor) -> None:
    world = start(shadow_share=0)
    canary.behave()
    for _ in range(5):
        world.ask().raise_for_status()
    assert canary.seen()["requests"] == 0
    assert shadow(world, "requests") == 0


def test_limits_are_read_from_the_home_without_being_named(tmp_path: Path) -> None:
    (tmp_path / "gateway.yaml").write_text("shadow_share: 1.5")
    command = [sys.executable, "-m", "serving.gateway", "--home", str(tmp_path), "--port", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "gateway.yaml, shadow_share" in done.stderr
