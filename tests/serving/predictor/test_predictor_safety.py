"""A predictor under a policy: what it refuses, holds back and redacts, whole and streamed."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from predictor_process import REVISION, ROOT, PredictorProcess, ask, until

from serving.safety.policy import POLICY_NAME, parse_policy
from tests.bundles import ALPHABET, CHAT_LOOP

CHAT = "/openai/v1/chat/completions"
TEXT = "/openai/v1/completions"
FILTERS = ("lexicon", "toxicity", "injection", "secrets", "system_prompt")
POLICY = {
    "name": "of a test",
    **{name: {"enabled": False} for name in FILTERS},
    "personal_data": {"types": {"EMAIL_ADDRESS": "redact"}},
    "rules": {
        "patterns": [
            {"name": "inputs", "pattern": "forbidden", "directions": ["input"]},
            {"name": "end of the alphabet", "pattern": "w.?x.?y", "directions": ["output"]},
            {"name": "slow", "pattern": "^(.*?,){11}P", "directions": ["input"]},
        ],
        "topics": [],
    },
    "stream": {"hold_characters": 8, "sentence_characters_max": 16, "context_characters": 32},
}
WORLD = {"name": "world", "pattern": "世界", "directions": ["output"]}


def write(folder: Path, policy: dict[str, Any]) -> str:
    """Put a policy into force; return its digest."""
    text = json.dumps(policy)
    (folder / "draft").write_text(text)
    (folder / "draft").rename(folder / POLICY_NAME)
    return parse_policy(text, "test").digest


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("policy")


def predictor(bundle: Path, home: Path, folder: Path) -> PredictorProcess:
    environment = {"SERIN_PREDICTOR_POLICY_FOLDER": str(folder)}
    return PredictorProcess(bundle, home, "--threads", "1", **environment)


@pytest.fixture(scope="module")
def guarded(
    bundle: Path, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PredictorProcess]:
    write(folder, POLICY)
    process = predictor(bundle, tmp_path_factory.mktemp("guarded"), folder)
    yield process.wait_ready()
    process.stop()


@pytest.fixture
def workers(
    guarded: PredictorProcess, bundle: Path, folder: Path, tmp_path: Path
) -> Iterator[list[PredictorProcess]]:
    """Three predictors under one policy."""
    homes = [tmp_path / name for name in ("second", "third")]
    for home in homes:
        home.mkdir()
    more = [predictor(bundle, home, folder) for home in homes]
    yield [guarded, *(process.wait_ready() for process in more)]
    for process in more:
        process.stop()


@pytest.fixture(autouse=True)
def policy(guarded: PredictorProcess, folder: Path) -> str:
    """Every test begins under the same policy."""
    digest = write(folder, POLICY)
    until(lambda: policy_hash(guarded) == digest)
    return digest


def policy_hash(predictor: PredictorProcess) -> str:
    return str(predictor.http().get("/serin/identity").json()["policy_hash"])


def letters(text: str, **fields: Any) -> dict[str, Any]:
    """Return the body of a greedy text completion."""
    return {"model": "assistant", "prompt": text, "temperature": 0, "max_tokens": 60, **fields}


def events(predictor: PredictorProcess, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    answer = predictor.http().post(path, json={**body, "stream": True})
    assert answer.status_code == 200
    lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: ")]
    assert lines.pop() == "[DONE]"
    return [choice for line in lines for choice in json.loads(line)["choices"]]


@pytest.mark.parametrize("stream", [False, True])
def test_a_blocked_prompt_is_refused_before_the_model_sees_it(
    guarded: PredictorProcess, policy: str, stream: bool
) -> None:
    generated = guarded.metric("generated_tokens_total")
    blocked = guarded.metric("requests_total", outcome="blocked")
    for path, body in (
        (CHAT, ask("this is f o r b i d d e n", stream=stream)),
        (TEXT, letters("for\u200bbiddеn", stream=stream)),
        (TEXT, letters("", prompt=["fine", "forbidden"], stream=stream)),
    ):
        answer = guarded.http().post(path, json=body)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "content_filter"
        assert "category rule" in error["message"]
        assert "orbidden" not in answer.text
        assert answer.headers["x-serin-blocked"] == "1"
        assert answer.headers["x-serin-policy"] == policy
    assert guarded.metric("generated_tokens_total") == generated
    assert guarded.metric("requests_total", outcome="blocked") == blocked + 3


def test_every_turn_is_checked_whoever_said_it(guarded: PredictorProcess) -> None:
    for role in ("system", "user", "assistant"):
        turns = [{"role": role, "content": "forbidden"}, {"role": "user", "content": "hi"}]
        answer = guarded.http().post(CHAT, json=ask(messages=turns, max_tokens=3))
        assert answer.status_code == 400, role


def test_a_blocked_answer_has_no_text_and_says_why_it_ended(
    guarded: PredictorProcess, policy: str
) -> None:
    body = letters("", prompt=["the letter a", "a digit 1"], n=2)
    answer = guarded.http().post(TEXT, json=body)
    assert answer.status_code == 200
    told = [(choice["text"], choice["finish_reason"]) for choice in answer.json()["choices"]]
    assert told == [("", "content_filter")] * 2 + [("23", "stop")] * 2
    assert answer.headers["x-serin-blocked"] == "2"
    assert answer.headers["x-serin-policy"] == policy


def test_a_streamed_answer_ends_at_the_block_and_leaks_nothing(guarded: PredictorProcess) -> None:
    for count in (1, 3):
        found = events(guarded, TEXT, letters("the letter a", n=count))
        for index in range(count):
            mine = [choice for choice in found if choice["index"] == index]
            text = "".join(choice["text"] for choice in mine)
            assert mine[-1]["finish_reason"] == "content_filter"
            assert ALPHABET[1:].startswith(text)
            assert not set(text) & set("wxyz")
    until(lambda: guarded.metric("engine_answers") == 0)


def test_a_streamed_chat_is_held_back_whole(guarded: PredictorProcess, folder: Path) -> None:
    rules = {"patterns": [WORLD]}
    digest = write(folder, {**POLICY, "rules": rules})
    until(lambda: policy_hash(guarded) == digest)
    answer = guarded.http().post(CHAT, json=ask(max_tokens=200, stream=True))
    assert "content_filter" in answer.text
    assert "HEY" not in answer.text
    assert answer.headers["x-serin-blocked"] == "1"
    whole = guarded.http().post(CHAT, json=ask(max_tokens=200)).json()["choices"][0]
    assert (whole["message"]["content"], whole["finish_reason"]) == ("", "content_filter")


def test_other_answers_pass_untouched(guarded: PredictorProcess) -> None:
    answer = guarded.http().post(CHAT, json=ask(max_tokens=len(CHAT_LOOP.encode()) * 3))
    assert answer.json()["choices"][0]["message"]["content"] == CHAT_LOOP * 3
    assert answer.headers["x-serin-blocked"] == "0"
    text = "".join(item["delta"].get("content", "") for item in events(guarded, CHAT, ask()))
    assert text.startswith(CHAT_LOOP)


def test_a_redacted_prompt_is_what_the_model_sees(guarded: PredictorProcess) -> None:
    told = "write to somebody.with.a.name@example.com 1"
    answer = guarded.http().post(TEXT, json=letters(told)).json()
    assert answer["choices"][0]["text"] == "23"
    assert answer["usage"]["prompt_tokens"] == len("write to [EMAIL_ADDRESS] 1")


def test_a_filter_that_fails_closes_and_is_counted(guarded: PredictorProcess) -> None:
    answer = guarded.http().post(CHAT, json=ask("1," * 60 + " P"))
    assert answer.status_code == 400
    assert "category filter_failed" in answer.json()["error"]["message"]
    shown = guarded.http().get("/metrics").text
    assert 'serin_predictor_filter_failures_total{filter="rules",model_version="3",' in shown
    assert 'checked_texts_total{action="block",direction="input",model_version="3",' in shown
    assert "simplify its pattern" in guarded.log


def test_a_changed_policy_is_in_force_in_all_workers_within_a_second(
    workers: list[PredictorProcess], folder: Path
) -> None:
    clients = [worker.http() for worker in workers]
    for number in range(3):
        digest = write(folder, {**POLICY, "name": f"change {number}"})
        began = time.monotonic()
        until(lambda wanted=digest: all(policy_hash(worker) == wanted for worker in workers))
        assert time.monotonic() - began < 1.0
        answers = [client.post(CHAT, json=ask(max_tokens=2)) for client in clients]
        assert [answer.headers["x-serin-policy"] for answer in answers] == 3 * [digest]


@pytest.fixture
def gateway(guarded: PredictorProcess) -> Iterator[httpx.Client]:
    """A gateway in front of the predictor, of the same home."""
    home = guarded.port_file.parent
    endpoint = {"url": guarded.url, "ready": True}
    stable = {
        "arm": "stable", "revision": REVISION, "percent": 100, "model_version": "3",
        "bundle_digest": "", "endpoints": [endpoint],
    }  # fmt: skip
    routes = {"generation": 1, "services": {"assistant": {"arms": [stable]}}}
    (home / "control").mkdir(exist_ok=True)
    (home / "control" / "routes.json").write_text(json.dumps(routes))
    port_file = home / "gateway.port"
    command = ["--home", str(home), "--port", "0", "--port-file", str(port_file)]
    process = subprocess.Popen([sys.executable, "-m", "serving.gateway", *command], cwd=ROOT)
    until(port_file.exists, 60)
    with httpx.Client(base_url=f"http://127.0.0.1:{port_file.read_text().strip()}") as client:
        yield client
    process.terminate()
    assert process.wait(30) == 0


def test_answers_kept_under_an_older_policy_are_not_given_again(
    guarded: PredictorProcess, gateway: httpx.Client, folder: Path, policy: str
) -> None:
    question = ask(max_tokens=2, temperature=0)
    until(lambda: gateway.post(CHAT, json=question).headers.get("x-serin-cache") == "hit", 60)
    assert gateway.post(CHAT, json=question).headers["x-serin-policy"] == policy
    digest = write(folder, {**POLICY, "name": "newer"})
    until(lambda: policy_hash(guarded) == digest)
    until(lambda: gateway.post(CHAT, json=question).headers["x-serin-policy"] == digest, 60)
    until(lambda: gateway.post(CHAT, json=question).headers.get("x-serin-cache") == "hit", 60)
    assert gateway.post(CHAT, json=question).headers["x-serin-policy"] == digest


def test_an_invalid_policy_changes_nothing_and_is_told(
    guarded: PredictorProcess, folder: Path, policy: str
) -> None:
    (folder / POLICY_NAME).write_text("name: x\ntoxicity: {threshold: 9}\n")
    until(lambda: guarded.metric("policy_refused") == 1)
    assert policy_hash(guarded) == policy
    assert "toxicity.threshold" in guarded.log
    assert guarded.http().post(CHAT, json=ask("forbidden")).status_code == 400
    write(folder, {**POLICY, "name": "valid again"})
    until(lambda: guarded.metric("policy_refused") == 0)


def test_kserves_own_routes_answer_404_and_health_needs_no_token(
    guarded: PredictorProcess,
) -> None:
    client = guarded.http()
    for path in ("/v1/models/assistant:predict", "/v2/models/assistant/infer",
                 "/v1/models/assistant:explain", "/v2/repository/index"):  # fmt: skip
        assert client.post(path, json={"instances": ["forbidden"]}).status_code == 404
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/assistant/ready"):
        assert client.get(path).status_code == 200


def test_an_invalid_first_policy_stops_the_start(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy" / POLICY_NAME).write_text("name: x\nlexicn: {}\n")
    process = PredictorProcess(bundle, tmp_path)
    assert process.process.wait(120) == 2
    assert "lexicn" in process.log
