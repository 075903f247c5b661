"""Old segments of an audit and how they go: the signed index remembers that they were whole."""

import fcntl
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from core.errors import IntegrityError, RefusedError
from observability.audit_index import AuditIndex
from observability.audit_rows import GENESIS
from observability.audit_segments import last_row, retirement, segments, verify_chain


@dataclass(frozen=True, slots=True)
class OldSegments:
    """The first segments of one process's chain, up to number `last`."""

    process: str
    first: int
    last: int
    bytes: int


def old_segments(folder: Path, before_seconds: float) -> Iterator[OldSegments]:
    """Yield what was last written before that time (epoch); never what is still written to."""
    for chain in sorted(path for path in folder.glob("*") if path.is_dir()):
        found = []
        for path in segments(chain):
            if path.stat().st_mtime > before_seconds or _is_written(path):
                break
            found.append(path)
        if found:
            size = sum(path.stat().st_size for path in found)
            yield OldSegments(chain.name, int(found[0].stem), int(found[-1].stem), size)


def retire(folder: Path, key: bytes, old: OldSegments) -> None:
    """Delete segments after the index has kept, signed, where their chain had come to.

    Raises IntegrityError for a chain that is not whole: what proves a change must not go; and
    RefusedError when its process still writes.
    """
    index = AuditIndex(folder, key)
    chain = folder / old.process
    heads = [head for head in index.heads() if head.process == old.process]
    report = verify_chain(chain, heads)
    if report.problems:
        raise IntegrityError(f"{old.process} is kept, it is not whole: {report.problems[0]}")
    doomed = [path for path in segments(chain) if int(path.stem) <= old.last]
    if any(map(_is_written, doomed)):
        raise RefusedError(f"{old.process} still writes")
    before = retirement(heads)
    if before is None or old.last > before.segment:  # else an earlier run was interrupted here
        ends = (last_row(path) for path in reversed(doomed))
        start = (before.seq, before.hash) if before else (0, GENESIS)
        index.retire(old.process, old.last, *next((end for end in ends if end), start))
    for path in doomed:
        path.unlink()
    if not any(chain.iterdir()):
        chain.rmdir()


def _is_written(path: Path) -> bool:
    """Whether a process has the segment open to write: it holds a lock as long as it lives."""
    file = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(file)
    return False
