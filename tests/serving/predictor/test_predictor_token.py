"""A predictor answers whoever holds its token, and nobody else; health and readiness all."""

from pathlib import Path

import httpx
import pytest
from conftest import Start
from predictor_process import PredictorProcess, ask

from core.keys import predictor_token

CHAT = "/openai/v1/chat/completions"
WRONG = (None, "", "Bearer", "Bearer wrong", "Basic {}", "{}", "Bearer {}x")
HEALTH = ("/v2/health/live", "/v2/health/ready", "/v2/models/assistant/ready")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", CHAT),
        ("POST", "/openai/v1/completions"),
        ("GET", "/openai/v1/models"),
        ("GET", "/openai/v1/models/assistant"),
        ("GET", "/serin/identity"),
        ("GET", "/metrics"),
        ("GET", "/openapi.json"),
        ("GET", "/docs"),
        ("GET", "/nothing"),
        ("GET", "/v2/health/ready/more"),
        ("GET", "/v2/models/../../metrics/ready"),
        ("POST", "/v2/models/assistant/infer"),
    ],
)
def test_without_the_token_nothing_but_health_is_answered(
    openvino: PredictorProcess, method: str, path: str
) -> None:
    token = predictor_token(openvino.home)
    for credentials in WRONG:
        headers = {} if credentials is None else {"Authorization": credentials.format(token)}
        answer = httpx.request(method, openvino.url + path, json=ask(), headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["code"] == "unauthorised"
        assert token not in answer.text


def test_health_and_readiness_need_no_token(predictor: PredictorProcess) -> None:
    assert [httpx.get(predictor.url + path).status_code for path in HEALTH] == [200] * 3


def test_the_token_is_the_homes_own_and_nobody_elses_to_read(openvino: PredictorProcess) -> None:
    key = openvino.home / "control" / "predictor.key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert predictor_token(openvino.home) == key.read_bytes().hex()
    assert openvino.get("/serin/identity").status_code == 200
    assert predictor_token(openvino.home) not in openvino.log


def test_the_environment_may_name_the_token_and_open_the_metrics(start: Start) -> None:
    token = "a-token-of-a-cluster's-secret-0123456789"
    predictor = start(SERIN_PREDICTOR_TOKEN=token, SERIN_PREDICTOR_METRICS_OPEN="true").wait_ready()
    assert httpx.get(f"{predictor.url}/metrics").status_code == 200
    assert predictor.get("/serin/identity").status_code == 401, "the home's own does not count"
    headers = {"Authorization": f"Bearer {token}"}
    assert httpx.get(f"{predictor.url}/serin/identity", headers=headers).status_code == 200
    assert token not in predictor.log


def test_a_token_that_could_be_guessed_is_refused_without_being_told(
    start: Start, tmp_path: Path
) -> None:
    predictor = start(SERIN_PREDICTOR_TOKEN="hunter2-is-short")
    assert predictor.process.wait(60) == 2
    assert "SERIN_PREDICTOR_TOKEN must have 32" in predictor.log
    assert "hunter2" not in predictor.log
