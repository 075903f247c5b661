"""Who may score answers: names with the SHA-256 of their tokens, in a file that may change.

No token is kept, compared byte by byte or logged.
"""

import hashlib
import hmac
import logging
import os
import re
from pathlib import Path
from typing import Any

import yaml

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 64 << 10
EVALUATORS_MAX = 256
DIGEST = re.compile(r"[0-9a-f]{64}")


def hash_token(token: str) -> str:
    """Return what the file holds for a token: its SHA-256 in hex, as `sha256sum` prints it.

    Unsalted: a token must be random, e.g. of secrets.token_urlsafe(32), not chosen by a person.
    """
    return hashlib.sha256(token.encode()).hexdigest()


class Evaluators:
    """The evaluators in <home>/feedback.yaml: a mapping of name to hash; none without the file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._hashes: tuple[bytes, ...] = ()

    def refresh(self) -> bool:
        """Read the file if it changed; True when there is an evaluator.

        A file that cannot be read admits nobody: keeping the last good one would keep a token
        alive that somebody tried to take away.
        """
        try:
            found = os.stat(self._path)
            identity = (found.st_mtime_ns, found.st_ino, found.st_size)
            if identity != self._seen:
                self._hashes = self._read(found.st_size)
                self._seen = identity
        except FileNotFoundError:
            self._hashes, self._seen = (), None
        except OSError as error:
            log.error("%s cannot be read, feedback is off: %s", self._path, error.strerror)
            self._hashes, self._seen = (), None
        return bool(self._hashes)

    def admits(self, authorization: bytes) -> bool:
        """Whether an Authorization header holds the bearer token of an evaluator."""
        scheme, _, token = authorization.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        digest = hashlib.sha256(token.strip()).hexdigest().encode()
        matches = [hmac.compare_digest(digest, known) for known in self._hashes]
        return any(matches)  # after all comparisons: the time tells nothing

    def _read(self, size: int) -> tuple[bytes, ...]:
        try:
            if size > FILE_BYTES_MAX:
                raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
            content: Any = yaml.safe_load(self._path.read_text(encoding="utf-8")) or {}
            if not isinstance(content, dict) or len(content) > EVALUATORS_MAX:
                raise ValueError(f"it must map up to {EVALUATORS_MAX} names to hashes")
            for number, value in enumerate(content.values(), start=1):
                if not (isinstance(value, str) and DIGEST.fullmatch(value)):
                    # without its name: whoever swaps the two has written the token there
                    raise ValueError(f"entry {number} is not a SHA-256 in 64 lower-case hex digits")
        except (yaml.YAMLError, RecursionError):  # their texts quote the file
            log.error("%s is not YAML, feedback is off", self._path)
            return ()
        except ValueError as error:
            log.error("%s is not applied, feedback is off: %s", self._path, error)
            return ()
        return tuple(value.encode() for value in content.values())
