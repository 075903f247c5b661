"""One reader per file format: bytes in, decoded rows out, each with its position.

A row that cannot be decoded is a row with a reason; only a missing file is an error.
"""

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

import msgspec

from lake.config import IngestConfig

DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
SURROGATES = range(0xDC80, 0xDD00)
"""Where Python's `surrogateescape` puts the bytes that are not UTF-8."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DIGEST_LENGTH = 32
BUFFER_BYTES = 1 << 20
COMPRESSION_ERRORS = (EOFError, zlib.error, gzip.BadGzipFile)


@dataclass(frozen=True, slots=True)
class RawRow:
    """One row as it stands in the file.

    `row` counts from 1; `offset` and `length` are bytes of the decompressed file (for Parquet the
    row's number and 0); `value` is None where `reason` says why; `text` is empty for undecodable
    bytes, of which only `digest` may be kept.
    """

    row: int
    offset: int
    length: int
    value: dict[str, Any] | None
    reason: str = ""
    text: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class RawBatch:
    """Consecutive rows of one file."""

    rows: tuple[RawRow, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a file; `data` is None where it is too long or the stream is broken."""

    offset: int
    length: int
    data: bytes | None
    reason: str = ""
    digest: str = ""


def data_suffix(name: str) -> str:
    """Return the ending that says how to read a file (`.csv.gz`), or "" for no data file."""
    lower = name.lower()
    plain = lower.removesuffix(".gz")
    for suffix in DATA_SUFFIXES:
        if plain.endswith(suffix) and (plain == lower or suffix != ".parquet"):
            return name[len(plain) - len(suffix) :]
    return ""


def read_rows(file: IO[bytes], name: str, config: IngestConfig) -> Iterator[RawRow]:
    """Yield every row of an open data file, told by the file's name how to read it."""
    suffix = data_suffix(name).lower()
    if suffix == ".parquet":
        return _parquet_rows(file, config.batch_rows)
    # Not every fsspec file can read a line of bounded length; io's reader can.
    plain: Any = io.BufferedReader(file, BUFFER_BYTES)
    stream: Any = gzip.GzipFile(fileobj=plain) if suffix.endswith(".gz") else plain
    lines = _lines(stream, config.row_bytes_max)
    if suffix.startswith(".csv"):
        return _csv_rows(lines, config.row_bytes_max)
    return _json_rows(lines)


def digest_of(data: bytes) -> str:
    """Return the digest by which undecodable bytes are known."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]


def _lines(stream: IO[bytes], length_max: int) -> Iterator[Line]:
    offset = 0
    try:
        while data := stream.readline(length_max + 1):
            if len(data) <= length_max or data.endswith(b"\n"):
                yield Line(offset, len(data), data)
                offset += len(data)
                continue
            state = hashlib.sha256(data)
            length = len(data)
            while data and not data.endswith(b"\n"):
                data = stream.readline(length_max)
                state.update(data)
                length += len(data)
            reason = f"the row is longer than {length_max} bytes"
            yield Line(offset, length, None, reason, state.hexdigest()[:DIGEST_LENGTH])
            offset += length
    except COMPRESSION_ERRORS as error:
        yield Line(offset, 0, None, f"the compressed file is broken here: {error}")


def _json_rows(lines: Iterator[Line]) -> Iterator[RawRow]:
    decode = msgspec.json.Decoder().decode
    number = 0
    for line in lines:
        data = line.data
        if data is not None and line.offset == 0:
            data = data.removeprefix(BYTE_ORDER_MARK)
        if data is not None and not data.strip():
            continue
        number += 1
        if data is None:
            yield RawRow(number, line.offset, line.length, None, line.reason, digest=line.digest)
            continue
        try:
            value = decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            yield _undecoded(number, line, data, _why(error))
            continue
        if isinstance(value, dict):
            yield RawRow(number, line.offset, line.length, value)
        else:
            yield _undecoded(number, line, data, "the row is not a JSON object")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the row is nested too deeply"
    return f"the row is not JSON: {error}"


def _undecoded(number: int, line: Line, data: bytes, reason: str) -> RawRow:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text, reason = "", "the row is not UTF-8"
    return RawRow(number, line.offset, line.length, None, reason, text, digest_of(data))


class _OversizedError(Exception):
    """A line that csv must not see; carries it out through csv's reader."""

    def __init__(self, line: Line) -> None:
        super().__init__(line.reason)
        self.line = line


class _CsvLines:
    """Feeds decoded lines to csv's reader and remembers which bytes the current row spans."""

    def __init__(self, lines: Iterator[Line], first: str) -> None:
        self.lines = lines
        self.first: str | None = first
        self.start = self.end = 0

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        if self.first is not None:
            text, self.first = self.first, None
            return text
        line = next(self.lines)
        if self.start < 0:
            self.start = line.offset
        self.end = line.offset + line.length
        if line.data is None:
            raise _OversizedError(line)
        return line.data.decode(errors="surrogateescape")


def _csv_rows(lines: Iterator[Line], length_max: int) -> Iterator[RawRow]:
    first = next(lines, None)
    if first is None:
        return
    head = (first.data or b"").removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")
    if first.data is None or not head.strip():
        reason = first.reason or "the file has no header line"
        yield RawRow(1, 0, first.length, None, reason, digest=first.digest)
        return
    csv.field_size_limit(max(length_max, csv.field_size_limit()))
    feed = _CsvLines(lines, head)
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(feed, delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    number = 0
    while True:
        feed.start = -1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _OversizedError as error:
            number += 1
            line = error.line
            yield RawRow(number, line.offset, line.length, None, line.reason, digest=line.digest)
            continue
        except csv.Error as error:
            number += 1
            length = feed.end - feed.start
            yield RawRow(number, feed.start, length, None, f"the row is not CSV: {error}")
            continue
        if cells:
            number += 1
            yield _csv_row(number, feed, header, cells, delimiter)


def _csv_row(
    number: int, feed: _CsvLines, header: list[str], cells: list[str], delimiter: str
) -> RawRow:
    length = feed.end - feed.start
    text = delimiter.join(cells)
    if any(ord(character) in SURROGATES for character in text):
        digest = digest_of(text.encode(errors="surrogateescape"))
        return RawRow(number, feed.start, length, None, "the row is not UTF-8", digest=digest)
    if len(cells) != len(header):
        reason = f"the row has {len(cells)} columns, the header {len(header)}"
        return RawRow(number, feed.start, length, None, reason, text, digest_of(text.encode()))
    return RawRow(number, feed.start, length, dict(zip(header, cells, strict=True)))


def _parquet_rows(file: IO[bytes], batch_rows: int) -> Iterator[RawRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(file).iter_batches(batch_size=batch_rows):
            for value in batch.to_pylist():
                number += 1
                yield RawRow(number, number - 1, 0, value)
    except (pa.ArrowException, OSError) as error:
        # Arrow reports damaged bytes as an OSError without errno; one with errno is the disk or
        # network failing, and must not pass for a short file.
        if getattr(error, "errno", None) is not None:
            raise
        first_line = str(error).splitlines()[0]
        yield RawRow(number + 1, number, 0, None, f"the Parquet file is broken: {first_line}")
