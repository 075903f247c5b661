"""Every byte of text that leaves a real predictor was scanned: on every route, in every form."""

import json
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from predictor_process import ROOT, PredictorProcess, ask, until

from serving.edge import FIXED_ROUTES
from serving.safety.policy import POLICY_NAME, parse_policy

CHAT = "POST /openai/v1/chat/completions"
TEXT = "POST /openai/v1/completions"
GENERATING = (CHAT, TEXT)
"""A route that answers with a model's words belongs here, and is then tested in every form."""
TOKENS = 80
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
REFUSED: tuple[dict[str, Any], ...] = (
    {"tools": [TOOL]},
    {"tools": [TOOL], "tool_choice": "required"},
    {"functions": [{"name": "look"}]},
    {"logprobs": True},
    {"logprobs": 3},
    {"top_logprobs": 2},
    {"echo": True},
    {"suffix": "x"},
    {"response_format": {"type": "json_object"}},
    {"modalities": ["audio"]},
)
LATE = {"name": "late", "pattern": r"^(.|..|...)+\d\d", "directions": ["output"]}
"""A pattern that takes far longer than a filter may."""
POLICIES: dict[str, dict[str, Any]] = {
    "calm": {"name": "calm"},
    "closed": {"name": "closed", "rules": {"patterns": [LATE]}},
    "open": {"name": "open", "rules": {"patterns": [LATE], "on_error": "allow"}},
}


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PredictorProcess]:
    """A predictor that tells its router's table."""
    program = (str(Path(__file__).with_name("route_table.py")),)
    process = PredictorProcess(
        bundle,
        tmp_path_factory.mktemp("measured"),
        *("--threads", "1"),
        program=program,
        PYTHONPATH=str(ROOT),
    )
    yield process.wait_ready()
    process.stop()


def obey(predictor: PredictorProcess, name: str) -> None:
    """Put a policy into force."""
    folder = predictor.home / "policy"
    folder.mkdir(exist_ok=True)
    (folder / "draft").write_text(json.dumps(POLICIES[name]))
    (folder / "draft").rename(folder / POLICY_NAME)
    digest = parse_policy(json.dumps(POLICIES[name]), "test").digest
    until(lambda: predictor.get("/serin/identity").json()["policy_hash"] == digest)


def counted(predictor: PredictorProcess) -> dict[str, float]:
    names = ("output", "scanned", "unscanned", "failed_open")
    return {name: predictor.metric(f"{name}_bytes_total") for name in names}


def grown(predictor: PredictorProcess, before: dict[str, float]) -> dict[str, float]:
    return {name: value - before[name] for name, value in counted(predictor).items()}


def body(route: str, **fields: Any) -> dict[str, Any]:
    made: dict[str, Any] = ask(max_tokens=TOKENS, **fields)
    if route == TEXT:
        del made["messages"]
        made["prompt"] = "hi"
    return made


def received(answer: httpx.Response, stream: bool) -> str:
    """All text that a client reads out of an answer."""
    if not stream:
        parts = [answer.json()]
    else:
        lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: ")]
        parts = [json.loads(line) for line in lines if line != "[DONE]"]
    texts = []
    for choice in (choice for part in parts for choice in part.get("choices", [])):
        content = choice.get("message") or choice.get("delta") or choice
        texts.append(content.get("content") or content.get("text") or "")
    return "".join(texts)


def test_every_route_is_fixed_or_tested_here(measured: PredictorProcess) -> None:
    table = measured.home / "routes"
    until(table.exists)
    routes = set(json.loads(table.read_text()))
    generating = {route for route in routes if route.split()[1] not in FIXED_ROUTES}
    assert generating == set(GENERATING)
    assert {
        route for route in routes - generating if not route.startswith(("GET ", "HEAD "))
    } == set()


@pytest.mark.parametrize("policy", sorted(POLICIES))
@pytest.mark.parametrize(
    ("route", "stream", "choices"), list(product(GENERATING, (False, True), (1, 2)))
)
def test_what_leaves_is_what_was_scanned(
    measured: PredictorProcess, policy: str, route: str, stream: bool, choices: int
) -> None:
    obey(measured, policy)
    before = counted(measured)
    with measured.http() as client:
        answer = client.post(route.split()[1], json=body(route, stream=stream, n=choices))
    assert answer.status_code == 200
    text = received(answer, stream)
    assert bool(text) == (policy != "closed")
    found = grown(measured, before)
    size = len(text.encode())
    assert found == {
        "output": size,
        "scanned": size,
        "unscanned": 0,
        "failed_open": size if policy == "open" else 0,
    }


@pytest.mark.parametrize("route", GENERATING)
@pytest.mark.parametrize("stream", [False, True])
def test_what_would_carry_unscanned_text_is_refused(
    measured: PredictorProcess, route: str, stream: bool
) -> None:
    before = counted(measured)
    with measured.http() as client:
        for fields in REFUSED:
            answer = client.post(route.split()[1], json=body(route, stream=stream, **fields))
            assert answer.status_code == 400, fields
    turn = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    with measured.http() as client:
        answer = client.post(CHAT.split()[1], json={**ask(), "messages": [turn]})
    assert answer.status_code == 400
    assert grown(measured, before) == dict.fromkeys(before, 0)


@pytest.mark.parametrize("route", GENERATING)
def test_a_stream_that_its_client_leaves_and_one_that_is_blocked_are_counted_alike(
    measured: PredictorProcess, route: str
) -> None:
    obey(measured, "calm")
    before = counted(measured)
    fields = {"stream": True, "max_tokens": 1500}
    with (
        measured.http() as client,
        client.stream("POST", route.split()[1], json={**body(route), **fields}) as answer,
    ):
        lines = answer.iter_lines()
        next(lines)
    until(lambda: measured.metric("running_answers") == 0)
    found = grown(measured, before)
    assert found["unscanned"] == 0
    assert 0 < found["output"] <= found["scanned"]
