"""What the API answers when it refuses: Kubernetes Status objects with their HTTP codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.errors import SerinError
from serving.local.objects import GROUP, KIND, PLURAL


@dataclass(frozen=True, slots=True)
class Cause:
    """One field that is wrong: `reason` is Kubernetes' word (FieldValueInvalid, ...)."""

    field: str
    message: str
    reason: str = "FieldValueInvalid"


class Refusal(SerinError):
    """A request that is not carried out; `code` is the HTTP status, `reason` Kubernetes' word."""

    def __init__(
        self, code: int, reason: str, message: str, name: str = "", causes: Sequence[Cause] = ()
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.name = name
        self.causes = tuple(causes)

    def document(self) -> dict[str, Any]:
        """Return the Status object."""
        details: dict[str, Any] = {"name": self.name, "group": GROUP, "kind": PLURAL}
        if self.causes:
            details["kind"] = KIND
            details["causes"] = [
                {"reason": cause.reason, "message": cause.message, "field": cause.field}
                for cause in self.causes
            ]
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": str(self),
            "reason": self.reason,
            "details": details,
            "code": self.code,
        }


def bad_request(message: str) -> Refusal:
    """400: the request itself cannot be understood."""
    return Refusal(400, "BadRequest", message)


def not_found(name: str) -> Refusal:
    """404: no such InferenceService."""
    return Refusal(404, "NotFound", f'{PLURAL}.{GROUP} "{name}" not found', name)


def already_exists(name: str) -> Refusal:
    """409: the name is taken."""
    return Refusal(409, "AlreadyExists", f'{PLURAL}.{GROUP} "{name}" already exists', name)


def conflict(name: str, why: str) -> Refusal:
    """409: somebody changed the object since the caller read it."""
    message = f'Operation cannot be fulfilled on {PLURAL}.{GROUP} "{name}": {why}'
    return Refusal(409, "Conflict", message, name)


def invalid(name: str, causes: Sequence[Cause]) -> Refusal:
    """422: understood, and against the rules; every cause is listed."""
    parts = [f"{cause.field}: {cause.message}" for cause in causes]
    listed = parts[0] if len(parts) == 1 else f"[{', '.join(parts)}]"
    message = f'{KIND}.{GROUP} "{name}" is invalid: {listed}'
    return Refusal(422, "Invalid", message, name, causes)


def expired(version: int) -> Refusal:
    """410: the history before this resource version is gone; list again."""
    return Refusal(410, "Expired", f"too old resource version: {version}; list again")
