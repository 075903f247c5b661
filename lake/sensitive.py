"""How the lake replaces sensitive data: its configured operators, for many texts at once.

What is found, and how hidden it may be, privacy/pii.py says; all else stays as it was.
"""

import functools
import threading
from collections.abc import Callable, Sequence

from core.keys import read_key
from lake.config import IngestConfig, SensitiveConfig
from privacy.operators import Operator, by_type, named
from privacy.pii import Scanner, redacted

DROPPED = "\0dropped"
"""In place of a text for which its row is to be dropped; no normalised text holds a NUL."""
KINDS = {
    "EMAIL_ADDRESS": "EMAIL",
    "PHONE_NUMBER": "PHONE",
    "CREDIT_CARD": "CARD",
    "CN_BANK_CARD": "CARD",
}
ReplacePersonal = Callable[[Sequence[str]], list[str]]
_own = threading.local()


def replacement(config: IngestConfig) -> ReplacePersonal:
    """Return what replaces the sensitive data in texts as configured: `list` to keep it.

    Raises ConfigurationError when the key cannot be read.
    """
    if not config.scrub:
        return list
    return functools.partial(scrub_many, operator=_operator(config.sensitive))


def scrub(text: str) -> str:
    """Replace sensitive data by its kind: [EMAIL], [PHONE], [CARD], else the entity type."""
    return scrub_many([text])[0]


def kind(type_: str, value: str) -> str:
    """Leave the kind: the operator `replace` in the lake's short names."""
    return f"[{KINDS.get(type_, type_)}]"


def scrub_many(texts: Sequence[str], operator: Operator = kind) -> list[str]:
    """Do so for many texts, several times as fast, by an operator; DROPPED where it drops."""
    found = _scanner().scan_many(texts)
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


def _scanner() -> Scanner:
    """Return this thread's scanner: one cannot be shared between threads."""
    if not hasattr(_own, "scanner"):
        _own.scanner = Scanner()
    scanner: Scanner = _own.scanner
    return scanner
