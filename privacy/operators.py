"""What takes the place of sensitive data: nothing, its type, a pseudonym, a hash, or no record."""

import functools
import hashlib
import hmac
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Literal

from core.errors import ConfigurationError

Operator = Callable[[str, str], str | None]
"""operator(type, value) -> replacement; None drops the whole record."""

OperatorName = Literal["redact", "replace", "pseudonym", "hash", "drop"]
REDACTED = "[REDACTED]"
TAG_HEX_LENGTH = 12
KEY_BYTES_MIN = 16
EXACT_TYPES = {"API_KEY", "JWT", "PRIVATE_KEY", "URL", "CRYPTO"}
"""Upper case, spaces and punctuation are part of these values."""


def redact(type_: str, value: str) -> str:
    """Leave only that something was there."""
    return REDACTED


def replace(type_: str, value: str) -> str:
    """Leave the type: [EMAIL_ADDRESS]."""
    return f"[{type_}]"


def drop(type_: str, value: str) -> None:
    """Drop the whole record."""


def pseudonym(key: bytes) -> Operator:
    """Return an operator that gives the same value the same name, under this key only.

    HMAC-SHA-256 (RFC 2104) over type and value; 48 bits are kept, so two of a million values share
    a name with probability 0.2 %. Spacing, case and dashes of a value do not count.
    """
    if len(key) < KEY_BYTES_MIN:
        raise ConfigurationError(f"a pseudonym key has at least {KEY_BYTES_MIN} bytes")
    return functools.partial(_tagged, lambda data: hmac.new(key, data, hashlib.sha256))


def hashed(salt: bytes = b"") -> Operator:
    """Return an operator that leaves a SHA-256 tag, the same for everybody with the same salt.

    Short values such as phone numbers can be found again by trying all: for those use a pseudonym.
    """
    return functools.partial(_tagged, lambda data: hashlib.sha256(salt + data))


def by_type(operators: Mapping[str, Operator], otherwise: Operator = replace) -> Operator:
    """Return an operator that treats each type in its own way."""
    return lambda type_, value: operators.get(type_, otherwise)(type_, value)


def named(name: OperatorName, key: bytes = b"") -> Operator:
    """Return an operator by its name; `key` is the pseudonym's key or the hash's salt."""
    if name == "pseudonym":
        return pseudonym(key)
    if name == "hash":
        return hashed(key)
    return {"redact": redact, "replace": replace, "drop": drop}[name]


def _tagged(digest: "Callable[[bytes], hashlib._Hash | hmac.HMAC]", type_: str, value: str) -> str:
    plain = unicodedata.normalize("NFKC", value)
    if type_ not in EXACT_TYPES:
        plain = re.sub(r"[^\w@.:+]" if type_ != "PHONE_NUMBER" else r"\D", "", plain).casefold()
    tag = digest(f"{type_}\0{plain}".encode("utf-8", "surrogatepass")).hexdigest()
    return f"[{type_}_{tag[:TAG_HEX_LENGTH]}]"
