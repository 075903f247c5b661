"""The OpenAI API's requests: decoded strictly, checked, and turned into jobs. No engine, no HTTP.

Fields that would change the answer but cannot be honoured are refused, never ignored.
"""

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from core.contracts import Message, Role
from serving.api_errors import ApiError, model_not_found
from serving.engines.engine import Prompt, Sampling
from serving.predictor_config import PredictorConfig

ROLES: dict[str, Role] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
}
STOP_STRINGS_MAX = 4
STOP_CHARACTERS_MAX = 256
TEMPERATURE_MAX = 2.0
SEED_MAX = 1 << 63
DEFAULT_TEMPERATURE = 1.0
"""OpenAI's own default; a client that wants the likeliest answer sends 0."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "audio": (),
    "echo": (False,),
    "suffix": ("",),
}
"""Known fields that are not offered, with the values that ask for nothing (null always does)."""


class TextPart(msgspec.Struct):
    """One part of a message's content."""

    type: str
    text: str = ""


class ChatMessage(msgspec.Struct):
    """One turn as clients write it."""

    role: str
    content: str | list[TextPart] | None = None
    tool_calls: Any = None
    function_call: Any = None


class StreamOptions(msgspec.Struct):
    """What a stream carries beside the answer."""

    include_usage: bool | None = None


class SamplingFields(msgspec.Struct, kw_only=True):
    """What chat and text completions share."""

    model: str
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: int | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    frequency_penalty: Any = None
    presence_penalty: Any = None
    logit_bias: Any = None
    logprobs: Any = None
    top_logprobs: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    response_format: Any = None
    modalities: Any = None
    audio: Any = None
    echo: Any = None
    suffix: Any = None


class ChatRequest(SamplingFields, kw_only=True):
    """Body of POST /openai/v1/chat/completions."""

    messages: list[ChatMessage]
    max_completion_tokens: int | None = None


class TextRequest(SamplingFields, kw_only=True):
    """Body of POST /openai/v1/completions."""

    prompt: str | list[str]
    best_of: int | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """A checked request: `choices` answers to each prompt. Choice index = prompt * choices + i."""

    prompts: tuple[Prompt, ...]
    sampling: Sampling
    choices: int
    stream: bool
    include_usage: bool
    chat: bool


Body = TypeVar("Body", bound=SamplingFields)


def parse_chat(body: bytes, models: tuple[str, ...], config: PredictorConfig) -> Job:
    """Return the job that a chat request asks for. Raises ApiError 400 or 404."""
    request = _decode(body, ChatRequest)
    _check_model(request.model, models)
    if not request.messages:
        raise ApiError("messages must hold at least one message.", param="messages")
    turns = tuple(_message(index, item) for index, item in enumerate(request.messages))
    if request.max_tokens is None:
        request.max_tokens = request.max_completion_tokens
    return _job(request, (turns,), True, config)


def parse_text(body: bytes, models: tuple[str, ...], config: PredictorConfig) -> Job:
    """Return the job that a text completion request asks for. Raises ApiError 400 or 404."""
    request = _decode(body, TextRequest)
    _check_model(request.model, models)
    prompts = (request.prompt,) if isinstance(request.prompt, str) else tuple(request.prompt)
    if not prompts or not all(prompts):
        raise ApiError("prompt must hold text.", param="prompt")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise ApiError("best_of other than n is not offered.", param="best_of")
    return _job(request, prompts, False, config)


def _decode(body: bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$")
        param = place.rstrip("`").lstrip(".") or None
        raise ApiError(f"{message}{f' at {param}' if param else ''}.", param=param) from error
    except RecursionError as error:
        raise ApiError("The body is nested too deeply.", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise ApiError("The body is not valid UTF-8.", code="invalid_json") from error
    except (ValueError, OverflowError) as error:
        raise ApiError(f"The body is not valid JSON: {error}.", code="invalid_json") from error


def _check_model(name: str, models: tuple[str, ...]) -> None:
    if name not in models:
        raise model_not_found(name, models)


def _message(index: int, item: ChatMessage) -> Message:
    place = f"messages[{index}]"
    role = ROLES.get(item.role)
    if role is None:
        known = ", ".join(ROLES)
        raise ApiError(f"{place}.role must be one of {known}.", param=f"{place}.role")
    if item.tool_calls or item.function_call:
        raise ApiError("tool calls are not offered.", param=f"{place}.tool_calls")
    if item.content is None:
        raise ApiError(f"{place}.content must be text.", param=f"{place}.content")
    if isinstance(item.content, str):
        return Message(role, item.content)
    if any(part.type != "text" for part in item.content):
        raise ApiError(f"{place}.content may hold text parts only.", param=f"{place}.content")
    return Message(role, "\n".join(part.text for part in item.content))


def _job(
    request: SamplingFields, prompts: tuple[Prompt, ...], chat: bool, config: PredictorConfig
) -> Job:
    for name, neutral in NEUTRAL.items():
        value = getattr(request, name)
        if value is not None and value not in neutral:
            raise ApiError(f"{name} is not offered here.", code="unsupported", param=name)
    choices = 1 if request.n is None else request.n
    _check_range("n", choices, 1, max(1, config.choices_max // len(prompts)))
    if len(prompts) > config.choices_max:
        raise ApiError(f"prompt may hold at most {config.choices_max} texts.", param="prompt")
    if request.stream_options is not None and not request.stream:
        raise ApiError("stream_options needs stream: true.", param="stream_options")
    return Job(
        prompts=prompts,
        sampling=_sampling(request, config),
        choices=choices,
        stream=bool(request.stream),
        include_usage=bool(request.stream_options and request.stream_options.include_usage),
        chat=chat,
    )


def _sampling(request: SamplingFields, config: PredictorConfig) -> Sampling:
    tokens = config.max_tokens_default if request.max_tokens is None else request.max_tokens
    temperature = DEFAULT_TEMPERATURE if request.temperature is None else request.temperature
    top_p = 1.0 if request.top_p is None else request.top_p
    _check_range("max_tokens", tokens, 1, config.max_tokens_ceiling)
    _check_range("temperature", temperature, 0.0, TEMPERATURE_MAX)
    if not 0.0 < top_p <= 1.0:
        raise ApiError("top_p must be above 0 and at most 1.", param="top_p")
    if request.seed is not None:
        _check_range("seed", request.seed, -SEED_MAX, SEED_MAX - 1)
    stop = (request.stop,) if isinstance(request.stop, str) else tuple(request.stop or ())
    if len(stop) > STOP_STRINGS_MAX or any(len(word) > STOP_CHARACTERS_MAX for word in stop):
        raise ApiError(
            f"stop may hold {STOP_STRINGS_MAX} strings of {STOP_CHARACTERS_MAX} characters.",
            param="stop",
        )
    return Sampling(
        max_tokens=tokens,
        temperature=temperature,
        top_p=top_p,
        seed=request.seed,
        stop=tuple(word for word in stop if word),
    )


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ApiError(f"{name} must be between {low:g} and {high:g}.", param=name)
