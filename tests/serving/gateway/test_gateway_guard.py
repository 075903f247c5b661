"""Who is let in, through a real gateway: keys, budgets, bans, long inputs, degradation."""

import json
from typing import Any

import httpx
import pytest
from gateway_world import CLIENT, Predictor, World, until

from core.digests import digest_bytes
from core.keys import bearer, predictor_token, read_key
from observability.audit_segments import find_rows, verify_audit
from serving.gateway.bans import BanFile
from serving.gateway.mode import Mode, ModeFile
from serving.gateway.tokens import hash_token

LOOK_SECONDS = 0.02


@pytest.fixture
def guarded(world: World, stable: Predictor) -> World:
    """A gateway that bans loopback too, after 5 strikes, and knows two keys."""
    (world.home / "keys.yaml").write_text(
        f"plenty: {hash_token('plenty')}\n"
        f"few: {{sha256: {hash_token('few')}, tokens_per_minute: 50, priority: 1}}\n"
    )
    world.start_gateway(
        guard={
            "ban_strikes_per_minute": 5,
            "ban_exempt": ["192.0.2.0/24"],
            "trusted_proxies": ["127.0.0.0/8"],
            "look_seconds": LOOK_SECONDS,
            "input_requests_min": 4,
        },
        concurrency_max=4,
    )
    world.route(stable)
    until(world.keeps_answers)
    return world


def ask(world: World, key: str = "plenty", client: str = "", **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", "x-forwarded-for": client}
    answer: httpx.Response = world.ask(headers=headers, **more)
    return answer


def code(answer: httpx.Response) -> str:
    found: str = answer.json()["error"]["code"]
    return found


def test_only_known_keys_may_ask_and_their_keys_go_no_further(
    guarded: World, stable: Predictor
) -> None:
    assert ask(guarded).status_code == 200
    own = bearer(predictor_token(guarded.home))
    assert stable.seen()["headers"]["authorization"] == own
    wrong = ask(guarded, key="wrong")
    assert (wrong.status_code, code(wrong)) == (401, "unknown_api_key")
    assert "Bearer" in wrong.headers["www-authenticate"]
    assert CLIENT.get(guarded.url + "/openai/v1/models").status_code == 401
    assert CLIENT.get(guarded.url + "/healthz").status_code == 200
    assert stable.seen()["requests"] == 1


def test_too_many_failed_authentications_ban_one_client_and_a_person_lifts_it(
    guarded: World,
) -> None:
    for _ in range(5):
        assert ask(guarded, key="wrong", client="198.51.100.1").status_code == 401
    assert ask(guarded, client="198.51.100.1").status_code == 200
    assert ask(guarded, key="wrong", client="198.51.100.1").status_code == 401
    banned = ask(guarded, client="198.51.100.1")
    assert (banned.status_code, code(banned)) == (403, "banned")
    assert 500 < int(banned.headers["retry-after"]) <= 600
    assert ask(guarded, client="198.51.100.2").status_code == 200
    file = BanFile(guarded.home)
    (ban,) = until(lambda: list(file.read().values()))
    assert (ban.address, "malicious" in ban.reason) == ("198.51.100.1", True)
    assert guarded.metric("serin_gateway_bans") == 1
    assert file.lift("198.51.100.1")
    until(lambda: ask(guarded, client="198.51.100.1").status_code == 200)
    for _ in range(20):
        ask(guarded, key="wrong", client="192.0.2.7")
    assert ask(guarded, client="192.0.2.7").status_code == 200


def test_requests_that_safety_rules_block_count_as_well(guarded: World, stable: Predictor) -> None:
    stable.behave(blocked="1")
    for _ in range(10):
        assert ask(guarded, client="198.51.100.1").status_code == 200  # an answer held back
    stable.behave(blocked="1", status=400)
    for _ in range(6):
        assert ask(guarded, client="198.51.100.1").status_code == 400
    assert ask(guarded, client="198.51.100.1").status_code == 403
    assert guarded.metric("serin_gateway_strikes_total", kind="blocked") == 6


def test_a_key_asks_for_no_more_tokens_than_it_has(guarded: World, stable: Predictor) -> None:
    stable.behave(chunks=60)
    streamed = ask(guarded, key="few", stream=True)
    assert streamed.status_code == 200
    answer = ask(guarded, key="few")
    assert (answer.status_code, code(answer)) == (429, "tokens_used_up")
    assert int(answer.headers["retry-after"]) >= 10
    assert ask(guarded).status_code == 200


def test_long_inputs_are_refused_while_they_are_many(guarded: World) -> None:
    long = [{"role": "user", "content": "word " * 6000}]
    statuses = [ask(guarded, messages=long).status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 413, 413]
    assert ask(guarded).status_code == 200
    assert guarded.metric("serin_gateway_input_filter") == 1
    ModeFile(guarded.home).write(Mode(input_filter="off", reason="a person knows better"))
    until(lambda: ask(guarded, messages=long).status_code == 200)
    ModeFile(guarded.home).write(Mode(input_filter="on"))
    until(lambda: ask(guarded, messages=long).status_code == 413)


def test_a_degraded_gateway_answers_short_and_from_the_cache_first(
    guarded: World, stable: Predictor
) -> None:
    mode = ModeFile(guarded.home)
    mode.write(Mode(degraded=True, reason="the model is slow"))
    until(lambda: guarded.metric("serin_gateway_degraded") == 1)
    first = ask(guarded, temperature=0.7, max_tokens=1000)
    assert json.loads(stable.seen()["body"])["max_tokens"] == 64
    again = ask(guarded, temperature=0.7, max_tokens=2000)
    assert again.headers["x-serin-cache"] == "hit"
    assert again.json() == first.json()
    ask(guarded, max_tokens=8)
    assert json.loads(stable.seen()["body"])["max_tokens"] == 8
    mode.write(Mode())
    until(lambda: "x-serin-cache" not in ask(guarded, temperature=0.7, max_tokens=900).headers)
    assert json.loads(stable.seen()["body"])["max_tokens"] == 900


def test_a_degraded_busy_gateway_refuses_the_least_important(
    guarded: World, stable: Predictor
) -> None:
    ModeFile(guarded.home).write(Mode(degraded=True))
    until(lambda: guarded.metric("serin_gateway_degraded") == 1)
    stable.behave(delay=0.2)
    load = guarded.load(60, headers={"authorization": "Bearer plenty"})

    def shed() -> bool:
        answer = ask(guarded, key="few")
        return answer.status_code == 429 and code(answer) == "shed"

    until(shed)
    load.stop()
    stable.behave()
    until(lambda: ask(guarded, key="few").status_code == 200)


def test_what_the_gateway_answers_itself_is_audited(guarded: World, stable: Predictor) -> None:
    for _ in range(4):
        ask(guarded, key="wrong", client="198.51.100.1")
    first = ask(guarded, temperature=0)
    again = ask(guarded, temperature=0, client="198.51.100.2")
    assert again.headers["x-serin-cache"] == "hit"
    assert guarded.gateway is not None
    guarded.gateway.terminate()
    assert guarded.gateway.wait(15) == 0
    folder = guarded.home / "audit"
    report = verify_audit(folder, read_key(guarded.home / "control" / "audit.key"))
    assert report.sound
    ((_, hit),) = find_rows(folder, again.headers["x-request-id"])
    assert (hit.kind, hit.key, hit.client) == ("cache_hit", "plenty", "198.51.100.2")
    assert hit.response_id == first.headers["x-serin-response-id"]
    assert hit.output_digests == (digest_bytes(again.content),)
    refused = [row for _, row in find_rows(folder, "") if row.kind == "refusal"]
    assert {(row.status, row.reason, row.client) for row in refused} == {
        (401, "unknown_api_key", "198.51.100.1")
    }
    assert sum(row.count for row in refused) == 4
