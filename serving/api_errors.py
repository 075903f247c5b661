"""Errors of the OpenAI-style API: each knows its HTTP status and its JSON body.

4xx: the request is wrong. 429: the queue is full. 503: draining or the engine failed.
504: the deadline passed; the time was ours, so it is not 408.
"""

from collections.abc import Mapping

import msgspec

from core.errors import SerinError

RETRY_AFTER_SECONDS = 1
POLICY_HEADER = "x-serin-policy"
BLOCKED_HEADER = "x-serin-blocked"
"""How many prompts or choices the safety chain held back, as far as known when headers leave."""


class ApiError(SerinError):
    """An answer other than 200. `param` names the request's field, `code` the machine's reason."""

    def __init__(
        self,
        message: str,
        status: int = 400,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        outcome: str = "client_error",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.kind = kind
        self.outcome = outcome
        self._headers = dict(headers or {})

    @property
    def headers(self) -> dict[str, str]:
        """Headers that belong to the status, and the error's own."""
        retry = {"retry-after": str(RETRY_AFTER_SECONDS)} if self.status in (429, 503) else {}
        return {**retry, **self._headers}

    def body(self) -> bytes:
        """Return the JSON body that OpenAI's clients understand."""
        content = {
            "message": str(self),
            "type": self.kind,
            "param": self.param,
            "code": self.code,
        }
        return msgspec.json.encode({"error": content})


def model_not_found(name: str, known: tuple[str, ...]) -> ApiError:
    """The request names a model that is not served here."""
    shown = name if len(name) <= 100 else name[:100] + "..."
    return ApiError(
        f"The model `{shown}` does not exist; served here: {', '.join(known)}.",
        status=404,
        code="model_not_found",
        param="model",
    )


def blocked(category: str, policy_hash: str, chat: bool) -> ApiError:
    """The safety policy forbids to answer this; which words it was stays unsaid."""
    return ApiError(
        f"The safety policy holds this request back (category {category}).",
        code="content_filter",
        param="messages" if chat else "prompt",
        outcome="blocked",
        headers=safety_headers(policy_hash, 1),
    )


def safety_headers(policy_hash: str, held_back: int) -> dict[str, str]:
    """Return the headers that tell which policy checked an answer, and how much it held back."""
    return {POLICY_HEADER: policy_hash, BLOCKED_HEADER: str(held_back)}


def unauthorised() -> ApiError:
    """The caller does not hold the token of this predictor."""
    return ApiError(
        "This server answers its gateway only; send requests to the gateway.",
        status=401,
        code="unauthorised",
        headers={"www-authenticate": "Bearer"},
    )


def audit_unavailable() -> ApiError:
    """What is not recorded is not answered."""
    return ApiError(
        "The answer cannot be recorded, so it is not given; try again.",
        status=503,
        code="audit_unavailable",
        kind="server_error",
        outcome="error",
    )


def unscanned() -> ApiError:
    """Text that no filter has seen was about to leave: a fault of this program."""
    return ApiError(
        "The answer was stopped: a part of it had not been checked.",
        status=500,
        code="unscanned",
        kind="server_error",
        outcome="error",
    )


def queue_full(waiting: int) -> ApiError:
    """The bounded queue has no place."""
    return ApiError(
        f"{waiting} requests wait already; try again later.",
        status=429,
        code="rate_limit_exceeded",
        kind="rate_limit_error",
        outcome="refused",
    )


def draining() -> ApiError:
    """The process is ending and takes no new request."""
    return ApiError(
        "This replica is shutting down; send the request again.",
        status=503,
        code="draining",
        kind="server_error",
        outcome="refused",
    )


def deadline_passed(seconds: float) -> ApiError:
    """The request took longer than it may."""
    return ApiError(
        f"No complete answer within {seconds:g} seconds.",
        status=504,
        code="deadline_exceeded",
        kind="server_error",
        outcome="expired",
    )


def engine_failed(message: str) -> ApiError:
    """The engine could not answer."""
    return ApiError(
        f"The model failed: {message}.",
        status=503,
        code="engine_error",
        kind="server_error",
        outcome="error",
    )


def unexpected() -> ApiError:
    """Something that nobody foresaw; the log has the details."""
    return ApiError(
        "The server failed on this request; its log has the details.",
        status=500,
        code="internal_error",
        kind="server_error",
        outcome="error",
    )
