"""Ids and scores through a real gateway: what clients get back, and what evaluators may say."""

import json
import os
import stat
from typing import Any

import httpx
import openai
import pytest
from gateway_world import CHAT, CLIENT, Predictor, World, until

from serving.gateway.evaluators import hash_token

Calm = tuple[World, Predictor, Predictor]
TOKEN = "an-evaluators-token"
ID = "x-serin-response-id"


@pytest.fixture
def open_world(calm: Calm) -> Calm:
    """The shared world, half of its traffic on the canary, with one evaluator."""
    world, stable, canary = calm
    admit(world, TOKEN)
    world.route(stable, canary, percent=50)
    return calm


def admit(world: World, *tokens: str) -> None:
    temporary = world.home / "feedback.new"
    temporary.write_text("".join(f"{name}: {hash_token(name)}\n" for name in tokens))
    os.replace(temporary, world.home / "feedback.yaml")


def tell(
    world: World, name: str, score: Any = 0.5, token: str = TOKEN, path: str = "/v1/feedback"
) -> httpx.Response:
    answer: httpx.Response = CLIENT.post(
        world.url + path,
        json={"id": name, "score": score, "source": "labels"},
        headers={"authorization": f"Bearer {token}"},
    )
    return answer


def scores(world: World) -> int:
    found = world.counters().strata
    return sum(sum(arm.scores.values()) for item in found for arm in (item.stable, item.canary))


def test_an_answer_carries_its_id_in_header_and_body(open_world: Calm) -> None:
    world, stable, canary = open_world
    answer = world.ask(headers={ID: "mine"})
    name = answer.headers.get_list(ID)
    assert name == [answer.json()["id"]]
    assert name[0].startswith("chatcmpl-")
    asked = stable if answer.headers["x-serin-arm"] == "stable" else canary
    assert asked.seen()["headers"][ID] == name[0].removeprefix("chatcmpl-")
    assert world.ask().json()["id"] != name[0]


def test_the_openai_client_gets_an_id_that_can_be_scored(open_world: Calm) -> None:
    world, _, _ = open_world
    with openai.OpenAI(base_url=world.url + "/openai/v1", api_key="x", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="assistant", messages=[{"role": "user", "content": "hello"}]
        )
    assert tell(world, answer.id).json()["counted"] is True


def test_streams_and_texts_have_ids_too(open_world: Calm) -> None:
    world, _, _ = open_world
    assert tell(world, world.ask(stream=True).headers[ID]).json()["counted"] is True
    body = {"model": "assistant", "prompt": "hello"}
    answer = CLIENT.post(world.url + CHAT.replace("/chat", ""), json=body)
    assert answer.headers[ID].startswith("cmpl-")
    assert tell(world, answer.headers[ID]).status_code == 202


@pytest.mark.parametrize("path", ["/v1/feedback", "/openai/v1/feedback"])
def test_a_score_is_counted_for_the_arm_that_answered(open_world: Calm, path: str) -> None:
    world, _, _ = open_world
    answer = world.ask()
    before = scores(world)
    told = tell(world, answer.headers[ID], 0.97, path=path)
    assert told.status_code == 202
    assert told.json() == {
        "counted": True,
        "model_version": answer.headers["x-serin-model-version"],
        "revision": answer.headers["x-serin-revision"],
    }
    assert scores(world) == before + 1
    found = [item for item in world.counters().strata if item.share == 0.5]
    assert getattr(found[0], answer.headers["x-serin-arm"]).scores[97] >= 1


def test_a_second_score_of_an_answer_is_refused(open_world: Calm) -> None:
    world, _, _ = open_world
    name = world.ask().headers[ID]
    assert tell(world, name).status_code == 202
    before = scores(world)
    again = tell(world, name, 0.9)
    assert (again.status_code, again.json()["error"]["code"]) == (409, "scored_already")
    assert scores(world) == before


def test_an_answer_outside_a_comparison_is_scored_without_counting(open_world: Calm) -> None:
    world, stable, _ = open_world
    world.route(stable)
    told = tell(world, world.ask().headers[ID])
    assert (told.status_code, told.json()["counted"]) == (202, False)


def test_a_diverted_answer_is_scored_as_the_one_who_gave_it_and_not_counted(
    open_world: Calm,
) -> None:
    world, stable, canary = open_world
    canary.behave(drop=True)
    answer = until(
        lambda: found if (found := world.ask()).headers["x-serin-arm"] == "canary" else None
    )
    assert answer.status_code == 200
    told = tell(world, answer.headers[ID]).json()
    assert told == {"counted": False, "model_version": "1", "revision": stable.revision}


def test_only_the_first_answer_of_a_conversation_counts(open_world: Calm) -> None:
    world, _, _ = open_world
    asked = [world.ask(headers={"x-serin-conversation": "scored"}) for _ in range(2)]
    assert [tell(world, item.headers[ID]).json()["counted"] for item in asked] == [True, False]


@pytest.mark.parametrize("score", [-0.1, 1.1, "0.5", None, True])
def test_a_score_out_of_range_is_refused(open_world: Calm, score: Any) -> None:
    world, _, _ = open_world
    assert tell(world, world.ask().headers[ID], score).status_code == 400


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b'{"id": "x", "score": NaN, "source": "s"}',
        b'{"id": "\\ud800", "score": 1, "source": "s"}',
        b'{"more": ' + b"[" * 1500 + b"]" * 1500 + b', "id": "x", "score": 1, "source": "s"}',
    ],
    ids=["empty", "open", "nan", "surrogate", "deep"],
)
def test_a_body_that_is_no_score_is_refused(open_world: Calm, content: bytes) -> None:
    world, _, _ = open_world
    headers = {"authorization": f"Bearer {TOKEN}"}
    url = world.url + "/v1/feedback"
    assert CLIENT.post(url, content=content, headers=headers).status_code == 400


def test_a_large_body_is_refused(open_world: Calm) -> None:
    world, _, _ = open_world
    assert tell(world, "x" * 5000).status_code == 413


def test_an_id_that_was_changed_is_unknown(open_world: Calm) -> None:
    world, _, _ = open_world
    name = world.ask().headers[ID]
    middle = len(name) // 2
    changed = name[:middle] + ("A" if name[middle] != "A" else "B") + name[middle + 1 :]
    for made_up in (changed, "chatcmpl-123", name[:-3]):
        assert tell(world, made_up).status_code == 404


def test_only_evaluators_score_and_the_file_is_read_again(open_world: Calm) -> None:
    world, _, _ = open_world
    name = world.ask().headers[ID]
    refused = tell(world, name, token="wrong")
    assert (refused.status_code, refused.headers["www-authenticate"]) == (401, "Bearer")
    body = json.dumps({"id": name, "score": 1, "source": "s"})
    assert CLIENT.post(world.url + "/v1/feedback", content=body).status_code == 401
    admit(world, "another")
    assert tell(world, name).status_code == 401
    assert tell(world, name, token="another").status_code == 202
    (world.home / "feedback.yaml").unlink()
    off = tell(world, name)
    assert off.status_code == 403
    assert "feedback.yaml" in off.json()["error"]["message"]


def test_scores_are_posted(open_world: Calm) -> None:
    world, _, _ = open_world
    assert CLIENT.get(world.url + "/v1/feedback").status_code == 405


def test_ids_outlive_the_gateway_but_their_scores_do_not_join_new_counts(
    world: World, stable: Predictor, canary: Predictor
) -> None:
    admit(world, TOKEN)
    process = world.start_gateway()
    world.route(stable, canary, percent=50)
    first = world.ask()
    key = world.home / "control" / "response.key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    process.terminate()
    assert process.wait(15) == 0
    world.start_gateway()
    until(lambda: world.applied() == world.generation)
    told = tell(world, first.headers[ID]).json()
    assert told["counted"] is False
    assert told["revision"] == first.headers["x-serin-revision"]
    assert tell(world, world.ask().headers[ID]).json()["counted"] is True
