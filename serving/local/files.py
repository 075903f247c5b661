"""Files of the control plane: read as values, of a known schema, under one lock."""

import fcntl
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from core.errors import IntegrityError, RefusedError

Content = TypeVar("Content")


def read_as(path: Path, kind: type[Content]) -> Content | None:
    """Return the JSON file as a value of `kind`; None when there is no file.

    Raises IntegrityError when it is malformed.
    """
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise IntegrityError(f"{path} is malformed: {error}; restore it or move it away") from error


def check_schema(path: Path, found: int, known: int) -> None:
    """Refuse a file that another version of Serin wrote. Raises IntegrityError."""
    if found != known:
        raise IntegrityError(
            f"{path} has schema version {found}, this program reads {known}; "
            "run the Serin version that wrote it"
        )


def lock_home(folder: Path) -> int:
    """Take the one lock of a home's control folder and return its file descriptor.

    The kernel gives it back when the process ends. Raises RefusedError while another holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise RefusedError(
            f"another control plane (process {owner or 'unknown'}) holds {folder}; stop it first"
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor
