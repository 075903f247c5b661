"""API keys: who a caller is, how much may be asked with the key, and how important it is.

Keys are kept as hashes, in <home>/keys.yaml (read again when it changes) or the environment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError
from serving.gateway.reply import Refusal
from serving.gateway.tokens import bearer_token, digest_of, name_of
from serving.gateway.watched_file import WatchedFile

KEYS_MAX = 10_000
PRIORITY = 5
UNKNOWN_KEY = "there is no such API key; send `Authorization: Bearer KEY`"


class KeyLimits(BaseModel):
    """What one key may do; empty means unlimited."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: str = Field(description="SHA-256 of the key in lower-case hex, as sha256sum prints it")
    requests_per_minute: float | None = Field(
        default=None, gt=0, description="requests; further ones are answered 429"
    )
    tokens_per_minute: float | None = Field(
        default=None, gt=0, description="tokens of prompts and answers; 429 once they are used up"
    )
    priority: int = Field(
        default=PRIORITY, ge=0, le=9, description="lower ones are refused first under pressure"
    )


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a client's address and, where keys are used, the key's name and limits."""

    address: str
    key: str = ""
    limits: KeyLimits | None = None

    @property
    def priority(self) -> int:
        """How important the caller is, 0 to 9."""
        return self.limits.priority if self.limits else PRIORITY


@dataclass(frozen=True, slots=True)
class _Known:
    names: Mapping[str, str] = field(default_factory=dict)
    """Name by digest."""
    limits: Mapping[str, KeyLimits] = field(default_factory=dict)


class Keys:
    """The known keys. Without any, and unless `required`, everybody may ask."""

    def __init__(self, path: Path, given: str, required: bool) -> None:
        """`given` holds further keys as NAME=SHA256, separated by spaces.

        Raises ConfigurationError for a malformed one.
        """
        self._file = WatchedFile(path, _parse, _Known(), "no API key of it is accepted")
        self._given = _given(given)
        self._required = required or bool(self._given.names)

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Return who asks. Raises Refusal (401) for an unknown or missing key."""
        known = self._file.content()
        if not self._required and not self._file.exists:
            return Caller(address)
        token = bearer_token(headers.get(b"authorization", b""))
        if token is None:
            token = headers.get(b"x-api-key")
        if token:
            for found in (self._given, known):
                name = name_of(token, found.names)
                if name is not None:
                    return Caller(address, name, found.limits[name])
        ask = (b"www-authenticate", b"Bearer")
        raise Refusal(401, UNKNOWN_KEY, "unknown_api_key", (ask,))


def _parse(content: Any) -> _Known:
    content = content or {}
    if not isinstance(content, dict) or len(content) > KEYS_MAX:
        raise ValueError(f"it must map up to {KEYS_MAX} names to keys")
    limits: dict[str, KeyLimits] = {}
    for number, (name, value) in enumerate(content.items(), start=1):
        entry = value if isinstance(value, dict) else {"sha256": value}
        digest_of(entry.get("sha256"), number)
        unknown = set(entry) - set(KeyLimits.model_fields)
        if unknown:  # not named: whoever swaps names and values has written a key there
            raise ValueError(f"entry {number} has a field that is none of a key's")
        try:
            limits[str(name)] = KeyLimits(**entry)
        except ValidationError as error:
            raise ValueError(f"entry {number}: {error.errors()[0]['loc'][0]} is wrong") from None
    return _Known({entry.sha256: name for name, entry in limits.items()}, limits)


def _given(text: str) -> _Known:
    try:
        return _parse(dict(pair.split("=", 1) for pair in text.split()))
    except ValueError as error:
        raise ConfigurationError(f"SERIN_GATEWAY_KEYS: NAME=SHA256 pairs: {error}") from None
