"""Ids of answers that name who answered and what it counts for, so that nobody can make one up.

An id is base64url(payload || first 16 bytes of HMAC-SHA256(key, payload)); the payload is readable,
not secret (RFC 2104 and RFC 4648 section 5).
"""

import binascii
import hmac
import os
from base64 import b64decode, urlsafe_b64encode

import msgspec

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
