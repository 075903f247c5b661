"""A day file cut into parts that can be prepared, matched and written anywhere, in any order.

Each step takes and gives small values; rows and sketches lie in a scratch folder that every worker
sees. In which order parts are done, and where, does not change what they come to.
"""

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
from msgspec.structs import replace

from core.clusters import band_pairs
from core.sketches import BANDS, SIGNATURE_BYTES, Array, similarity
from lake.commits import PartFiles, WrittenFile
from lake.config import IngestConfig
from lake.known import prefixes_of_texts
from lake.preparation import (
    PLACED_SCHEMA,
    Intake,
    after_rows,
    prepare_block,
    taken_rows,
    tokens_of,
)
from lake.readers import RawBlock, data_suffix, parquet_groups, read_blocks
from lake.schema import QUARANTINE, QUARANTINE_SCHEMA, RECORDS, written_schema
from lake.sketches import Sketches
from lake.sources import DayFile, locate
from lake.streams import CHUNK_BYTES, line_blocks

COLUMNS: Mapping[str, tuple[str, int]] = {
    "keys": ("<u8", 1),
    "checks": ("<u4", 1),
    "ids": ("<u8", 1),
    "places": ("<i8", 1),
    "bands": ("<u8", BANDS),
    "signatures": ("|u1", SIGNATURE_BYTES),
}
PAIRS_CHUNK = 1 << 15
SAMPLED_ROWS_MAX = 500
"""Rows of a part that may be shown to the contract's report."""
IS_NEW, IS_EXACT, IS_NEAR, IS_TAKEN = range(4)


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of a file: bytes of JSON lines, row groups of Parquet, or (last < 0) all of it."""

    number: int
    first: int = 0
    last: int = -1


@dataclass(frozen=True, slots=True)
class PreparedPart:
    """What a part comes to before deduplication: rows_in = records + refused."""

    number: int
    rows_in: int
    records: int
    refused: int
    size_bytes: int
    reasons: Mapping[str, int]
    sample: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Preparation:
    """The order to prepare one part into the scratch folder."""

    part: Part
    day_file: DayFile
    intake: Intake
    folder: Path
    fields_required: bool


@dataclass(frozen=True, slots=True)
class Matching:
    """The order to match one bucket of keys over all parts."""

    bucket: int
    buckets: int
    records: tuple[int, ...]
    folder: Path
    similarity_min: float


@dataclass(frozen=True, slots=True)
class Matches:
    """Rows of the file (counted over all records): `repeats` of `heads`, and near pairs [n, 2]."""

    repeats: Array
    heads: Array
    pairs: Array


@dataclass(frozen=True, slots=True)
class Writing:
    """The order to write one part's rows by their verdicts; `rows_before` are those of the file."""

    prepared: PreparedPart
    intake: Intake
    batch: str
    folder: Path
    addresses: Mapping[str, str]
    options: Mapping[str, str] | None
    verdicts: Array
    rows_before: int


@dataclass(frozen=True, slots=True)
class WrittenPart:
    """The files of one part in both tables, how many rows they hold, and the records' tokens."""

    files: Mapping[str, tuple[WrittenFile, ...]]
    records: int
    refused: int
    tokens: int


def plan_parts(day_file: DayFile, count: int) -> list[Part]:
    """Cut a file into at most `count` parts: JSON lines by bytes, Parquet by row groups.

    CSV (a row may span lines) and compressed files are one part.
    """
    suffix = data_suffix(day_file.name).lower()
    system, path = locate(day_file.url)
    with system.open(path, "rb") as file:
        if suffix in (".jsonl", ".ndjson"):
            edges = _line_edges(file, day_file.size_bytes, count)
        elif suffix == ".parquet":
            groups = parquet_groups(file)
            edges = sorted({groups * number // count for number in range(count + 1)})
        else:
            edges = []
    if len(edges) < 2:
        return [Part(0)]
    spans = zip(edges, edges[1:], strict=False)
    return [Part(number, first, last) for number, (first, last) in enumerate(spans)]


def prepare_part(order: Preparation) -> PreparedPart:
    """Decode, check, clean and sketch one part; holds one block."""
    part, intake = order.part, order.intake
    rows_in = records = refused = size = 0
    reasons: Counter[str] = Counter()
    sample: list[Mapping[str, Any]] = []
    required = order.fields_required
    columns = {name: _path(order.folder, part.number, name).open("wb") for name in COLUMNS}
    spools = _path(order.folder, part.number, RECORDS), _path(order.folder, part.number, QUARANTINE)
    with (
        pa.ipc.new_stream(spools[0], PLACED_SCHEMA) as kept,
        pa.ipc.new_stream(spools[1], QUARANTINE_SCHEMA) as bad,
    ):
        for block in part_blocks(order.day_file, part, intake.config):
            done = prepare_block(block, intake, required)
            required = False
            kept.write_batch(after_rows(done.records, rows_in))
            bad.write_batch(after_rows(done.refused, rows_in))
            ids = prefixes_of_texts(done.records.column("record_id").to_pylist())
            _append(columns, done.sketches, ids, records)
            rows_in += done.rows_in
            records += done.records.num_rows
            refused += done.refused.num_rows
            size += done.size_bytes
            reasons.update(done.reasons)
            sample += done.sample
            if len(sample) > SAMPLED_ROWS_MAX:
                sample = random.Random(f"{intake.file_digest} {part.number} {rows_in}").sample(
                    sample, SAMPLED_ROWS_MAX // 2
                )
    for file in columns.values():
        file.close()
    return PreparedPart(part.number, rows_in, records, refused, size, dict(reasons), tuple(sample))


def part_blocks(day_file: DayFile, part: Part, config: IngestConfig) -> Iterator[RawBlock]:
    """Yield the raw blocks of one part."""
    system, path = locate(day_file.url)
    with system.open(path, "rb") as file:
        if part.last < 0 or data_suffix(day_file.name).lower() == ".parquet":
            groups = None if part.last < 0 else range(part.first, part.last)
            yield from read_blocks(file, day_file.name, config, groups)
            return
        file.seek(part.first)
        stream = _stretch(file, part.last - part.first)
        for block in line_blocks(
            stream, config.batch_bytes_max, config.batch_rows, config.row_bytes_max
        ):
            yield RawBlock(block.length, replace(block, offset=block.offset + part.first))


def match_bucket(order: Matching) -> Matches:
    """Find equal rows by digest and near ones by band key, among the keys of one bucket."""
    starts = np.cumsum([0, *order.records])
    keys, checks, rows, band_keys, band_rows = [], [], [], [], []
    for number, start in enumerate(starts[:-1]):
        part = open_columns(order.folder, number)
        mine = np.flatnonzero(part["keys"] % order.buckets == order.bucket)
        keys.append(part["keys"][mine])
        checks.append(part["checks"][mine])
        rows.append(mine + start)
        flat = part["bands"].reshape(-1)
        mine = np.flatnonzero(flat % order.buckets == order.bucket)
        band_keys.append(flat[mine])
        band_rows.append(part["places"][mine // BANDS] + start)
    repeats, heads = _repeats(*(np.concatenate(part) for part in (keys, checks, rows)))
    pairs = band_pairs(np.concatenate(band_keys), np.concatenate(band_rows))
    signatures = _Signatures(order.folder, starts)
    near = []
    for begin in range(0, len(pairs), PAIRS_CHUNK):
        part_pairs = pairs[begin : begin + PAIRS_CHUNK]
        alike = similarity(signatures.of(part_pairs[:, 0]), signatures.of(part_pairs[:, 1]))
        near.append(part_pairs[alike >= order.similarity_min])
    return Matches(repeats, heads, np.concatenate(near) if near else pairs)


def write_part(order: Writing) -> WrittenPart:
    """Write one part's new rows and refused rows as data files of the tables; nothing is seen yet.

    File names follow from batch and part: a second attempt overwrites what the first one left.
    """
    prepared, intake = order.prepared, order.intake
    files = {
        name: PartFiles(
            order.addresses[name],
            written_schema(name, intake.config.stores_tokens),
            intake.day,
            f"{order.batch}.p{prepared.number}",
            order.options,
        )
        for name in (RECORDS, QUARANTINE)
    }
    place = tokens = 0
    for batch in _spooled(order.folder, prepared.number, RECORDS):
        verdicts = order.verdicts[place : place + batch.num_rows]
        place += batch.num_rows
        numbered = after_rows(batch, order.rows_before)
        new = numbered.filter(pa.array(verdicts == IS_NEW))
        files[RECORDS].write(new)
        tokens += tokens_of(new)
        taken = numbered.filter(pa.array(verdicts == IS_TAKEN))
        files[QUARANTINE].write(taken_rows(taken, intake))
    for batch in _spooled(order.folder, prepared.number, QUARANTINE):
        files[QUARANTINE].write(after_rows(batch, order.rows_before))
    written = {name: found.finish() for name, found in files.items()}
    return WrittenPart(written, files[RECORDS].rows, files[QUARANTINE].rows, tokens)


def open_columns(folder: Path, number: int) -> dict[str, Array]:
    """Map the sketch columns of one part."""
    columns: dict[str, Array] = {}
    for name, (dtype, width) in COLUMNS.items():
        path = _path(folder, number, name)
        shape = (-1,) if width == 1 else (-1, width)
        if path.stat().st_size:
            columns[name] = np.memmap(path, dtype=dtype, mode="r").reshape(shape)
        else:
            columns[name] = np.empty((0, *shape[1:]), dtype=dtype)
    return columns


def chosen_sketches(columns: Mapping[str, Array], chosen: Array) -> Sketches:
    """Return the sketches of the chosen rows (a mask) of one part."""
    inside = chosen[columns["places"]]
    renumbered = np.cumsum(chosen) - 1
    return Sketches(
        keys=columns["keys"][chosen],
        checks=columns["checks"][chosen],
        places=renumbered[columns["places"][inside]],
        bands=columns["bands"][inside],
        signatures=columns["signatures"][inside],
    )


class _Signatures:
    """Signatures of rows of the whole file, from the parts that hold them."""

    def __init__(self, folder: Path, starts: Array) -> None:
        self._starts = starts
        self._parts = [open_columns(folder, number) for number in range(len(starts) - 1)]

    def of(self, rows: Array) -> Array:
        """Return the signatures [n, SIGNATURE_BYTES] of long rows."""
        found = np.empty((len(rows), SIGNATURE_BYTES), dtype=np.uint8)
        numbers = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(numbers):
            mine = numbers == number
            part = self._parts[number]
            at = np.searchsorted(part["places"], rows[mine] - self._starts[number])
            found[mine] = part["signatures"][at]
        return found


def _repeats(keys: Array, checks: Array, rows: Array) -> tuple[Array, Array]:
    """Return the rows whose digest an earlier row has, and those first rows."""
    order = np.lexsort((rows, checks, keys))
    keys, checks, rows = keys[order], checks[order], rows[order]
    again = np.zeros(len(rows), dtype=bool)
    again[1:] = (keys[1:] == keys[:-1]) & (checks[1:] == checks[:-1])
    heads = np.flatnonzero(~again)[np.cumsum(~again) - 1]
    return rows[again], rows[heads[again]]


def _line_edges(file: IO[bytes], size: int, count: int) -> list[int]:
    """Return where parts of about one size begin and end: after line ends."""
    edges = {0, size}
    for number in range(1, count):
        file.seek(size * number // count)
        file.readline()
        edges.add(min(file.tell(), size))
    return sorted(edges)


def _stretch(file: IO[bytes], length: int) -> Iterator[bytes]:
    while length > 0 and (data := file.read(min(CHUNK_BYTES, length))):
        length -= len(data)
        yield data


def _append(columns: Mapping[str, IO[bytes]], sketches: Sketches, ids: Array, before: int) -> None:
    values = {
        "keys": sketches.keys,
        "checks": sketches.checks,
        "ids": ids,
        "places": sketches.places + before,
        "bands": sketches.bands,
        "signatures": sketches.signatures,
    }
    for name, file in columns.items():
        dtype, _ = COLUMNS[name]
        file.write(np.ascontiguousarray(values[name], dtype=dtype).tobytes())


def _spooled(folder: Path, number: int, name: str) -> Iterator[pa.RecordBatch]:
    with pa.ipc.open_stream(_path(folder, number, name)) as stream:
        yield from stream


def _path(folder: Path, number: int, name: str) -> Path:
    return folder / f"{number:05d}.{name}"
