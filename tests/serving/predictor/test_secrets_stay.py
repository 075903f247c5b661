"""A real gateway and a real predictor with known secrets: none is in what they write anywhere."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from conftest import Start
from predictor_process import REVISION, ROOT, PredictorProcess, ask, until

from core.digests import digest_bytes
from observability.audit_segments import read_rows

CHAT = "/openai/v1/chat/completions"
SECRETS = {
    "token": "predictor-token-2c7e0b91d4aa4f5c8e31",
    "key": "client-key-90fa11c2d6be",
    "wrong key": "wrong-key-1b2ff04cc8a1",
    "evaluator": "evaluator-token-77e6ab0c",
    "password": "redis-password-5d1c9e",
    "prompt": "the launch code is tangerine",
    "instructions": "never tell that the vault is in Bern",
}


@pytest.fixture
def predictor(start: Start) -> PredictorProcess:
    return start("--threads", "1", SERIN_PREDICTOR_TOKEN=SECRETS["token"]).wait_ready()


@pytest.fixture
def gateway(predictor: PredictorProcess) -> Iterator[str]:
    home = predictor.home
    (home / "keys.yaml").write_text(f"web: {digest_bytes(SECRETS['key'].encode())}\n")
    (home / "feedback.yaml").write_text(f"eve: {digest_bytes(SECRETS['evaluator'].encode())}\n")
    route(home, predictor.url)
    port = home / "gateway.port"
    secret = {"SERIN_PREDICTOR_TOKEN": "token", "SERIN_CACHE_PASSWORD": "password"}
    with (home / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "serving.gateway", "--home", str(home)),
                *("--port", "0", "--port-file", str(port)),
            ],
            cwd=ROOT,
            env={**os.environ, **{name: SECRETS[which] for name, which in secret.items()}},
            stdout=log,
            stderr=log,
        )
    until(port.exists, 60)
    yield f"http://127.0.0.1:{port.read_text().strip()}"
    process.terminate()
    process.wait(20)


def route(home: Path, url: str) -> None:
    arm = {
        "arm": "stable",
        "revision": REVISION,
        "percent": 100,
        "model_version": "3",
        "bundle_digest": "",
        "endpoints": [{"url": url, "ready": True}],
    }
    content = {"generation": 1, "services": {"assistant": {"arms": [arm]}}}
    (home / "control" / "routes.json").write_text(json.dumps(content))


def test_no_secret_and_no_text_is_in_any_log_or_record(
    predictor: PredictorProcess, gateway: str
) -> None:
    known = {"authorization": f"Bearer {SECRETS['key']}"}
    turns = [("system", SECRETS["instructions"]), ("user", SECRETS["prompt"])]
    body = ask(max_tokens=5)
    body["messages"] = [{"role": role, "content": text} for role, text in turns]
    with httpx.Client(base_url=gateway, timeout=60, trust_env=False) as client:
        until(lambda: client.post(CHAT, json=body, headers=known).status_code == 200, 60)
        client.post(CHAT, json={**body, "stream": True}, headers=known).raise_for_status()
        wrong = {"authorization": f"Bearer {SECRETS['wrong key']}"}
        assert client.post(CHAT, json=body, headers=wrong).status_code == 401
        asked = {"x-api-key": SECRETS["key"], "x-request-id": "a b"}
        assert client.post(CHAT, content=b"{" + json.dumps(body).encode(), headers=asked).is_error
        harmful = {**body, "messages": [{"role": "user", "content": "kill yourself"}]}
        assert client.post(CHAT, json=harmful, headers=known).status_code == 400
        score = {"id": "chatcmpl-none", "score": 1}
        evaluator = {"authorization": f"Bearer {SECRETS['evaluator']}"}
        assert client.post("/v1/feedback", json=score, headers=evaluator).is_error
        assert httpx.post(predictor.url + CHAT, json=body, headers=wrong).status_code == 401
        predictor.process.kill()
        predictor.process.wait()
        anew = {**known, "x-serin-cache": "bypass", "x-serin-deadline-seconds": "3"}
        assert client.post(CHAT, json=body, headers=anew).is_error
        shown = client.get("/metrics").text + client.get("/serin/routes").text
    assert found_in(shown.encode()) == set()
    rows = [row for _, row in read_rows(predictor.home / "audit")]
    told = {(row.key, row.client) for row in rows if row.kind in ("answer", "part")}
    assert told == {("web", "127.0.0.1")}, "the predictor knows who asked the gateway"
    files = [path for path in predictor.home.rglob("*") if path.is_file()]
    assert {"gateway.log", "log", "index.jsonl"} <= {path.name for path in files}
    assert {path.name: found for path in files if (found := found_in(path.read_bytes()))} == {}


def found_in(data: bytes) -> set[str]:
    return {name for name, secret in SECRETS.items() if secret.encode() in data}
