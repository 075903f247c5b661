"""Ids of answers that name who answered and what it counts for, so that nobody can make one up.

An id is base64url(payload || first 16 bytes of HMAC-SHA256(key, payload)); the payload is readable,
not secret (RFC 2104 and RFC 4648 section 5).
"""

import binascii
import hmac
import logging
import os
import secrets
from base64 import b64decode, urlsafe_b64encode
from pathlib import Path

import msgspec

from core.errors import ConfigurationError

log = logging.getLogger(__name__)

KEY_BYTES = 32
CODE_BYTES = 16
NONCE_BYTES = 12
ID_CHARACTERS_MAX = 1024
RESPONSE_ID_HEADER = "x-serin-response-id"
PREFIXES = ("chatcmpl-", "cmpl-")


class Mark(msgspec.Struct, frozen=True, array_like=True):
    """What an id says. `stable`, `canary` and `share` name the comparison and the stratum.

    `observed`: the answer is an observation of `arm` in that comparison, which `process` counts.
    """

    nonce: bytes
    process: str
    service: str
    arm: str
    revision: str
    model_version: str
    stable: str = ""
    canary: str = ""
    share: float = 0.0
    observed: bool = False


class ResponseIds:
    """Signs and reads ids with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(Mark)

    def sign(self, mark: Mark) -> str:
        """Return the id that says `mark`."""
        payload = self._encoder.encode(mark)
        return _text(payload + self._code(payload))

    def read(self, text: str) -> Mark | None:
        """Return what an id says, with or without OpenAI's prefix; None if it was not signed."""
        for prefix in PREFIXES:
            text = text.removeprefix(prefix)
        if len(text) > ID_CHARACTERS_MAX or not text.isascii():
            return None
        try:
            content = b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            return None
        if _text(content) != text:  # one id has one spelling
            return None
        payload, code = content[:-CODE_BYTES], content[-CODE_BYTES:]
        if not hmac.compare_digest(self._code(payload), code):
            return None
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError:
            return None  # signed by a version of this program that wrote other payloads

    def _code(self, payload: bytes) -> bytes:
        return hmac.digest(self._key, payload, "sha256")[:CODE_BYTES]


def _text(content: bytes) -> str:
    return urlsafe_b64encode(content).rstrip(b"=").decode()


def make_nonce() -> bytes:
    """Return what makes an id unique."""
    return os.urandom(NONCE_BYTES)


def read_key(path: Path) -> bytes:
    """Return the key in `path`, made there if it is missing: whole or not at all, mode 0600.

    Several processes may do so at once; all get the same key. Raises ConfigurationError.
    """
    try:
        if not path.exists():
            _create(path)
        key = path.read_bytes()
        if path.stat().st_mode & 0o077:
            log.warning("%s could be read by others; it is private from now on", path)
            path.chmod(0o600)
    except OSError as error:
        text = f"{path} cannot be read or made ({error.strerror}); check the folder's owner"
        raise ConfigurationError(text) from error
    if len(key) != KEY_BYTES:
        raise ConfigurationError(
            f"{path} is not a key of {KEY_BYTES} bytes; delete it to get a new one "
            "(answers given so far cannot be scored then)"
        )
    return key


def _create(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    number = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(number, "wb") as file:
            file.write(secrets.token_bytes(KEY_BYTES))
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename it never replaces another process's key
        except FileExistsError:
            return
    finally:
        temporary.unlink()
