"""How a predictor starts, says who it is, and refuses to start on what it should not serve."""

import json
import shutil
from pathlib import Path

import httpx
import pytest
from conftest import Start
from predictor_process import REVISION, PredictorProcess, ask, until

from core.manifests import read_manifest
from serving.engines.faults import control_file
from serving.safety.policy import SHIPPED_POLICY, read_policy

CHAT = "/openai/v1/chat/completions"


def test_it_tells_which_bundle_it_answers_with(
    predictor: PredictorProcess, bundle: Path, shared: dict[str, PredictorProcess]
) -> None:
    identity = predictor.get("/serin/identity").json()
    engine = next(name for name, item in shared.items() if item is predictor)
    assert identity == {
        "bundle_digest": read_manifest(bundle).digest,
        "model_version": "3",
        "model_name": "assistant",
        "revision": REVISION,
        "engine": engine,
        "pid": predictor.process.pid,
        "policy_hash": read_policy(SHIPPED_POLICY).digest,
    }
    assert bundle.name == identity["bundle_digest"]


def test_health_follows_kserves_protocol(predictor: PredictorProcess) -> None:
    with predictor.http() as client:
        assert client.get("/v2/health/live").json() == {"live": True}
        assert client.get("/v2/health/ready").json() == {"ready": True}
        ready = client.get("/v2/models/assistant/ready")
        assert ready.json() == {"name": "assistant", "ready": True}
        assert client.get("/v2/models/other/ready").status_code == 404


def test_every_answer_is_signed_and_echoes_the_request_id(openvino: PredictorProcess) -> None:
    with openvino.http() as client:
        for path in (CHAT, "/openai/v1/models", "/serin/identity", "/metrics", "/nothing"):
            method = "POST" if path == CHAT else "GET"
            sent = {"x-request-id": f"id-of-{path}"}
            body = ask(max_tokens=1) if path == CHAT else None
            answer = client.request(method, path, json=body, headers=sent)
            assert answer.headers["x-serin-model-version"] == "3"
            assert answer.headers["x-serin-revision"] == REVISION
            assert answer.headers["x-request-id"] == sent["x-request-id"]
        odd = client.get("/openai/v1/models", headers={"x-request-id": "x" * 200})
        assert len(odd.headers["x-request-id"]) == 32


def test_metrics_carry_the_model_version(openvino: PredictorProcess) -> None:
    names = ("prompt_tokens_total", "generated_tokens_total", "first_token_seconds_count")
    before = [openvino.metric(name) for name in names]
    openvino.openai().chat.completions.create(**ask(max_tokens=7))
    moved = [openvino.metric(name) - old for name, old in zip(names, before, strict=True)]
    assert moved == [5, 7, 1]
    buckets = openvino.get("/metrics").text
    assert 'serin_predictor_request_seconds_bucket{le="0.002",model_version="3",' in buckets


def test_the_openvino_engine_needs_no_torch(openvino: PredictorProcess) -> None:
    loaded = Path(f"/proc/{openvino.process.pid}/maps").read_text()
    assert "openvino" in loaded
    assert not [name for name in ("libtorch", "/pandas/", "/kubernetes/") if name in loaded]


def test_it_listens_on_loopback_alone(openvino: PredictorProcess) -> None:
    port = f":{int(openvino.url.rpartition(':')[2]):04X}"
    table = Path(f"/proc/{openvino.process.pid}/net/tcp").read_text().splitlines()
    listening = [row.split()[1] for row in table[1:] if row.split()[3] == "0A"]
    assert [address for address in listening if address.endswith(port)] == [f"0100007F{port}"]


@pytest.mark.parametrize("damage", ["changed", "added", "missing", "manifest", "expected"])
def test_a_bundle_that_is_not_the_promised_one_is_refused_before_binding(
    start: Start, bundle: Path, tmp_path: Path, damage: str
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    expected = read_manifest(bundle).digest
    graph = copy / "openvino" / "openvino_model.bin"
    if damage == "changed":
        content = bytearray(graph.read_bytes())
        content[len(content) // 2] ^= 1
        graph.write_bytes(content)
    elif damage == "added":
        (copy / "weights" / "modeling_evil.py").write_text("print('hello')")
    elif damage == "missing":
        graph.unlink()
    elif damage == "manifest":
        (copy / "manifest.json").write_text('{"files": 1}')
    else:
        expected = "0" * 64
    predictor = start("--bundle", str(copy), "--expected-digest", expected)
    assert predictor.process.wait(30) == 3
    (line,) = predictor.log.splitlines()
    assert json.loads(line)["level"] == "error"
    assert "bundle" in line
    assert not predictor.port_file.exists()


def test_wrong_settings_are_named(start: Start, tmp_path: Path, openvino: PredictorProcess) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("deadline_second: 5\n")
    taken = openvino.url.rpartition(":")[2]
    wrong = {
        "deadline_second": start("--config", str(file)),
        "concurrency": start(SERIN_PREDICTOR_CONCURRENCY="many"),
        "max_tokens_default": start(SERIN_PREDICTOR_MAX_TOKENS_CEILING="100"),
        "guesswork": start(SERIN_ENGINE="guesswork"),
        taken: start("--http-port", taken),
    }
    for named, predictor in wrong.items():
        assert predictor.process.wait(60) == 2, predictor.log
        assert named in predictor.log
        assert "Traceback" not in predictor.log


def test_the_environment_stands_above_the_file(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"max_tokens_ceiling": 600, "max_tokens_default": 9}))
    predictor = start("--config", str(file), SERIN_PREDICTOR_MAX_TOKENS_DEFAULT="4").wait_ready()
    client = predictor.openai().chat.completions
    answer = client.create(**ask())
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 4
    assert predictor.http().post(CHAT, json=ask(max_tokens=601)).status_code == 400


def test_faults_need_permission(start: Start) -> None:
    faults = {"fail_start": True, "error_share": 1.0}
    predictor = start(faults=faults, SERIN_ALLOW_FAULTS="0").wait_ready()
    assert "refused: SERIN_ALLOW_FAULTS is not 1" in predictor.log
    assert predictor.http().post(CHAT, json=ask(max_tokens=2)).status_code == 200


def test_a_start_can_be_made_to_fail(start: Start) -> None:
    predictor = start(faults={"fail_start": True})
    assert predictor.process.wait(30) == 4
    assert not predictor.port_file.exists()


def test_faults_switch_while_it_runs_and_a_crash_is_a_real_one(start: Start) -> None:
    predictor = start(faults={}).wait_ready()
    file = control_file(predictor.port_file.parent, REVISION)
    client = predictor.http()
    body = ask(max_tokens=1)
    assert client.post(CHAT, json=body).status_code == 200
    file.write_text('{"error_share": 1.0}')
    until(lambda: client.post(CHAT, json=body).status_code == 503, 2)
    file.write_text("not JSON")
    until(lambda: client.post(CHAT, json=body).status_code == 200, 2)
    file.unlink()
    assert client.post(CHAT, json=body).status_code == 200
    file.write_text('{"crash": true}')

    def died() -> bool:
        try:
            client.post(CHAT, json=body)
        except httpx.TransportError:
            return True
        return False

    until(died, 3)
    assert predictor.process.wait(5) == -9
