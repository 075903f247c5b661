"""One reader per file format: bytes in, blocks of rows out, each row with its position.

A row that cannot be decoded is a row with a reason; only a missing file is an error.
"""

import csv
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from lake.config import IngestConfig
from lake.streams import COMPRESSIONS, LineBlock, digest_of, line_blocks, pieces, single_lines

DATA_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".parquet")
SURROGATES = range(0xDC80, 0xDD00)
"""Where Python's `surrogateescape` puts the bytes that are not UTF-8."""
WIDE_NULS_SHARE_MIN = 1 / 8
"""With more NULs among its bytes a row is UTF-16 or UTF-32, even where it decodes as UTF-8."""
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
NOT_UTF_8 = "the row is not UTF-8"


class RawRow(msgspec.Struct):
    """One row as it stands in the file.

    `row` counts from 1 in its block; `offset` and `length` are bytes of the decompressed file (for
    Parquet the row's number in the file and 0); `value` is None where `reason` says why; `text` is
    empty for undecodable bytes, of which only `digest` may be kept.
    """

    offset: int
    length: int
    value: dict[str, Any] | None
    reason: str = ""
    text: str = ""
    digest: str = ""
    row: int = 0


class RawBlock(msgspec.Struct, frozen=True):
    """Consecutive rows of one file: lines still to be decoded, or rows that already are.

    Bounded by the configuration's `batch_bytes_max` and `batch_rows`, and the same on every pass
    over the same bytes. `position` is where the reader stood in the (compressed) file.
    """

    size_bytes: int
    lines: LineBlock | None = None
    rows: tuple[RawRow, ...] = ()
    position: int = 0

    @property
    def offset(self) -> int:
        """Where in the decompressed file the block begins (for Parquet its first row)."""
        return self.lines.offset if self.lines is not None else self.rows[0].offset

    def decoded(self, row_bytes_max: int) -> list[RawRow]:
        """Return the rows, numbered from 1."""
        rows = list(self.rows if self.lines is None else _json_rows(self.lines, row_bytes_max))
        for number, row in enumerate(rows, 1):
            row.row = number
        return rows


def data_suffix(name: str) -> str:
    """Return the ending that says how to read a file (`.csv.gz`), or "" for no data file."""
    lower = name.lower()
    plain = lower
    for ending in COMPRESSIONS:
        plain = plain.removesuffix(ending)
    for suffix in DATA_SUFFIXES:
        if plain.endswith(suffix) and (plain == lower or suffix != ".parquet"):
            return name[len(plain) - len(suffix) :]
    return ""


def read_blocks(
    file: IO[bytes], name: str, config: IngestConfig, groups: range | None = None
) -> Iterator[RawBlock]:
    """Yield every row of an open data file, told by the file's name how to read it.

    `groups` are the row groups to be read of a Parquet file; None: all.
    """
    suffix = data_suffix(name).lower()
    if suffix == ".parquet":
        return _grouped(_parquet_rows(file, config, groups), config)
    blocks = line_blocks(
        pieces(file, name), config.batch_bytes_max, config.batch_rows, config.row_bytes_max
    )
    if suffix.startswith(".csv"):
        lines = (line for block in blocks for line in single_lines(block, config.row_bytes_max))
        return _grouped(_csv_rows(lines, config.row_bytes_max), config)
    return (RawBlock(block.length, block) for block in blocks)


def _grouped(rows: Iterator[tuple[RawRow, int]], config: IngestConfig) -> Iterator[RawBlock]:
    """Group rows, each with its size in bytes, into blocks."""
    held: list[RawRow] = []
    held_bytes = 0
    for row, size in rows:
        held.append(row)
        held_bytes += size
        if len(held) >= config.batch_rows or held_bytes >= config.batch_bytes_max:
            yield RawBlock(held_bytes, rows=tuple(held))
            held, held_bytes = [], 0
    if held:
        yield RawBlock(held_bytes, rows=tuple(held))


def _json_rows(block: LineBlock, row_bytes_max: int) -> Iterator[RawRow]:
    decode = msgspec.json.Decoder().decode
    for line in single_lines(block, row_bytes_max):
        data = line.data
        if line.offset == 0:
            data = data.removeprefix(BYTE_ORDER_MARK)
        if line.reason:
            yield RawRow(line.offset, line.length, None, line.reason, digest=line.digest)
        elif not data.isspace() and data:
            try:
                value = decode(data)
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
                yield _undecoded(line, data, _why(error))
                continue
            if isinstance(value, dict):
                yield RawRow(line.offset, line.length, value)
            else:
                yield _undecoded(line, data, "the row is not a JSON object")


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the row is nested too deeply"
    return f"the row is not JSON: {error}"


def _undecoded(line: LineBlock, data: bytes, reason: str) -> RawRow:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text, reason = "", NOT_UTF_8
    if _is_wide(text):
        text, reason = "", NOT_UTF_8
    return RawRow(line.offset, line.length, None, reason, text, digest_of(data))


def _is_wide(text: str) -> bool:
    return text.count("\0") > WIDE_NULS_SHARE_MIN * len(text)


class _OversizedError(Exception):
    """A line that csv must not see; carries it out through csv's reader."""

    def __init__(self, line: LineBlock) -> None:
        super().__init__(line.reason)
        self.line = line


class _CsvLines:
    """Feeds decoded lines to csv's reader and remembers which bytes the current row spans."""

    def __init__(self, lines: Iterator[LineBlock], first: str) -> None:
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
        if line.reason:
            raise _OversizedError(line)
        return line.data.decode(errors="surrogateescape")


def _csv_rows(lines: Iterator[LineBlock], length_max: int) -> Iterator[tuple[RawRow, int]]:
    first = next(lines, None)
    if first is None:
        return
    head = first.data.removeprefix(BYTE_ORDER_MARK).decode(errors="surrogateescape")
    if first.reason or not head.strip():
        reason = first.reason or "the file has no header line"
        yield RawRow(0, first.length, None, reason, digest=first.digest), first.length
        return
    csv.field_size_limit(max(length_max, csv.field_size_limit()))
    feed = _CsvLines(lines, head)
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(feed, delimiter=delimiter)
    header = [name.strip() for name in next(reader)]
    while True:
        feed.start = -1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except _OversizedError as error:
            line = error.line
            yield RawRow(line.offset, line.length, None, line.reason, digest=line.digest), 0
            continue
        except csv.Error as error:
            length = feed.end - feed.start
            yield RawRow(feed.start, length, None, f"the row is not CSV: {error}"), length
            continue
        if cells:
            yield _csv_row(feed, header, cells, delimiter), feed.end - feed.start


def _csv_row(feed: _CsvLines, header: list[str], cells: list[str], delimiter: str) -> RawRow:
    length = feed.end - feed.start
    text = delimiter.join(cells)
    undecoded = not text.isascii() and any(ord(character) in SURROGATES for character in text)
    if undecoded or _is_wide(text):
        digest = digest_of(text.encode(errors="surrogateescape"))
        return RawRow(feed.start, length, None, NOT_UTF_8, digest=digest)
    if len(cells) != len(header):
        reason = f"the row has {len(cells)} columns, the header {len(header)}"
        return RawRow(feed.start, length, None, reason, text, digest_of(text.encode()))
    return RawRow(feed.start, length, dict(zip(header, cells, strict=True)))


def parquet_groups(file: IO[bytes]) -> int:
    """Return how many row groups a Parquet file has; 0 for a broken one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.ParquetFile(file).metadata.num_row_groups)
    except (pa.ArrowException, OSError) as error:
        if getattr(error, "errno", None) is not None:
            raise
        return 0


def _parquet_rows(
    file: IO[bytes], config: IngestConfig, groups: range | None
) -> Iterator[tuple[RawRow, int]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        parquet = pq.ParquetFile(file)
        metadata = parquet.metadata
        rows_max = _rows_within(metadata, config)
        chosen = range(metadata.num_row_groups) if groups is None else groups
        number = sum(metadata.row_group(index).num_rows for index in range(chosen.start))
        for batch in parquet.iter_batches(batch_size=rows_max, row_groups=[*chosen]):
            size = batch.nbytes // max(1, batch.num_rows)
            for value in batch.to_pylist():
                yield RawRow(number, 0, value), size
                number += 1
    except (pa.ArrowException, OSError) as error:
        # Arrow reports damaged bytes as an OSError without errno; one with errno is the disk or
        # network failing, and must not pass for a short file.
        if getattr(error, "errno", None) is not None:
            raise
        first_line = str(error).splitlines()[0]
        yield RawRow(number, 0, None, f"the Parquet file is broken: {first_line}"), 0


def _rows_within(metadata: Any, config: IngestConfig) -> int:
    """Return how many rows of a Parquet file fit into one block, by its groups' fullest."""
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=1)
    return int(max(1, min(config.batch_rows, config.batch_bytes_max // max(1, widest))))
