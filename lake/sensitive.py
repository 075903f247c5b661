"""How the lake replaces sensitive data: its configured operators, for many texts at once.

What is found, and how hidden it may be, privacy/pii.py says; all else stays as it was.
"""

import functools
import re
import threading
from collections.abc import Callable, Sequence

from core.keys import read_key
from lake.config import IngestConfig, SensitiveConfig
from privacy.operators import Operator, by_type, named
from privacy.pii import Scanner, redacted
from privacy.token_labels import TokenLabels, TokenLabelsConfig

DROPPED = "\0dropped"
"""In place of a text for which its row is to be dropped; no normalised text holds a NUL."""
KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "CN_BANK_CARD": "CARD",
}
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]+")
ESCAPES = re.compile(
    r"\\u(?P<high>d[89ab][0-9a-f]{2})\\u(?P<low>d[c-f][0-9a-f]{2})"
    r"|\\u(?P<code>[0-9a-f]{4})|\\.",
    re.IGNORECASE | re.DOTALL,
)
"""An escape in JSON: a pair of surrogates, a character, or a backslash and what follows it."""
KEPT_ESCAPES = {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "\\": r"\\"}
ReplacePersonal = Callable[[Sequence[str]], list[str]]
_own = threading.local()


def replacement(config: IngestConfig) -> ReplacePersonal:
    """Return what replaces the sensitive data in texts as configured: `list` to keep it.

    Raises ConfigurationError when the key cannot be read.
    """
    if not config.scrub:
        return list
    sensitive = config.sensitive
    return functools.partial(scrub_many, operator=_operator(sensitive), model=sensitive.model)


def plain_texts(texts: Sequence[str], config: IngestConfig) -> list[str]:
    """Return what may be kept of refused rows: kinds in place of sensitive data, always.

    Control characters and JSON's escapes of letters could hide it: they are resolved first.
    """
    return scrub_many([unescaped(text) for text in texts], model=config.sensitive.model)


def unescaped(text: str) -> str:
    """Return a piece of JSON, whole or broken, with its letters written out and none unseen.

    Escaped quotes, backslashes, line breaks and lone surrogates stay as they are.
    """
    if "\\" in text:
        text = ESCAPES.sub(_letter, text)
    return CONTROL.sub("", text)


def _letter(match: "re.Match[str]") -> str:
    if match["high"]:
        pair = (int(match[name], 16).to_bytes(2) for name in ("high", "low"))
        return b"".join(pair).decode("utf-16-be")
    if match["code"] is None:
        return "" if match[0] in (r"\b", r"\f") else match[0]
    letter = chr(int(match["code"], 16))
    if "\ud800" <= letter <= "\udfff":
        return match[0]
    return KEPT_ESCAPES.get(letter, letter)


def scrub(text: str) -> str:
    """Replace sensitive data by its kind: [EMAIL], [PHONE], [CARD], else the entity type."""
    return scrub_many([text])[0]


def kind(type_: str, value: str) -> str:
    """Leave the kind: the operator `replace` in the lake's short names."""
    return f"[{KINDS.get(type_, type_)}]"


def scrub_many(
    texts: Sequence[str], operator: Operator = kind, model: TokenLabelsConfig | None = None
) -> list[str]:
    """Do so for many texts, several times as fast, by an operator; DROPPED where it drops.

    `model` finds more names and addresses than patterns do.
    """
    if not texts:
        return []  # without making a scanner, which takes a second
    found = _scanner(model).scan_many(texts)
    return [
        (redacted(text, spans, operator) or DROPPED) if spans else text
        for text, spans in zip(texts, found, strict=True)
    ]


def _operator(config: SensitiveConfig) -> Operator:
    key = read_key(config.key_file) if config.key_file else b""
    chosen = {
        name: kind if name == "replace" else named(name, key)
        for name in (config.operator, *config.by_type.values())
    }
    types = {type_: chosen[name] for type_, name in config.by_type.items()}
    return by_type(types, chosen[config.operator]) if types else chosen[config.operator]


def _scanner(model: TokenLabelsConfig | None) -> Scanner:
    """Return this thread's scanner: one cannot be shared between threads."""
    if not hasattr(_own, "scanners"):
        _own.scanners = {}
    scanners: dict[TokenLabelsConfig | None, Scanner] = _own.scanners
    if model not in scanners:
        scanners[model] = Scanner(recognisers=[] if model is None else [TokenLabels(model)])
    return scanners[model]
