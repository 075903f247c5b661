"""What the audit keeps of a request, and how a row stands in a chain; knows no files."""

from collections.abc import Iterator

import msgspec

from core.digests import chain_digest
from core.errors import IntegrityError

GENESIS = ""
"""What the first row of a chain says of the row before it."""


class FilterDecision(msgspec.Struct, frozen=True, omit_defaults=True):
    """What one safety filter said of one text; `seconds` is what it took."""

    filter: str
    role: str
    decision: str
    category: str = ""
    score: float = 0.0
    seconds: float = 0.0


class AuditRow(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """One request and its answer, or `count` refusals of one kind.

    `kind` is answer, part (of a stream that goes on), shadow, cancelled, cache_hit, refusal or
    failure. Digests are SHA-256 in hex; `output_digests`
    has one per scanned segment. Bytes count the text of answers, not its JSON. `text` is kept only
    where the policy says so, with personal data already redacted.
    """

    kind: str
    time_seconds: float
    request_id: str = ""
    response_id: str = ""
    key: str = ""
    client: str = ""
    model_version: str = ""
    revision: str = ""
    bundle_digest: str = ""
    policy: str = ""
    status: int = 0
    reason: str = ""
    blocked: bool = False
    decisions: tuple[FilterDecision, ...] = ()
    input_digest: str = ""
    output_digests: tuple[str, ...] = ()
    bytes_scanned: int = 0
    bytes_sent: int = 0
    count: int = 1
    text: dict[str, str] | None = None


class Line(msgspec.Struct, frozen=True):
    """A row in its chain: its number from 1, the hash of the row before, its own."""

    seq: int
    previous: str
    hash: str
    row: msgspec.Raw


ENCODER = msgspec.json.Encoder()
LINES = msgspec.json.Decoder(Line)
ROWS = msgspec.json.Decoder(AuditRow)


def make_line(seq: int, previous: str, row: AuditRow) -> tuple[bytes, str]:
    """Return a row's line, newline included, and its hash."""
    text = ENCODER.encode(row)
    digest = _hash(seq, previous, text)
    return ENCODER.encode(Line(seq, previous, digest, msgspec.Raw(text))) + b"\n", digest


def check_lines(data: bytes, seq: int, previous: str) -> Iterator[Line]:
    """Yield the lines of a segment that continues a chain after row `seq` with hash `previous`.

    Raises IntegrityError at the first line that was edited, added, removed or moved.
    """
    for text in data.splitlines():
        seq += 1
        try:
            line = LINES.decode(text)
        except msgspec.MsgspecError as error:
            raise IntegrityError(f"row {seq} cannot be read: {error}") from error
        if (line.seq, line.previous) != (seq, previous):
            raise IntegrityError(f"row {seq} is missing: row {line.seq} stands in its place")
        if line.hash != _hash(seq, previous, line.row):
            raise IntegrityError(f"row {seq} was changed")
        previous = line.hash
        yield line


def _hash(seq: int, previous: str, row: bytes | msgspec.Raw) -> str:
    return chain_digest(previous, f"{seq} {bytes(row).decode()}")
