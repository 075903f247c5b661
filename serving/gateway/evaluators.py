"""Who may score answers: names with the SHA-256 of their tokens, in a file that may change."""

from pathlib import Path
from typing import Any

from serving.gateway.tokens import bearer_token, digest_of, hash_token, name_of
from serving.gateway.watched_file import WatchedFile

__all__ = ["Evaluators", "hash_token"]

EVALUATORS_MAX = 256


class Evaluators:
    """The evaluators in <home>/feedback.yaml: a mapping of name to hash; none without the file."""

    def __init__(self, path: Path) -> None:
        self._file: WatchedFile[dict[str, str]] = WatchedFile(path, _parse, {}, "feedback is off")

    def any(self) -> bool:
        """Read the file if it changed; True when there is an evaluator."""
        return bool(self._file.content())

    def admits(self, authorization: bytes) -> bool:
        """Whether an Authorization header holds the bearer token of an evaluator."""
        token = bearer_token(authorization)
        return token is not None and name_of(token, self._file.content()) is not None


def _parse(content: Any) -> dict[str, str]:
    content = content or {}
    if not isinstance(content, dict) or len(content) > EVALUATORS_MAX:
        raise ValueError(f"it must map up to {EVALUATORS_MAX} names to hashes")
    return {
        digest_of(value, number): str(name)
        for number, (name, value) in enumerate(content.items(), start=1)
    }
