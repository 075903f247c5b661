"""The predictor's OpenAPI document is true: requests made from it get the answers it names."""

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from predictor_process import PredictorProcess
from schemathesis.checks import load_all_checks
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

EXAMPLES = 12
ANSWER_TOKENS = 3
DEADLINE = "x-serin-deadline-seconds"
SECONDS = 30
ROUTES = {
    "POST /openai/v1/chat/completions",
    "POST /openai/v1/completions",
    "GET /openai/v1/models",
    "GET /openai/v1/models/{name}",
    "GET /serin/identity",
    "GET /metrics",
    "GET /v2/health/live",
    "GET /v2/health/ready",
    "GET /v2/models/{model_name}/ready",
}
load_all_checks()


def bounded(case: Any) -> Any:
    """Ask for few tokens and for enough time, wherever the request was free to ask for others."""
    body, headers = case.body, case.headers or {}
    if isinstance(body, dict):
        asked = body.get("max_tokens")
        if asked is None or (type(asked) is int and ANSWER_TOKENS < asked <= 2048):
            body["max_tokens"] = ANSWER_TOKENS
    with suppress(KeyError, ValueError):
        if 0 < float(headers[DEADLINE]) < SECONDS:
            headers[DEADLINE] = str(SECONDS)
    return case


def test_the_document_names_every_route(openvino: PredictorProcess) -> None:
    paths = openvino.get("/openapi.json").json()["paths"]
    assert {f"{way.upper()} {path}" for path, ways in paths.items() for way in ways} == ROUTES


def test_a_method_that_is_not_offered_is_answered_with_those_that_are(
    openvino: PredictorProcess,
) -> None:
    answer = openvino.get("/openai/v1/completions")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "POST"


@pytest.mark.parametrize(
    ("route", "mode"),
    [
        *((route, GenerationMode.POSITIVE) for route in sorted(ROUTES)),
        *((route, GenerationMode.NEGATIVE) for route in sorted(ROUTES) if "POST" in route),
    ],
)
def test_requests_made_from_the_document_are_answered_as_it_says(
    predictor: PredictorProcess, route: str, mode: GenerationMode
) -> None:
    document = schemathesis.openapi.from_url(
        f"{predictor.url}/openapi.json", headers=predictor.headers
    )
    way, path = route.split()
    operation = document[path][way]

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def answered(case: Any) -> None:
        # Which fields go together (n and prompts, stream and its options) no schema can say.
        made = bounded(case)
        checks = [positive_data_acceptance]
        made.call_and_validate(headers=predictor.headers, excluded_checks=checks)

    answered()
    assert predictor.metric("requests_total", outcome="error") == 0
