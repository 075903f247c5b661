"""The predictor's OpenAPI document: every route, what it takes and every answer that it gives.

Request bodies are derived from the types and limits that requests are checked with.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from serving.lifecycle import Identity
from serving.predictor_config import PredictorConfig
from serving.protocol import (
    NEUTRAL,
    ROLES,
    SEED_MAX,
    STOP_CHARACTERS_MAX,
    STOP_STRINGS_MAX,
    TEMPERATURE_MAX,
    ChatRequest,
    SamplingFields,
    TextRequest,
)

JSON = "application/json"
EVENTS = "text/event-stream"
DEADLINE_HEADER = "x-serin-deadline-seconds"
RESPONSE_ID_HEADER = "x-serin-response-id"
REQUEST_ID_HEADER = "x-request-id"
Schema = dict[str, Any]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
OPTIONAL_TEXT: Schema = {"type": ["string", "null"]}


def describe(identity: Identity, config: PredictorConfig) -> Schema:
    """Return the whole document of one predictor."""
    metrics = _response("metrics", {"text/plain": {"schema": TEXT}})
    metrics_route = {"get": {"summary": "metrics for Prometheus", "responses": {"200": metrics}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "Serin predictor", "version": identity.served_as},
        "components": {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            **{path: _closed(route) for path, route in _closed_routes(identity, config).items()},
            "/metrics": metrics_route if config.metrics_open else _closed(metrics_route),
            **_health_routes(),
        },
    }


def _closed(route: Schema) -> Schema:
    """Return a route that asks for the token."""
    return {
        method: {
            **operation,
            "security": [{"token": []}],
            "responses": {**operation["responses"], "401": _answer("not the token", _error())},
        }
        for method, operation in route.items()
    }


def _closed_routes(identity: Identity, config: PredictorConfig) -> Schema:
    chat = _answered("chat.completion", {"message": _message()})
    text = _answered("text_completion", {"text": TEXT})
    name = _parameter("name", "path", TEXT, "the model's name")
    return {
        "/openai/v1/chat/completions": _post(ChatRequest, identity, config, chat),
        "/openai/v1/completions": _post(TextRequest, identity, config, text),
        "/openai/v1/models": _get("the models", _models()),
        "/openai/v1/models/{name}": _get(
            "one model", _model_card(), [name], {"404": _answer("unknown", _error())}
        ),
        "/serin/identity": _get("which bundle answers", _identity()),
    }


def _health_routes() -> Schema:
    model_name = _parameter("model_name", "path", TEXT, "the model's name")
    kserve_error = _object({"error": TEXT})
    unready = {"503": _answer("not ready", kserve_error)}
    return {
        "/v2/health/live": _get("alive", _object({"live": {"type": "boolean"}})),
        "/v2/health/ready": _get(
            "takes requests", _object({"ready": {"type": "boolean"}}), (), unready
        ),
        "/v2/models/{model_name}/ready": _get(
            "takes requests for a model",
            _object({"name": TEXT, "ready": {"type": "boolean"}}),
            [model_name],
            {"404": _answer("unknown", kserve_error), **unready},
        ),
    }


def request_schema(
    kind: type[SamplingFields], models: tuple[str, ...], config: PredictorConfig
) -> Schema:
    """Return the JSON schema of a request body, without references, with every fixed limit."""
    made = msgspec.json.schema(kind)
    found: Schema = _inlined(made, made["$defs"])
    tokens = {"type": ["integer", "null"], "minimum": 1, "maximum": config.max_tokens_ceiling}
    word = {"type": "string", "maxLength": STOP_CHARACTERS_MAX}
    words = {"type": "array", "items": word, "maxItems": STOP_STRINGS_MAX}
    limits: Schema = {
        "model": {"enum": list(models)},
        "max_tokens": tokens,
        "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": TEMPERATURE_MAX},
        "top_p": {"type": ["number", "null"], "exclusiveMinimum": 0, "maximum": 1},
        "n": {"type": ["integer", "null"], "minimum": 1, "maximum": config.choices_max},
        "seed": {"type": ["integer", "null"], "minimum": -SEED_MAX, "maximum": SEED_MAX - 1},
        "stop": {"anyOf": [word, words, {"type": "null"}]},
        **{name: {"enum": [None, *neutral]} for name, neutral in NEUTRAL.items()},
    }
    if kind is ChatRequest:
        turn = found["properties"]["messages"]
        turn["minItems"] = 1
        part = {"type": {"const": "text"}, "text": TEXT}
        parts = {"type": "array", "items": {**_object(part, ["type"])}}
        turn["items"]["properties"] |= {
            "role": {"enum": list(ROLES)},
            "content": {"anyOf": [TEXT, parts]},
            "tool_calls": {"enum": [None, []]},
            "function_call": {"enum": [None]},
        }
        turn["items"]["required"] = ["role", "content"]
        limits["max_completion_tokens"] = tokens
    else:
        filled = {"type": "string", "minLength": 1}
        several = {"type": "array", "items": filled, "minItems": 1, "maxItems": config.choices_max}
        limits["prompt"] = {"anyOf": [filled, several]}
        limits["best_of"] = {"type": ["integer", "null"], "description": "null, or the same as n"}
    found["properties"] |= limits
    return found


def _inlined(schema: Any, parts: dict[str, Any]) -> Any:
    if isinstance(schema, list):
        return [_inlined(item, parts) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        return _inlined(parts[schema["$ref"].rpartition("/")[2]], parts)
    return {name: _inlined(value, parts) for name, value in schema.items() if name != "$defs"}


def _post(
    kind: type[SamplingFields], identity: Identity, config: PredictorConfig, answered: Schema
) -> Schema:
    schema = request_schema(kind, identity.names, config)
    seconds = {"type": "number", "exclusiveMinimum": 0}
    refusals = {
        "400": "the request is wrong, or longer than the context",
        "404": "unknown model",
        "413": "the body is too large",
        "429": "the queue is full; come back after Retry-After seconds",
        "500": "unforeseen; the log has the details",
        "503": "draining, or the engine failed; come back after Retry-After seconds",
        "504": "the deadline passed",
    }
    errors = {status: _answer(text, _error()) for status, text in refusals.items()}
    for status in ("429", "503"):
        errors[status]["headers"]["retry-after"] = {"schema": COUNT, "required": True}
    whole = {JSON: {"schema": answered}, EVENTS: {"schema": _object({"data": TEXT})}}
    return {
        "post": {
            "summary": "answer; where `stream` is true, events of chunks and a last one, [DONE]",
            "parameters": [
                _parameter(DEADLINE_HEADER, "header", seconds, "longest time for the answer"),
                _parameter(RESPONSE_ID_HEADER, "header", TEXT, "id of the answer, else made"),
                _parameter(REQUEST_ID_HEADER, "header", TEXT, "echoed in the answer"),
            ],
            "requestBody": {"required": True, "content": {JSON: {"schema": schema}}},
            "responses": {"200": _response("the answer", whole), **errors},
        }
    }


def _get(
    summary: str,
    schema: Schema,
    parameters: list[Schema] | tuple[()] = (),
    errors: Mapping[str, Schema] | None = None,
) -> Schema:
    responses = {"200": _answer(summary, schema), **(errors or {})}
    return {"get": {"summary": summary, "parameters": list(parameters), "responses": responses}}


def _parameter(name: str, place: str, schema: Schema, description: str) -> Schema:
    required = place == "path"
    return {
        "name": name,
        "in": place,
        "required": required,
        "schema": schema,
        "description": description,
    }


def _answer(description: str, schema: Schema) -> Schema:
    return _response(description, {JSON: {"schema": schema}})


def _response(description: str, content: Schema) -> Schema:
    names = ("x-serin-model-version", "x-serin-revision", REQUEST_ID_HEADER)
    headers = {name: {"schema": TEXT, "required": True} for name in names}
    return {"description": description, "headers": headers, "content": content}


def _object(properties: Schema, required: list[str] | None = None) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties) if required is None else required,
    }


def _answered(kind: str, content: Schema) -> Schema:
    choice = {
        "index": COUNT,
        **content,
        "logprobs": {"type": "null"},
        "finish_reason": {"enum": ["stop", "length", "content_filter"]},
    }
    counts = ("prompt_tokens", "completion_tokens", "total_tokens")
    return _object(
        {
            "id": TEXT,
            "object": {"const": kind},
            "created": COUNT,
            "model": TEXT,
            "choices": {"type": "array", "items": _object(choice), "minItems": 1},
            "usage": _object(dict.fromkeys(counts, COUNT)),
        }
    )


def _message() -> Schema:
    return _object({"role": {"const": "assistant"}, "content": TEXT, "refusal": OPTIONAL_TEXT})


def _error() -> Schema:
    content = {"message": TEXT, "type": TEXT, "param": OPTIONAL_TEXT, "code": OPTIONAL_TEXT}
    return _object({"error": _object(content)})


def _model_card() -> Schema:
    return _object({"id": TEXT, "object": {"const": "model"}, "created": COUNT, "owned_by": TEXT})


def _models() -> Schema:
    cards = {"type": "array", "items": _model_card()}
    return _object({"object": {"const": "list"}, "data": cards})


def _identity() -> Schema:
    made: Schema = msgspec.json.schema(Identity)
    found: Schema = _inlined(made, made["$defs"])
    return found
