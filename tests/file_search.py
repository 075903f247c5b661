"""Searches every byte below a folder for texts, in any form in which a program may keep them.

Files are opened as far as they can be: gzip, zstd, zip, Parquet columns, SQLite rows, and what
lies within each of these again.
"""

import base64
import html
import io
import json
import sqlite3
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import ahocorasick_rs
import pyarrow.parquet as pq
import zstandard

GZIP, ZSTD, ZIP, PARQUET, SQLITE = (
    b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PAR1", b"SQLite format 3\0",
)  # fmt: skip
DEPTH_MAX = 3
URL_SAFE = bytes.maketrans(b"+/", b"-_")
ENCODED_BYTES_MIN = 6
"""Shorter values in base64 or hexadecimal would be found in random bytes."""


class Leak(NamedTuple):
    """A file below the folder, where inside it, the text found there, and in which form."""

    path: str
    inside: str
    text: str
    form: str


def leaks(folder: Path, texts: Sequence[str]) -> list[Leak]:
    """Return each file that holds one of the texts, with the form in which it was found."""
    search = _Search(texts)
    return [
        Leak(path.relative_to(folder).as_posix(), inside, text, form)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink()
        for inside, content in contents(path)
        for text, form in search.found_in(content)
    ]


def contents(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield a file's bytes as they lie there, and those of all that is packed in it."""
    raw = path.read_bytes()
    yield "", raw
    if raw.startswith(SQLITE):
        yield from _sqlite_rows(path)
    yield from _unpacked(raw, "", DEPTH_MAX)


def forms(text: str) -> dict[bytes, str]:
    """Return the bytes by which a text may be kept, and the name of each form."""
    plain, escaped = text.encode(), json.dumps(text)[1:-1]
    named = [
        (plain, "UTF-8"),
        (text.encode("utf-16-le"), "UTF-16"),
        (text.encode("utf-16-be"), "UTF-16"),
        (text.encode("gb18030"), "GB 18030"),
        (escaped.encode(), "JSON"),
        (json.dumps(escaped)[1:-1].encode(), "JSON"),
        (html.escape(text).encode(), "HTML"),
        (quote(text).encode(), "URL"),
        (quote(text, safe="").encode(), "URL"),
    ]
    if len(plain) >= ENCODED_BYTES_MIN:
        named += [
            (plain.hex().encode(), "hexadecimal"),
            (plain.hex().upper().encode(), "hexadecimal"),
        ]
        for before in range(3):
            # Only the letters that depend on no byte before or behind the text.
            letters = base64.b64encode(bytes(before) + plain)
            inner = letters[-(-8 * before // 6) : 8 * (before + len(plain)) // 6]
            named += [(inner, "base64"), (inner.translate(URL_SAFE), "base64")]
    found: dict[bytes, str] = {}
    for form, name in named:
        found.setdefault(form, name)
    return found


class _Search:
    """All forms of all texts at once."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._told: list[tuple[str, str]] = []
        patterns: list[bytes] = []
        for text in texts:
            for form, name in forms(text).items():
                patterns.append(form)
                self._told.append((text, name))
        self._automaton = ahocorasick_rs.BytesAhoCorasick(patterns)

    def found_in(self, content: bytes) -> set[tuple[str, str]]:
        """Return the texts in some bytes and their forms; line breaks in base64 do not hide it."""
        unbroken = content.replace(b"\\n", b"").replace(b"\r", b"").replace(b"\n", b"")
        found = {
            self._told[number]
            for part in (content, unbroken)
            for number, *_ in self._automaton.find_matches_as_indexes(part, overlapping=True)
        }
        plain = {text for text, form in found if form == "UTF-8"}
        return {(text, form) for text, form in found if form == "UTF-8" or text not in plain}


def _unpacked(content: bytes, inside: str, depth: int) -> Iterator[tuple[str, bytes]]:
    """Yield what packed bytes hold, and what that holds."""
    parts: list[tuple[str, bytes]] = []
    if content.startswith(GZIP):
        parts = [("gzip", _inflated(content))]
    elif content.startswith(ZSTD):
        with zstandard.ZstdDecompressor().stream_reader(
            io.BytesIO(content), read_across_frames=True
        ) as stream:
            parts = [("zstd", stream.read())]
    elif content.startswith(ZIP):
        with zipfile.ZipFile(io.BytesIO(content)) as packed:
            parts = [(name, packed.read(name)) for name in packed.namelist()]
    elif content.startswith(PARQUET):
        parts = [*_parquet_columns(content)]
    for name, part in parts:
        where = f"{inside}/{name}"
        yield where, part
        if depth:
            yield from _unpacked(part, where, depth - 1)


def _inflated(content: bytes) -> bytes:
    """Return the members of a gzip file; what is cut off at its end is left out."""
    whole = b""
    while content:
        stream = zlib.decompressobj(wbits=31)
        whole += stream.decompress(content)
        content = stream.unused_data if stream.unused_data.startswith(GZIP) else b""
    return whole


def _parquet_columns(content: bytes) -> Iterator[tuple[str, bytes]]:
    table = pq.ParquetFile(io.BytesIO(content)).read()
    for name in table.column_names:
        values = table[name].to_pylist()
        yield name, b"\n".join(_bytes_of(value) for value in values)


def _sqlite_rows(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield each table's rows: a long value may lie in pieces over the file's pages."""
    base = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=30)
    try:
        base.text_factory = bytes
        names = base.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in names:
            table = name.decode()
            for row in base.execute(f'SELECT * FROM "{table}"'):
                content = b"\n".join(map(_bytes_of, row))
                yield table, content
                for value in row:
                    if isinstance(value, bytes):
                        yield from _unpacked(value, table, DEPTH_MAX)
    finally:
        base.close()


def _bytes_of(value: object) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
