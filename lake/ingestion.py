"""One day file through shape, contract, cleaning and deduplication, as Arrow batches.

Bounded memory: rows go to a spool file batch by batch; knows nothing of the table they end in.
"""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, Any

import msgspec
import numpy as np
import pyarrow as pa

from core.contracts import Rejection
from core.errors import InputError
from lake.cleaning import CleanRow, clean, held_out, scrub, shape
from lake.schema import QUARANTINE_SCHEMA, RECORDS_SCHEMA
from lake.sources import DayFile, IngestConfig, RawRow, read_batches

CheckRows = Callable[[list[dict[str, Any]]], list[Rejection]]
QUARANTINE_TEXT_MAX = 2000
RECENT_MAX = 1 << 20
DIGEST_PREFIX = 16
NAMES_SHOWN_MAX = 12


class DigestSet:
    """A set of 64-bit digest prefixes at 8 bytes each, plus a bounded Python set of recent ones.

    Two different rows share a prefix with probability n^2 / 2^65: about 3 % at a billion rows,
    and then one row too many counts as a duplicate.
    """

    def __init__(self, prefixes: np.ndarray[Any, np.dtype[np.uint64]]) -> None:
        self._sorted = np.sort(prefixes)
        self._recent: set[int] = set()

    @classmethod
    def of(cls, digests: Sequence[str] = ()) -> "DigestSet":
        """Return the set of the given hexadecimal digests."""
        numbers = (int(digest[:DIGEST_PREFIX], 16) for digest in digests)
        return cls(np.fromiter(numbers, dtype=np.uint64))

    def add(self, digest: str) -> bool:
        """Add a digest; return whether it was new."""
        prefix = int(digest[:DIGEST_PREFIX], 16)
        place = int(np.searchsorted(self._sorted, np.uint64(prefix)))
        known = place < len(self._sorted) and int(self._sorted[place]) == prefix
        if known or prefix in self._recent:
            return False
        self._recent.add(prefix)
        if len(self._recent) >= RECENT_MAX:
            recent = np.fromiter(self._recent, dtype=np.uint64)
            self._sorted = np.sort(np.concatenate([self._sorted, recent]))
            self._recent.clear()
        return True


@dataclass
class Spool:
    """Record batches in an unlinked temporary file, to be read once after writing."""

    schema: pa.Schema
    rows: int = 0
    file: IO[bytes] = field(default_factory=tempfile.TemporaryFile)

    def __post_init__(self) -> None:
        self._writer = pa.ipc.new_stream(self.file, self.schema)

    def write(self, rows: list[dict[str, Any]]) -> None:
        """Append rows."""
        if rows:
            self._writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=self.schema))
            self.rows += len(rows)

    def reader(self) -> pa.RecordBatchReader:
        """Return all rows as a stream of batches."""
        self._writer.close()
        self.file.seek(0)
        return pa.ipc.open_stream(self.file)


@dataclass
class PreparedDay:
    """What one file comes to. rows_in = records.rows + duplicates + quarantine.rows, always."""

    records: Spool = field(default_factory=lambda: Spool(RECORDS_SCHEMA))
    quarantine: Spool = field(default_factory=lambda: Spool(QUARANTINE_SCHEMA))
    rows_in: int = 0
    duplicates: int = 0

    def close(self) -> None:
        """Give the temporary files back."""
        self.records.file.close()
        self.quarantine.file.close()


@dataclass
class _Intake:
    """The state of one file's way in."""

    day_file: DayFile
    file_digest: str
    config: IngestConfig
    check: CheckRows
    known: DigestSet
    prepared: PreparedDay
    ids: DigestSet = field(default_factory=DigestSet.of)
    now: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def take(self, raw: Sequence[RawRow]) -> None:
        """Sort one batch into records, duplicates and quarantine."""
        self.prepared.rows_in += len(raw)
        refused = [(row, row.reason) for row in raw if row.value is None]
        decoded = [
            (row, shape(row.value, self.config.mapping)) for row in raw if row.value is not None
        ]
        reasons = {item.index: item.reason for item in self.check([s.checked for _, s in decoded])}
        kept: list[dict[str, Any]] = []
        for index, (row, shaped) in enumerate(decoded):
            reason = reasons.get(index) or ("" if shaped.turns else "the turns are malformed")
            if reason:
                refused.append((row, reason))
                continue
            ready = clean(shaped, scrub if self.config.scrub else str)
            if not (ready.response and ready.messages[-1].content and ready.record_id):
                refused.append((row, "nothing is left after cleaning"))
            elif not self.known.add(ready.content_digest):
                self.prepared.duplicates += 1
            elif not self.ids.add(_id_digest(ready.record_id)):
                refused.append((row, "the record id stands in this file for another content"))
            else:
                kept.append(self.record(row, ready))
        self.prepared.records.write(kept)
        self.prepared.quarantine.write([self.refusal(row, reason) for row, reason in refused])

    def record(self, raw: RawRow, row: CleanRow) -> dict[str, Any]:
        return {
            "record_id": row.record_id,
            "day": self.day_file.day,
            "created_at": row.created_at,
            "slice_name": row.slice_name,
            "messages": msgspec.json.encode(row.messages).decode(),
            "prompt": row.messages[-1].content,
            "response": row.response,
            "language": row.language,
            "content_digest": row.content_digest,
            "held_out": held_out(row.record_id, self.config.held_out_share),
            "source": self.day_file.name,
            "row": raw.row,
            "file_digest": self.file_digest,
        }

    def refusal(self, raw: RawRow, reason: str) -> dict[str, Any]:
        text = raw.text
        if raw.value is not None:
            text = msgspec.json.encode(raw.value, enc_hook=str).decode()
        # Scrubbed whole and cut afterwards: a cut e-mail address would no longer be recognised.
        return {
            "day": self.day_file.day,
            "source": self.day_file.name,
            "row": raw.row,
            "offset": raw.offset,
            "length": raw.length,
            "reason": reason,
            "text": scrub(text)[:QUARANTINE_TEXT_MAX],
            "digest": raw.digest,
            "file_digest": self.file_digest,
            "quarantined_at": self.now,
        }


def prepare_day(
    day_file: DayFile,
    file_digest: str,
    config: IngestConfig,
    check: CheckRows,
    known: DigestSet,
    fields_required: bool,
) -> PreparedDay:
    """Read one day file and sort its rows into records, duplicates and quarantine.

    `known` holds the content digests of earlier rows and grows by this day's. With
    `fields_required` a file of which no row has the mapped columns raises InputError at its first
    batch: then the mapping is wrong, not the data.
    """
    prepared = PreparedDay()
    intake = _Intake(day_file, file_digest, config, check, known, prepared)
    try:
        for batch in read_batches(day_file, config):
            if fields_required and prepared.rows_in == 0:
                require_fields(batch.rows, config, day_file.name)
            intake.take(batch.rows)
    except BaseException:
        prepared.close()
        raise
    return prepared


def require_fields(rows: Sequence[RawRow], config: IngestConfig, name: str) -> None:
    """Raise InputError when not one decoded row has the columns that the mapping names."""
    mapping = config.mapping
    values = [row.value for row in rows if row.value is not None]
    plain = {mapping.prompt, mapping.response, *filter(None, (mapping.slice_name, mapping.id))}
    if not values or any(mapping.messages in value or plain <= value.keys() for value in values):
        return
    found = sorted({str(key) for value in values for key in value})[:NAMES_SHOWN_MAX]
    raise InputError(
        f"no row of {name} has the fields {', '.join(sorted(plain))}; it has {', '.join(found)}: "
        "map them (--prompt-field, --response-field, --slice-field, --id-field)"
    )


def _id_digest(record_id: str) -> str:
    return hashlib.sha256(record_id.encode()).hexdigest()
