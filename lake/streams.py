"""The bytes of a day file: decompressed piece by piece, cut into blocks of whole lines.

Knows lines and lengths, not what stands in them. The cuts follow from the bytes and the two limits
alone, so a second pass over the same file makes the same blocks.
"""

import hashlib
import zlib
from collections.abc import Iterator
from typing import IO, Any

import msgspec

CHUNK_BYTES = 1 << 18
COMPRESSED_CHUNK_BYTES = 1 << 12
"""Little, so that a bomb unfolds to some megabytes at a time."""
DIGEST_LENGTH = 32
ZSTD_WINDOW_BYTES_MAX = 1 << 27
COMPRESSIONS = (".gz", ".zst")
ENDED = "Compressed file ended before the end-of-stream marker was reached"


class LineBlock(msgspec.Struct, frozen=True, gc=False):
    """Consecutive whole lines (or one), from byte `offset` of the decompressed file on.

    With a `reason` the block is one row that nobody should decode: too long (`length` and `digest`
    tell of it, `data` is empty), or the place where the stream breaks off.
    """

    offset: int
    length: int
    data: bytes
    reason: str = ""
    digest: str = ""


class BrokenStreamError(Exception):
    """The compressed file cannot be read beyond this point."""


def digest_of(data: bytes) -> str:
    """Return the digest by which bytes are known that nobody may keep."""
    return hashlib.sha256(data).hexdigest()[:DIGEST_LENGTH]


def pieces(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Yield a file's decompressed bytes in bounded pieces, told by the name's ending.

    Raises BrokenStreamError, after everything that could be decompressed, for damaged or cut files.
    """
    lower = name.lower()
    if not lower.endswith(COMPRESSIONS):
        while data := file.read(CHUNK_BYTES):
            yield data
        return
    state = None
    while data := file.read(COMPRESSED_CHUNK_BYTES):
        while data:
            if state is None:
                state = _decompressor(lower)
            try:
                plain = state.decompress(data)
            except (zlib.error, _zstd_error()) as error:
                raise BrokenStreamError(str(error)) from error
            if plain:
                yield plain
            data = state.unused_data if state.eof else b""
            if state.eof:
                state = None
                # Zeros after the last member are padding (tape blocks, aligned disks).
                data = data.lstrip(b"\0")
    if state is not None:
        raise BrokenStreamError(ENDED)


def line_blocks(
    stream: Iterator[bytes], block_bytes: int, block_rows: int, row_bytes_max: int
) -> Iterator[LineBlock]:
    """Cut a stream of bytes into blocks of whole lines of at most `block_bytes` and `block_rows`.

    A longer line is a block of its own, and beyond `row_bytes_max` one that was never held.
    """
    buffer = _Buffer(stream)
    offset = 0
    while buffer.fill(block_bytes):
        end = buffer.data.rfind(b"\n", 0, block_bytes) + 1
        if buffer.ended and len(buffer.data) <= block_bytes:
            end = len(buffer.data)
        if not end:
            buffer.fill(row_bytes_max + 1)
            end = buffer.data.find(b"\n") + 1
            if not end and buffer.ended:
                end = len(buffer.data)
        if not end or end > max(block_bytes, row_bytes_max + 1):
            block = _oversized(buffer, offset, row_bytes_max)
        else:
            end = _cut(buffer.data, end, block_rows)
            block = LineBlock(offset, end, buffer.take(end))
        offset += block.length
        yield block
    if buffer.broken:
        yield LineBlock(offset, 0, b"", f"the compressed file is broken here: {buffer.broken}")


def single_lines(block: LineBlock, row_bytes_max: int) -> Iterator[LineBlock]:
    """Yield each line of a block, with its line end; a long one with the reason instead."""
    if block.reason:
        yield block
        return
    offset = block.offset
    ends = block.data.split(b"\n")
    for index, line in enumerate(ends):
        data = line + b"\n" if index < len(ends) - 1 else line
        if len(line) > row_bytes_max:
            yield LineBlock(offset, len(data), b"", too_long(row_bytes_max), digest_of(data))
        elif data:
            yield LineBlock(offset, len(data), data)
        offset += len(data)


def too_long(row_bytes_max: int) -> str:
    """Return the reason for which a long row is refused."""
    return f"the row is longer than {row_bytes_max} bytes"


class _Buffer:
    """Bytes read ahead of a stream; `broken` says why it ended before its end."""

    def __init__(self, stream: Iterator[bytes]) -> None:
        self.data = b""
        self.ended = False
        self.broken = ""
        self._stream = stream

    def fill(self, count: int) -> bool:
        """Hold at least `count` bytes, or all that is left; return whether there are any."""
        parts, size = [self.data], len(self.data)
        try:
            while size < count and not self.ended:
                piece = next(self._stream, b"")
                parts.append(piece)
                size += len(piece)
                self.ended = not piece
        except BrokenStreamError as error:
            self.ended, self.broken = True, str(error)
        if len(parts) > 1:
            self.data = b"".join(parts)
        return bool(self.data)

    def take(self, count: int) -> bytes:
        """Return the first `count` bytes and let them go."""
        taken, self.data = self.data[:count], self.data[count:]
        return taken


def _oversized(buffer: _Buffer, offset: int, row_bytes_max: int) -> LineBlock:
    state, length, end = hashlib.sha256(), 0, 0
    while not end and buffer.fill(1):
        end = buffer.data.find(b"\n") + 1
        part = buffer.take(end or len(buffer.data))
        state.update(part)
        length += len(part)
    digest = state.hexdigest()[:DIGEST_LENGTH]
    return LineBlock(offset, length, b"", too_long(row_bytes_max), digest)


def _cut(data: bytes, end: int, rows_max: int) -> int:
    """Return where the first `rows_max` lines of data[:end] end."""
    if data.count(b"\n", 0, end) <= rows_max:
        return end
    place = 0
    for _ in range(rows_max):
        place = data.find(b"\n", place) + 1
    return place


def _decompressor(name: str) -> Any:
    if name.endswith(".gz"):
        return zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    import zstandard

    return zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX).decompressobj()


def _zstd_error() -> type[Exception]:
    import zstandard

    return zstandard.ZstdError
