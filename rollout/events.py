"""The ledger's events: each holds the hash of the one before, so that no edit or gap can hide."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from core.digests import canonical_json

GENESIS = "0" * 64


@dataclass(frozen=True, slots=True)
class ServingShare:
    """One version's part of the traffic, in percent."""

    model_version: str
    bundle_digest: str
    percent: int


NOTHING = ServingShare("", "", 0)
"""What serves where there is no service."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened. `serving` is what served from then on, where it was observed."""

    seq: int
    time: str
    release_id: str
    namespace: str
    service: str
    kind: str
    state: str
    epoch: int
    holder: str
    body: Mapping[str, Any]
    serving: tuple[ServingShare, ...]
    previous_hash: str
    hash: str


class HashedContent(msgspec.Struct, frozen=True):
    """What an event's hash covers. Fields in alphabetic order: encoded, this is canonical JSON."""

    body: msgspec.Raw
    epoch: int
    holder: str
    kind: str
    namespace: str
    previous_hash: str
    release_id: str
    seq: int
    service: str
    serving: str
    state: str
    time: str


CHECKED = ("hash", *HashedContent.__struct_fields__)
_ENCODER = msgspec.json.Encoder()


def event_hash(content: HashedContent) -> str:
    """Return the SHA-256 of an event's canonical JSON."""
    return hashlib.sha256(_ENCODER.encode(content)).hexdigest()


def chain(row: Mapping[str, Any], previous_hash: str) -> dict[str, Any]:
    """Return an event row (without hashes) as it follows the event that has `previous_hash`."""
    linked = {**row, "previous_hash": previous_hash}
    return {**linked, "hash": event_hash(_content(linked))}


def read_event(row: Mapping[str, Any]) -> Event:
    """Return a database row as an event."""
    serving = row["serving"]
    shares = msgspec.json.decode(serving, type=tuple[ServingShare, ...]) if serving else ()
    return Event(**{**row, "body": msgspec.json.decode(row["body"]), "serving": shares})


def chain_problems(rows: Iterable[Sequence[Any]], head: tuple[int, str], limit: int) -> list[str]:
    """Check rows of CHECKED columns, in order of seq, against each other and the head (seq, hash).

    Returns at most `limit` sentences; none means that nothing was changed, removed or added.
    """
    problems: list[str] = []
    seq, previous = 0, GENESIS
    for found_hash, body, *others in rows:
        if len(problems) >= limit:
            return problems
        content = HashedContent(msgspec.Raw(body.encode()), *others)
        if content.seq != seq + 1:
            problems.append(f"events {seq + 1} to {content.seq - 1} are missing")
        elif content.previous_hash != previous:
            problems.append(f"event {content.seq} does not follow event {seq}: chain changed")
        if event_hash(content) != found_hash:
            problems.append(f"event {content.seq} was edited: its content does not give its hash")
        seq, previous = content.seq, found_hash
    if (seq, previous) != head:
        problems.append(f"the chain ends at event {seq}, the last one written was {head[0]}")
    return problems


def plain(value: Any) -> Any:
    """Return builtins that canonical JSON can hold: NaN becomes null, infinities become text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def body_text(body: Mapping[str, Any]) -> str:
    """Return an event's body as canonical JSON text."""
    return canonical_json(plain(msgspec.to_builtins(body))).decode()


def serving_text(shares: Iterable[ServingShare]) -> str:
    """Return what serves as canonical JSON text, largest share first; empty without shares."""
    found = sorted(shares, key=lambda share: (-share.percent, share.bundle_digest))
    return canonical_json(msgspec.to_builtins(found)).decode() if found else ""


def _content(row: Mapping[str, Any]) -> HashedContent:
    names = [name for name in HashedContent.__struct_fields__ if name != "body"]
    return HashedContent(msgspec.Raw(row["body"].encode()), **{name: row[name] for name in names})
