"""A small YAML file that people change while the gateway runs: read again when it is another one.

What cannot be read or makes no sense counts as empty: keeping the last good content would keep
alive what somebody tried to take away.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Generic, TypeVar

import yaml

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 1 << 20
Content = TypeVar("Content")


class WatchedFile(Generic[Content]):
    """The parsed content of `path`. `parse` raises ValueError, in words that quote no secret."""

    def __init__(
        self, path: Path, parse: Callable[[Any], Content], empty: Content, consequence: str
    ) -> None:
        self._path = path
        self._parse = parse
        self._empty = empty
        self._consequence = consequence
        self._seen: tuple[int, int, int] | None = None
        self._content = empty

    def content(self) -> Content:
        """Return what the file says now; the empty content without it."""
        try:
            found = os.stat(self._path)
            identity = (found.st_mtime_ns, found.st_ino, found.st_size)
            if identity != self._seen:
                self._content = self._read(found.st_size)
                self._seen = identity
        except FileNotFoundError:
            self._content, self._seen = self._empty, None
        except OSError as error:
            log.error("%s cannot be read, %s: %s", self._path, self._consequence, error.strerror)
            self._content, self._seen = self._empty, None
        return self._content

    @property
    def exists(self) -> bool:
        """Whether there was a file when `content` looked last."""
        return self._seen is not None

    def _read(self, size: int) -> Content:
        try:
            if size > FILE_BYTES_MAX:
                raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
            return self._parse(yaml.safe_load(self._path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, RecursionError):  # their texts quote the file
            log.error("%s is not YAML, %s", self._path, self._consequence)
        except ValueError as error:
            log.error("%s is not applied, %s: %s", self._path, self._consequence, error)
        return self._empty
