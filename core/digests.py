"""Digests of bytes, JSON values, files and folders: the identity of all that is immutable."""

import hashlib
import json
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
DIGEST_HEX_LENGTH = 64
MODEL_FILE_PATTERNS = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model")


def digest_bytes(data: bytes) -> str:
    """Return the SHA-256 of `data` as 64 hexadecimal characters."""
    return hashlib.sha256(data).hexdigest()


def canonical_json(value: Any) -> bytes:
    """Return the one byte string that stands for a JSON value: sorted keys, no spaces, no NaN.

    Raises ValueError for NaN or infinity: a digest must not depend on how they are spelt.
    """
    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode()


def digest_json(value: Any) -> str:
    """Return the SHA-256 of the canonical JSON of `value`."""
    return digest_bytes(canonical_json(value))


def digest_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, read in bounded chunks."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            state.update(chunk)
    return state.hexdigest()


def digest_files(folder: Path) -> dict[str, str]:
    """Return {relative posix path: SHA-256} of every regular file below `folder`, sorted."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): digest_file(path) for path in paths}


def digest_folder(folder: Path) -> str:
    """Return one digest of a folder's file names and contents (times and modes do not count)."""
    return digest_json(digest_files(folder))


def model_digest(folder: Path) -> str:
    """Return one digest of a folder's model and tokenizer files; other files do not count."""
    paths = {path for pattern in MODEL_FILE_PATTERNS for path in folder.glob(pattern)}
    return digest_json({path.name: digest_file(path) for path in paths if path.is_file()})


def chain_digest(previous: str, text: str) -> str:
    """Return the digest of one more text after those that gave `previous` ("" before any)."""
    return digest_bytes(f"{previous}\n{text}".encode())
