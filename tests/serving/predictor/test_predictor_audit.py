"""Every request that a real predictor answers has its row, also when it is killed."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from conftest import Start
from predictor_process import PredictorProcess, ask, until

from core.digests import digest_bytes
from core.keys import read_key
from observability.audit_rows import AuditRow
from observability.audit_segments import AuditReport, find_rows, read_rows, verify_audit
from serving.safety.policy import SHIPPED_POLICY, read_policy

CHAT = "/openai/v1/chat/completions"
WHO = {"x-serin-key": "web%20shop", "x-serin-client": "198.51.100.7", "x-request-id": "mine-1"}
CARD = "4111 1111 1111 1111"


@pytest.fixture(scope="module")
def audited(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictorProcess]:
    process = PredictorProcess(bundle, tmp_path_factory.mktemp("audited"), "--threads", "1")
    yield process.wait_ready()
    process.stop()


def report(predictor: PredictorProcess) -> AuditReport:
    home = predictor.home
    return verify_audit(home / "audit", read_key(home / "control" / "audit.key"))


def rows(predictor: PredictorProcess, name: str = "") -> list[AuditRow]:
    folder = predictor.home / "audit"
    return [row for _, row in (find_rows(folder, name) if name else read_rows(folder))]


def post(predictor: PredictorProcess, body: dict[str, Any], name: str) -> httpx.Response:
    with predictor.http() as client:
        answer: httpx.Response = client.post(CHAT, json=body, headers={**WHO, "x-request-id": name})
        return answer


def test_an_answer_has_one_row_that_says_who_what_and_how(audited: PredictorProcess) -> None:
    answer = post(audited, ask(max_tokens=30), "whole")
    (row,) = rows(audited, "whole")
    text = answer.json()["choices"][0]["message"]["content"]
    assert (row.kind, row.status, row.blocked, row.reason) == ("answer", 200, False, "")
    assert (row.key, row.client) == ("web shop", "198.51.100.7")
    assert row.response_id == answer.json()["id"]
    assert (row.model_version, row.revision) == ("3", "assistant-00003")
    assert row.bundle_digest == audited.get("/serin/identity").json()["bundle_digest"]
    assert row.policy == read_policy(SHIPPED_POLICY).digest == answer.headers["x-serin-policy"]
    assert row.input_digest == digest_bytes(answer.request.content)
    assert row.output_digests == (digest_bytes(text.encode()),)
    assert row.bytes_scanned == row.bytes_sent == len(text.encode())
    assert row.text is None
    asked = {found.filter for found in row.decisions if found.role == "user"}
    said = {found.filter for found in row.decisions if found.role == "assistant"}
    assert asked == {"lexicon", "injection", "rules", "personal_data", "toxicity"}
    assert said == {"lexicon", "rules", "system_prompt", "secrets", "personal_data", "toxicity"}
    assert all(found.seconds > 0 and found.decision == "allow" for found in row.decisions)
    assert rows(audited, row.response_id) == [row]


def test_a_stream_has_a_row_before_each_part_that_leaves_and_one_at_its_end(
    audited: PredictorProcess,
) -> None:
    answer = post(audited, ask(max_tokens=2000, stream=True), "stream")
    *parts, last = rows(audited, "stream")
    assert len(parts) >= 1
    assert {(part.kind, part.response_id) for part in parts} == {("part", last.response_id)}
    assert last.kind == "answer"
    assert last.response_id in answer.text
    digests = [digest for part in parts for digest in part.output_digests]
    assert last.output_digests[: len(digests)] == tuple(digests)
    assert sum(part.bytes_sent for part in parts) < last.bytes_sent == last.bytes_scanned


def test_refusals_have_their_reason(audited: PredictorProcess) -> None:
    assert post(audited, ask("kill yourself"), "harm").status_code == 400
    (row,) = rows(audited, "harm")
    assert (row.kind, row.status, row.blocked) == ("refusal", 400, True)
    assert row.reason == "content_filter"
    assert row.decisions[-1].category == "self_harm"
    assert post(audited, {"model": "assistant"}, "wrong").status_code == 400
    (row,) = rows(audited, "wrong")
    assert (row.kind, row.status, row.blocked, row.policy) == ("refusal", 400, False, "")


def test_callers_without_the_token_are_counted_in_few_rows(audited: PredictorProcess) -> None:
    for _ in range(20):
        assert httpx.post(audited.url + CHAT, json=ask()).status_code == 401
    found: list[AuditRow] = []

    def all_counted() -> bool:
        found[:] = [row for row in rows(audited) if row.reason == "unauthorised"]
        return sum(row.count for row in found) == 20

    until(all_counted)
    assert len(found) < 20
    assert {(row.status, row.client, row.key) for row in found} == {(401, "127.0.0.1", "")}


def test_text_is_kept_only_where_the_policy_says_so_and_then_without_personal_data(
    start: Start,
) -> None:
    predictor = start("--threads", "1")
    folder = predictor.home / "policy"
    folder.mkdir(exist_ok=True)
    (folder / "policy.yaml").write_text("name: kept\naudit: {keep_text: true}\n")
    predictor.wait_ready()
    until(lambda: predictor.get("/serin/identity").json()["policy_hash"] != _shipped())
    post(predictor, ask(f"My card is {CARD}, mail jo@example.com", max_tokens=8), "kept")
    (row,) = rows(predictor, "kept")
    assert row.text is not None
    assert row.text["input"] == "user: My card is [CREDIT_CARD], mail [EMAIL_ADDRESS]"
    assert row.text["output 0"].startswith("HEY ")
    (file,) = (predictor.home / "audit").glob("*/*.jsonl")
    assert "4111" not in file.read_text()


def _shipped() -> str:
    return read_policy(SHIPPED_POLICY).digest


def test_nothing_that_was_sent_lacks_its_row_after_a_kill(start: Start) -> None:
    predictor = start("--threads", "1", faults={"delay_seconds": 0}).wait_ready()
    whole = [post(predictor, ask(max_tokens=5), f"whole-{number}") for number in range(5)]
    got = ""
    with (
        predictor.http() as client,
        client.stream(
            "POST", CHAT, json=ask(max_tokens=2000, stream=True), headers={"x-request-id": "cut"}
        ) as answer,
    ):
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                delta = json.loads(line[6:])["choices"][0]["delta"]
                got += delta.get("content") or ""
            if len(got) > 60:
                predictor.process.kill()
                predictor.process.wait()
                break
    found = report(predictor)
    assert found.sound
    assert {row.request_id for row in rows(predictor)} == {
        *(item.headers["x-request-id"] for item in whole), "cut",
    }  # fmt: skip
    parts = rows(predictor, "cut")
    assert {row.kind for row in parts} <= {"part", "answer"}
    assert sum(row.bytes_sent for row in parts) >= len(got.encode())
    digests = [digest for row in parts for digest in row.output_digests]
    assert digests


def test_what_cannot_be_recorded_is_refused_unless_that_is_allowed(start: Start) -> None:
    strict = start("--threads", "1", SERIN_PREDICTOR_AUDIT='{"segment_bytes_max": 1024}')
    lenient = start(
        *("--threads", "1"),
        SERIN_PREDICTOR_AUDIT='{"segment_bytes_max": 1024, "required": false}',
    )
    for predictor in (strict.wait_ready(), lenient.wait_ready()):
        assert post(predictor, ask(max_tokens=5), "before").status_code == 200
        shutil.rmtree(predictor.home / "audit")
    refused = [post(strict, ask(max_tokens=5, stream=stream), "x") for stream in (False, True)]
    assert [answer.status_code for answer in refused] == [503, 503]
    assert refused[0].json()["error"]["code"] == "audit_unavailable"
    assert "HEY" not in refused[0].text + refused[1].text
    assert strict.metric("unscanned_bytes_total") == 0
    assert post(lenient, ask(max_tokens=5), "x").status_code == 200
    assert lenient.metric("audit_missed_total") == 1


def test_an_audit_that_cannot_be_opened_ends_the_start(start: Start) -> None:
    predictor = start("--threads", "1")
    (predictor.home / "audit").write_text("a file where the folder should be")
    assert predictor.process.wait(60) == 4
    assert "cannot be written" in predictor.log
