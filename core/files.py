"""Files that are replaced whole, so that a reader or a crash never sees half of one."""

import os
import secrets
from pathlib import Path


def write_whole(path: Path, data: bytes, durable: bool = False) -> None:
    """Replace `path` by `data` in one step; `durable` waits until the disk has it.

    Raises OSError (no space left, ...); the old content then stands.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
    except OSError:
        draft.unlink(missing_ok=True)
        raise
