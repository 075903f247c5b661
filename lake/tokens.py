"""Texts as tokens, by kitoken: the ids of the usual library, faster."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.digests import digest_file
from core.errors import InputError

TOKENIZER_FILE = "tokenizer.json"


def token_ids(texts: Sequence[str], tokenizer: str) -> list[list[int]]:
    """Return the token ids of each text; special tokens in a text count as its letters.

    `tokenizer` is a tokenizer.json or a folder with one. Raises InputError when it cannot be used.
    """
    ids: list[list[int]] = _opened(tokenizer).encode_all(list(texts), False)
    return ids


def tokenizer_digest(tokenizer: str) -> str:
    """Return the SHA-256 of a tokenizer's file, by which stored ids know theirs."""
    return digest_file(_file_of(tokenizer))


def _file_of(tokenizer: str) -> Path:
    path = Path(tokenizer)
    file = path / TOKENIZER_FILE if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no tokenizer at {file}; give a tokenizer.json or its folder")
    return file


@functools.lru_cache(maxsize=4)
def _opened(tokenizer: str) -> Any:
    import kitoken

    file = _file_of(tokenizer)
    try:
        return kitoken.Kitoken.from_tokenizers_file(str(file))
    except ValueError as error:
        raise InputError(f"tokens cannot be counted with {file}: {error}") from error
