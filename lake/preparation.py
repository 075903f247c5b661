"""One block of raw rows through shape, contract, cleaning and digest, as Arrow rows.

A block needs nothing but itself and the file's Intake, so blocks may be prepared anywhere and in
any order; which of their rows the lake already has, ingestion.py asks afterwards.
"""

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from core.contracts import Rejection
from core.errors import InputError
from lake.cleaning import CleanRow, ShapedRow, clean, held_out, shape
from lake.config import IngestConfig
from lake.index import index_row
from lake.readers import RawBlock, RawRow
from lake.schema import QUARANTINE_SCHEMA, RECORDS_SCHEMA, TOKEN_IDS
from lake.sensitive import plain_texts, replacement
from lake.sketches import IndexRow, Sketches, sketch
from lake.tokens import token_ids, tokenizer_digest
from lake.tombstones import ERASED, Tombstones

CheckRows = Callable[[list[dict[str, Any]], float], list[Rejection]]
"""check(rows in the lake's form, now in seconds) -> the rows that break the record contract."""
DescribeRows = Callable[[list[dict[str, Any]], float], Mapping[str, Sequence[Any]]]
"""describe(rows, now) -> what the contract looks at, by column and without any text."""
QUARANTINE_TEXT_MAX = 2000
TAKEN_ID = "the record id stands in this file for another content"
SAMPLED_ROWS_PER_BLOCK = 50
NAMES_SHOWN_MAX = 12
PLACED_SCHEMA = pa.schema(
    [*RECORDS_SCHEMA, *((name, pa.int64()) for name in ("offset", "length", "tokens")), TOKEN_IDS]
)
"""Rows that may still be refused: also their place in the file, and what tokens they have."""


@dataclass(frozen=True, slots=True)
class Intake:
    """What is the same for all blocks of one file. It can be sent to another process.

    `judged_at` (seconds) is the now of the contract: fixed once a file, so that a second pass over
    its rows judges them alike.
    """

    day: str
    source: str
    file_digest: str
    config: IngestConfig
    check: CheckRows
    judged_at: float
    describe: DescribeRows | None = None
    tombstones: Tombstones = Tombstones()

    def kept_settings(self) -> dict[str, Any]:
        """Return what a later correction of a row needs to read it alike."""
        kept = {"mapping", "scrub", "sensitive", "held_out_share"}
        return self.config.model_dump(mode="json", include=kept, exclude_defaults=True)


@dataclass(frozen=True, slots=True)
class PreparedBlock:
    """What one block comes to: rows_in = records + refused, always.

    `records` has PLACED_SCHEMA, `refused` QUARANTINE_SCHEMA; their `row` counts from 1 in the
    block. `sketches` are those of the records. `reasons` counts the rows that broke each rule of
    the contract; `sample` is a seeded draw of rows as IntakeEvidence has them.
    """

    rows_in: int
    size_bytes: int
    position: int
    records: pa.RecordBatch
    refused: pa.RecordBatch
    sketches: Sketches
    reasons: Mapping[str, int]
    sample: tuple[dict[str, Any], ...] = ()


def prepare_block(block: RawBlock, intake: Intake, fields_required: bool = False) -> PreparedBlock:
    """Decode a block and sort its rows into records and refused ones.

    With `fields_required` a block of which no row has the mapped columns raises InputError: then
    the mapping is wrong, not the data.
    """
    config = intake.config
    raw = block.decoded(config.row_bytes_max)
    if fields_required:
        require_fields(raw, config, intake.source)
    refused = [(row, row.reason) for row in raw if row.value is None]
    decoded = [row for row in raw if row.value is not None]
    shaped = [shape(row.value, config.mapping) for row in decoded if row.value is not None]
    found = intake.check([row.checked for row in shaped], intake.judged_at) if shaped else []
    reasons = {item.index: item.reason for item in found}
    counts = Counter(reason for item in found for reason in item.reason.split("; "))
    sample = _sample(shaped, reasons, intake, block.offset)
    for index, row in enumerate(shaped):
        if row.turns is None:
            reasons.setdefault(index, "the turns are malformed")
    refused += [(decoded[index], reason) for index, reason in reasons.items()]
    good = [index for index in range(len(shaped)) if index not in reasons]
    cleaned = clean([shaped[index] for index in good], replacement(config))
    kept: list[tuple[RawRow, CleanRow]] = []
    for index, ready in zip(good, cleaned, strict=True):
        if intake.tombstones.cover(ready.record_id, ready.content_digest):
            refused.append((decoded[index], ERASED))
        elif ready.dropped:
            refused.append((decoded[index], "it holds sensitive data"))
        elif ready.response and ready.messages[-1].content and ready.record_id:
            kept.append((decoded[index], ready))
        else:
            refused.append((decoded[index], "nothing is left after cleaning"))
    return PreparedBlock(
        rows_in=len(raw),
        size_bytes=block.size_bytes,
        position=block.position,
        records=_records(kept, intake),
        refused=_refusals(refused, intake),
        sketches=sketch([_index_row(row) for _, row in kept], config.duplicates),
        reasons=counts,
        sample=sample,
    )


def _sample(
    shaped: Sequence[ShapedRow], reasons: Mapping[int, str], intake: Intake, offset: int
) -> tuple[dict[str, Any], ...]:
    if intake.describe is None or not shaped:
        return ()
    draw = random.Random(f"{intake.file_digest}:{offset}")
    chosen = draw.sample(range(len(shaped)), min(SAMPLED_ROWS_PER_BLOCK, len(shaped)))
    columns = intake.describe([shaped[index].checked for index in chosen], intake.judged_at)
    return tuple(
        {
            **{name: column[place] for name, column in columns.items()},
            "reason": reasons.get(row, ""),
        }
        for place, row in enumerate(chosen)
    )


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


def after_rows(rows: pa.RecordBatch, count: int) -> pa.RecordBatch:
    """Return a block's rows with their numbers counted on after `count` rows of earlier blocks."""
    place = rows.schema.get_field_index("row")
    return rows.set_column(place, "row", pc.add(rows.column(place), count))


def tokens_of(rows: pa.RecordBatch) -> int:
    """Return how many tokens rows with PLACED_SCHEMA have; 0 where none were counted."""
    return int(pc.sum(rows.column("tokens")).as_py() or 0)


def stored_tokenizer(config: IngestConfig) -> str:
    """Return the digest of the tokenizer whose ids are stored; "" where none are."""
    return tokenizer_digest(config.tokenizer) if config.stores_tokens else ""


def _records(kept: list[tuple[RawRow, CleanRow]], intake: Intake) -> pa.RecordBatch:
    encode = msgspec.json.encode
    share = intake.config.held_out_share
    ids = _token_ids([row for _, row in kept], intake.config.tokenizer)
    columns: dict[str, Any] = {
        "record_id": [row.record_id for _, row in kept],
        "day": pa.repeat(intake.day, len(kept)),
        "created_at": [row.created_at for _, row in kept],
        "slice_name": [row.slice_name for _, row in kept],
        "messages": [encode(row.messages).decode() for _, row in kept],
        "prompt": [row.messages[-1].content for _, row in kept],
        "response": [row.response for _, row in kept],
        "language": [row.language for _, row in kept],
        "content_digest": [row.content_digest for _, row in kept],
        "held_out": [held_out(row.record_id, share) for _, row in kept],
        "source": pa.repeat(intake.source, len(kept)),
        "row": [raw.row for raw, _ in kept],
        "file_digest": pa.repeat(intake.file_digest, len(kept)),
        "offset": [raw.offset for raw, _ in kept],
        "length": [raw.length for raw, _ in kept],
        "tokens": [len(row) for row in ids],
        "token_ids": ids if intake.config.stores_tokens else pa.nulls(len(kept), TOKEN_IDS.type),
    }
    return pa.RecordBatch.from_pydict(columns, schema=PLACED_SCHEMA)


def _token_ids(rows: Sequence[CleanRow], tokenizer: str) -> Sequence[Sequence[int]]:
    if not tokenizer:
        return [()] * len(rows)
    texts = ["\n".join([*(turn.content for turn in row.messages), row.response]) for row in rows]
    return token_ids(texts, tokenizer)


def _index_row(row: CleanRow) -> IndexRow:
    return index_row(row.messages, row.response, row.content_digest)


def _refusals(refused: list[tuple[RawRow, str]], intake: Intake) -> pa.RecordBatch:
    # Scrubbed whole and cut afterwards: a cut e-mail address would no longer be recognised.
    silent = [reason == ERASED or _is_erased(raw, intake) for raw, reason in refused]
    texts = plain_texts(
        ["" if erased else _text(raw) for (raw, _), erased in zip(refused, silent, strict=True)],
        intake.config,
    )
    return quarantine_rows(
        intake,
        rows=[raw.row for raw, _ in refused],
        offsets=[raw.offset for raw, _ in refused],
        lengths=[raw.length for raw, _ in refused],
        reasons=[reason for _, reason in refused],
        texts=texts,
        digests=[raw.digest for raw, _ in refused],
    )


def quarantine_rows(
    intake: Intake,
    *,
    rows: Any,
    offsets: Any,
    lengths: Any,
    reasons: Sequence[str],
    texts: Sequence[str],
    digests: Sequence[str],
) -> pa.RecordBatch:
    """Return rows of the quarantine table; `texts` are scrubbed already."""
    now = datetime.fromtimestamp(intake.judged_at, UTC).isoformat(timespec="seconds")
    count = len(reasons)
    columns = {
        "day": pa.repeat(intake.day, count),
        "source": pa.repeat(intake.source, count),
        "row": rows,
        "offset": offsets,
        "length": lengths,
        "reason": reasons,
        "text": [text[:QUARANTINE_TEXT_MAX] for text in texts],
        "digest": digests,
        "file_digest": pa.repeat(intake.file_digest, count),
        "quarantined_at": pa.repeat(now, count),
    }
    return pa.RecordBatch.from_pydict(columns, schema=QUARANTINE_SCHEMA)


def taken_rows(rows: pa.RecordBatch, intake: Intake) -> pa.RecordBatch:
    """Return the quarantine's rows for records whose id another content has; texts are scrubbed."""
    told = rows.select(["record_id", "messages", "response"]).to_pylist()
    return quarantine_rows(
        intake,
        rows=rows.column("row"),
        offsets=rows.column("offset"),
        lengths=rows.column("length"),
        reasons=[TAKEN_ID] * rows.num_rows,
        texts=plain_texts([msgspec.json.encode(row).decode() for row in told], intake.config),
        digests=[""] * rows.num_rows,
    )


def _is_erased(raw: RawRow, intake: Intake) -> bool:
    """Whether a refused row names an erased record: then its text is not kept."""
    if not isinstance(raw.value, dict):
        return False
    record_id = raw.value.get(intake.config.mapping.id or "id")
    return record_id is not None and intake.tombstones.cover(str(record_id))


def _text(raw: RawRow) -> str:
    if raw.value is None:
        return raw.text
    return msgspec.json.encode(raw.value, enc_hook=str).decode()
