"""Bad input gets an OpenAI-style 4xx with its reason, never a 500, and leaves nothing behind."""

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from conftest import ENGINES
from predictor_process import PredictorProcess, ask, until

CHAT = "/openai/v1/chat/completions"
TEXT = "/openai/v1/completions"
USER = [{"role": "user", "content": "hi"}]


def body(**fields: Any) -> bytes:
    return json.dumps({**ask(max_tokens=2), **fields}).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "assistant", "prompt": "1", "max_tokens": 2, **fields}).encode()


def role(name: Any) -> bytes:
    return body(messages=[{"role": name, "content": "x"}])


def said(content: Any, **fields: Any) -> bytes:
    return body(messages=[{"role": "user", "content": content, **fields}])


BAD_CHAT: dict[str, tuple[bytes, str | None]] = {
    "nothing": (b"", None),
    "not JSON": (b"hello", None),
    "half JSON": (b'{"model": "assistant"', None),
    "text after JSON": (body() + b"x", None),
    "a list": (b"[]", None),
    "null": (b"null", None),
    "invalid UTF-8": (body().replace(b"hi", b"\xff\xfe"), None),
    "overlong UTF-8": (body().replace(b"hi", b"\xc0\xaf"), None),
    "UTF-16": (body().decode().encode("utf-16"), None),
    "half a surrogate pair": (body().replace(b"hi", b"\\ud800x"), None),
    "a byte order mark": (b"\xef\xbb\xbf" + body(), None),
    "raw control character": (body().replace(b"hi", b"\x00"), None),
    "nested deeply": (body()[:-1] + b',"z":' + b"[" * 90_000 + b"]" * 90_000 + b"}", None),
    "nested deeply in a field": (body(tools=1).replace(b"1}", b"[" * 90_000 + b"]" * 90_000), None),
    "NaN": (body(temperature=float("nan")), None),
    "Infinity": (body(temperature=float("inf")), None),
    "a number beyond floats": (
        body().replace(b'"temperature": 0', b'"temperature": 1e999'),
        "temperature",
    ),
    "an integer beyond floats": (body(temperature=10**400), "temperature"),
    "an integer of 10,000 digits": (body().replace(b": 2", b": " + b"9" * 10_000), "max_tokens"),
    "no model": (b'{"messages": [{"role": "user", "content": "x"}]}', None),
    "null model": (body(model=None), "model"),
    "model is a number": (body(model=3), "model"),
    "unknown model": (body(model="gpt-4"), "model"),
    "model of another version": (body(model="assistant:4"), "model"),
    "huge model name": (body(model="m" * 100_000), "model"),
    "no messages": (b'{"model": "assistant"}', None),
    "null messages": (body(messages=None), "messages"),
    "empty messages": (body(messages=[]), "messages"),
    "messages is text": (body(messages="hi"), "messages"),
    "message is text": (body(messages=["hi"]), "messages[0]"),
    "message without role": (body(messages=[{"content": "x"}]), "messages[0]"),
    "unknown role": (role("wizard"), "messages[0].role"),
    "tool role": (role("tool"), "messages[0].role"),
    "null role": (role(None), "messages[0].role"),
    "null content": (said(None), "messages[0].content"),
    "content is a number": (said(5), "messages[0].content"),
    "content parts that are pictures": (
        said([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]),
        "messages[0].content",
    ),
    "tool calls in a turn": (
        said("x", tool_calls=[{"id": "1", "type": "function"}]),
        "messages[0].tool_calls",
    ),
    "max_tokens is text": (body(max_tokens="5"), "max_tokens"),
    "max_tokens is a fraction": (body(max_tokens=1.5), "max_tokens"),
    "max_tokens is true": (body(max_tokens=True), "max_tokens"),
    "no tokens": (body(max_tokens=0), "max_tokens"),
    "negative tokens": (body(max_tokens=-1), "max_tokens"),
    "too many tokens": (body(max_tokens=10**9), "max_tokens"),
    "too cold": (body(temperature=-0.1), "temperature"),
    "too hot": (body(temperature=2.1), "temperature"),
    "top_p of nothing": (body(top_p=0), "top_p"),
    "top_p above one": (body(top_p=1.1), "top_p"),
    "no choices": (body(n=0), "n"),
    "too many choices": (body(n=9), "n"),
    "choices beyond memory": (body(n=10**18), "n"),
    "seed is text": (body(seed="x"), "seed"),
    "seed beyond 64 bits": (body(seed=2**70), "seed"),
    "too many stop strings": (body(stop=["a", "b", "c", "d", "e"]), "stop"),
    "stop is a number": (body(stop=7), "stop"),
    "an endless stop string": (body(stop="x" * 10_000), "stop"),
    "stream is text": (body(stream="yes"), "stream"),
    "stream options without a stream": (
        body(stream_options={"include_usage": True}),
        "stream_options",
    ),
    "log probabilities": (body(logprobs=True), "logprobs"),
    "tools": (body(tools=[{"type": "function"}]), "tools"),
    "JSON mode": (body(response_format={"type": "json_object"}), "response_format"),
    "penalties": (body(frequency_penalty=0.5), "frequency_penalty"),
    "logit bias": (body(logit_bias={"5": 100}), "logit_bias"),
}
BAD_TEXT: dict[str, tuple[bytes, str | None]] = {
    "no prompt": (b'{"model": "assistant"}', None),
    "null prompt": (text(prompt=None), "prompt"),
    "empty prompt": (text(prompt=""), "prompt"),
    "no prompts": (text(prompt=[]), "prompt"),
    "an empty prompt among others": (text(prompt=["1", ""]), "prompt"),
    "token ids": (text(prompt=[1, 2, 3]), "prompt[0]"),
    "too many prompts": (text(prompt=["1"] * 9), "prompt"),
    "too many prompts times n": (text(prompt=["1", "1"], n=5), "n"),
    "echo": (text(echo=True), "echo"),
    "suffix": (text(suffix="."), "suffix"),
    "best_of": (text(best_of=4), "best_of"),
    "log probabilities": (text(logprobs=3), "logprobs"),
}
CASES = [
    pytest.param(path, content, param, id=f"{path.rpartition('/')[0][-4:]}: {name}")
    for path, table in ((CHAT, BAD_CHAT), (TEXT, BAD_TEXT))
    for name, (content, param) in table.items()
]


@pytest.fixture(scope="module", params=ENGINES)
def client(
    request: pytest.FixtureRequest, shared: dict[str, PredictorProcess]
) -> Iterator[httpx.Client]:
    """One client for each engine's predictor."""
    with shared[request.param].wait_ready().http() as made:
        yield made


def refused(answer: httpx.Response) -> dict[str, Any]:
    """Check the form of a refusal and return its error."""
    assert 400 <= answer.status_code < 500, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["type"] == "invalid_request_error"
    assert 0 < len(error["message"]) < 600
    assert answer.headers["x-serin-model-version"] == "3"
    return error


@pytest.mark.parametrize(("path", "content", "param"), CASES)
def test_bad_requests_are_refused_with_their_reason(
    client: httpx.Client, path: str, content: bytes, param: str | None
) -> None:
    answer = client.post(path, content=content)
    assert refused(answer)["param"] == param
    assert answer.status_code == (404 if param == "model" and b'"model": "' in content else 400)


@pytest.mark.parametrize(
    "fields",
    [
        {"n": None, "stop": None, "seed": None, "top_p": None, "max_tokens": None, "stream": None},
        {"logprobs": False, "tools": [], "logit_bias": {}, "response_format": {"type": "text"}},
        {"user": "someone", "metadata": {"a": "b"}, "store": False, "unheard_of": [1, {}]},
        {"frequency_penalty": 0.0, "presence_penalty": 0, "stop": [], "seed": -(2**63)},
    ],
)
def test_fields_that_ask_for_nothing_are_accepted(
    client: httpx.Client, fields: dict[str, Any]
) -> None:
    answer = client.post(CHAT, json=ask(**fields))
    assert answer.status_code == 200, answer.text


def test_the_body_needs_no_content_type(client: httpx.Client) -> None:
    assert client.post(CHAT, content=body(), headers={"content-type": "x/y"}).status_code == 200


def test_a_huge_body_is_refused_before_it_is_read(predictor: PredictorProcess) -> None:
    with predictor.http() as client:
        answer = client.post(CHAT, content=said("x" * (1 << 20)))
    assert refused(answer)["code"] == "too_large"
    assert answer.status_code == 413


@pytest.mark.parametrize("value", ["soon", "0", "-1", "nan", "inf", ""])
def test_a_bad_deadline_is_refused(client: httpx.Client, value: str) -> None:
    answer = client.post(CHAT, content=body(), headers={"x-serin-deadline-seconds": value})
    assert refused(answer)["param"] == "x-serin-deadline-seconds"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", CHAT, 405),
        ("DELETE", "/openai/v1/models", 405),
        ("GET", "/", 404),
        ("GET", "/docs", 404),
        ("GET", "/openai/v1/../../etc/passwd", 404),
        ("POST", "/openai/v1/embeddings", 404),
        ("GET", "/v2", 404),
        ("GET", "/v2/models", 404),
        ("GET", "/v2/models/assistant", 404),
        ("POST", "/v2/models/assistant/infer", 404),
        ("POST", "/v1/models/assistant:predict", 404),
        ("POST", "/v1/models/assistant:explain", 404),
        ("POST", "/v2/repository/models/assistant/unload", 404),
        ("POST", "/v2/repository/models/assistant/load", 404),
    ],
)
def test_other_routes_and_kserves_own_inference_are_not_offered(
    client: httpx.Client, method: str, path: str, status: int
) -> None:
    answer = client.request(method, path, content=body() if method == "POST" else None)
    refused(answer)
    assert answer.status_code == status


def test_a_client_that_leaves_while_sending_is_no_failure(predictor: PredictorProcess) -> None:
    before = predictor.metric("requests_total", outcome="cancelled")
    host, port = predictor.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        token = predictor.headers["Authorization"]
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nAuthorization: {token}\r\n"
        raw.sendall(f"{head}Content-Length: 900\r\n\r\n{{".encode())
    until(lambda: predictor.metric("requests_total", outcome="cancelled") == before + 1)


def test_nothing_of_all_this_was_our_failure(predictor: PredictorProcess) -> None:
    assert predictor.metric("requests_total", outcome="error") == 0
    assert predictor.metric("running_answers") == 0
    assert "Traceback" not in predictor.log
