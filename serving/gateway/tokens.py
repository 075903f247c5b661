"""Secrets that callers present: compared by their SHA-256 only, never kept or logged."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

DIGEST = re.compile(r"[0-9a-f]{64}")


def hash_token(token: str) -> str:
    """Return what a file holds for a token: its SHA-256 in hex, as `sha256sum` prints it.

    Unsalted: a token must be random, e.g. of secrets.token_urlsafe(32), not chosen by a person.
    """
    return hashlib.sha256(token.encode()).hexdigest()


def digest_of(value: Any, number: int) -> str:
    """Return a file's entry as a digest.

    Raises ValueError without its name: whoever swaps name and hash has written the token there.
    """
    if not (isinstance(value, str) and DIGEST.fullmatch(value)):
        raise ValueError(f"entry {number} is not a SHA-256 in 64 lower-case hex digits")
    return value


def bearer_token(authorization: bytes) -> bytes | None:
    """Return the token of an Authorization header; None for any other scheme."""
    scheme, _, token = authorization.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else None


def name_of(token: bytes, names: Mapping[str, str]) -> str | None:
    """Return the name under the token's digest.

    Nobody can choose a digest's first characters, so the time of the look-up tells nothing.
    """
    return names.get(hashlib.sha256(token).hexdigest())
