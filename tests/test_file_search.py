"""A text is found whatever holds it: else a search that finds nothing proves nothing."""

import base64
import gzip
import json
import sqlite3
import zipfile
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from tests.file_search import leaks

TEXTS = ["jo.doe@example.com", "粤B·12345", "s3cr3t/\"x\"+y='z'"]


def parquet(path: Path, text: str) -> None:
    pq.write_table(pa.table({"a": ["x"] * 9, "b": [f"in {text}"] * 9}), path, compression="zstd")


def sqlite(path: Path, text: str) -> None:
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE t (a TEXT, b BLOB)")
    long = "x" * 6000
    for place in range(40):
        # Somewhere it falls on the border of two pages.
        base.execute("INSERT INTO t VALUES (?, ?)", (long[: 5000 + 100 * place] + text, b""))
    base.commit()
    base.close()


def packed_row(path: Path, text: str) -> None:
    base = sqlite3.connect(path)
    base.execute("CREATE TABLE t (b BLOB)")
    base.execute("INSERT INTO t VALUES (?)", (gzip.compress(text.encode()),))
    base.commit()
    base.close()


def zipped_parquet(path: Path, text: str) -> None:
    inner = path.with_suffix(".inner")
    parquet(inner, text)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.write(inner, "inner")
    inner.unlink()


def write(form: Callable[[str], bytes]) -> Callable[[Path, str], None]:
    return lambda path, text: (path.write_bytes(form(text)), None)[1]


WRITERS: dict[str, Callable[[Path, str], None]] = {
    "plain": write(lambda text: f"a {text} b".encode()),
    "utf-16": write(lambda text: f"a {text}".encode("utf-16")),
    "json": write(lambda text: json.dumps({"a": text}).encode()),
    "base64": write(lambda text: base64.b64encode(f"12{text}34".encode())),
    "base64 at another place": write(lambda text: base64.urlsafe_b64encode(f"1{text}".encode())),
    "base64 in lines": write(lambda text: base64.encodebytes(f"{'x' * 50}{text}9".encode())),
    "hexadecimal": write(lambda text: text.encode().hex().encode()),
    "gzip": write(lambda text: gzip.compress(b"first") + gzip.compress(text.encode())),
    "zstd": write(lambda text: zstandard.compress(f"{text}\n".encode() * 100)),
    "gzip in zstd": write(lambda text: zstandard.compress(gzip.compress(text.encode()))),
    "parquet": parquet,
    "parquet in zip": zipped_parquet,
    "sqlite": sqlite,
    "gzip in sqlite": packed_row,
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("form", WRITERS)
def test_a_text_is_found_in_every_form(tmp_path: Path, form: str, text: str) -> None:
    (tmp_path / "sub").mkdir()
    WRITERS[form](tmp_path / "sub" / "file", text)
    (tmp_path / "other").write_text("jo.doe at example.com, B12345")
    found = leaks(tmp_path, TEXTS)
    assert {(leak.path, leak.text) for leak in found} == {("sub/file", text)}
    (tmp_path / "sub" / "file").unlink()
    WRITERS[form](tmp_path / "sub" / "file", "nothing of the kind")
    assert leaks(tmp_path, TEXTS) == []
