"""The files of a chain: segments of lines, packed as Parquet once they are full; read and checked.

Parquet holds each line as it was, beside the columns that are searched for.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.errors import IntegrityError
from observability.audit_index import AuditIndex, Head, Retirement
from observability.audit_rows import GENESIS, LINES, ROWS, AuditRow, check_lines

COLUMNS = ("request_id", "response_id")


@dataclass(frozen=True, slots=True)
class ChainReport:
    """What a check of one process's chain found: its rows, a torn end, and what is wrong.

    The first `retired_rows` of its rows were deleted on purpose.
    """

    process: str
    rows: int
    torn: bool
    problems: tuple[str, ...]
    retired_rows: int = 0


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What a check of a whole audit found; `problems` are those of the index."""

    chains: tuple[ChainReport, ...]
    problems: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing was edited, removed or cut off; a torn last line alone is sound."""
        return not self.problems and not any(chain.problems for chain in self.chains)


def segment_path(folder: Path, number: int) -> Path:
    """Return where a segment's lines are while it is written."""
    return folder / f"{number:06}.jsonl"


def pack(path: Path) -> Path:
    """Turn a full segment into Parquet, which replaces it; returns the new file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lines = path.read_bytes().splitlines()
    rows = [ROWS.decode(LINES.decode(line).row) for line in lines]
    columns: dict[str, list[object]] = {"line": list(lines)}
    columns |= {name: [getattr(row, name) for row in rows] for name in COLUMNS}
    packed = path.with_suffix(".parquet")
    temporary = path.with_suffix(".packing")
    pq.write_table(pa.table(columns), temporary, compression="zstd")
    with open(temporary, "rb") as file:
        os.fsync(file.fileno())
    os.replace(temporary, packed)
    path.unlink()
    return packed


def verify_audit(folder: Path, key: bytes) -> AuditReport:
    """Check every chain below `folder` against itself and against the signed index."""
    heads: dict[str, list[Head]] = {}
    problems: list[str] = []
    try:
        for head in AuditIndex(folder, key).heads():
            heads.setdefault(head.process, []).append(head)
    except IntegrityError as error:
        problems.append(str(error))
    folders = (
        {path.name for path in folder.iterdir() if path.is_dir()} if folder.is_dir() else set()
    )
    names = sorted(folders | set(heads))
    if not problems:
        problems += [f"{name} is not in the index" for name in names if name not in heads]
    return AuditReport(
        tuple(verify_chain(folder / name, heads.get(name, [])) for name in names),
        tuple(problems),
    )


def find_rows(folder: Path, name: str) -> Iterator[tuple[str, AuditRow]]:
    """Yield (process, row) of every row whose request or response has the id `name`."""
    for chain in sorted(path for path in folder.glob("*") if path.is_dir()):
        for path in segments(chain):
            for text in _matching(path, name):
                row = ROWS.decode(LINES.decode(text).row)
                if name in (row.request_id, row.response_id):
                    yield chain.name, row


def read_rows(folder: Path) -> Iterator[tuple[str, AuditRow]]:
    """Yield (process, row) of every row, chain by chain; a torn last line is left out."""
    for chain in sorted(path for path in folder.glob("*") if path.is_dir()):
        for path in segments(chain):
            data = _lines(path)
            for text in data[: data.rfind(b"\n") + 1].splitlines():
                yield chain.name, ROWS.decode(LINES.decode(text).row)


def verify_chain(folder: Path, heads: list[Head]) -> ChainReport:
    """Check one process's chain against itself and its entries in the index."""
    last = retirement(heads)
    seq, digest, gone = (last.seq, last.hash, last.segment) if last else (0, GENESIS, 0)
    retired_rows, torn = seq, False
    expected = {head.seq: head.hash for head in heads if head.seq > seq}
    problems = []
    found = [path for path in segments(folder) if int(path.stem) > gone]
    numbers = [int(path.stem) for path in found]
    if numbers != list(range(gone + 1, gone + len(numbers) + 1)):
        problems.append(f"segments {numbers} are not all there")
    try:
        for path in found:
            data = _lines(path)
            if data and not data.endswith(b"\n"):
                if path is not found[-1]:
                    raise IntegrityError(f"segment {path.name} ends in the middle of a row")
                torn, data = True, data[: data.rfind(b"\n") + 1]
            for line in check_lines(data, seq, digest):
                seq, digest = line.seq, line.hash
                if expected.pop(seq, digest) != digest:
                    raise IntegrityError(f"row {seq} is not the one that the index knows")
    except (IntegrityError, OSError) as error:
        problems.append(str(error))
    else:
        if expected:
            problems.append(f"rows after {seq} were removed: the index knows row {max(expected)}")
    return ChainReport(folder.name, seq, torn, tuple(problems), retired_rows)


def last_row(path: Path) -> tuple[int, str] | None:
    """Return number and hash of a segment's last whole row; None when it has none."""
    data = _lines(path)
    lines = data[: data.rfind(b"\n") + 1].splitlines()
    if not lines:
        return None
    line = LINES.decode(lines[-1])
    return line.seq, line.hash


def retirement(heads: Iterable[Head]) -> Retirement | None:
    """Return up to where a chain was deleted on purpose."""
    retired = [head for head in heads if isinstance(head, Retirement)]
    return max(retired, key=lambda head: head.segment, default=None)


def segments(folder: Path) -> list[Path]:
    """The segments in order; of one that is being packed, its lines."""
    found = {path.stem: path for path in folder.glob("*.parquet")}
    found |= {path.stem: path for path in folder.glob("*.jsonl")}
    return [found[name] for name in sorted(found)]


def _lines(path: Path) -> bytes:
    if path.suffix == ".jsonl":
        return path.read_bytes()
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        lines = pq.read_table(path, columns=["line"])["line"].to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise IntegrityError(f"segment {path.name} cannot be read: {error}") from error
    return b"".join(line + b"\n" for line in lines)


def _matching(path: Path, name: str) -> list[bytes]:
    """Lines that may have the id; a torn last one is left out."""
    if path.suffix == ".jsonl":
        wanted = msgspec.json.encode(name)[1:-1]
        return [text for text in path.read_bytes().split(b"\n")[:-1] if wanted in text]
    import pyarrow.dataset as ds

    match = (ds.field("request_id") == name) | (ds.field("response_id") == name)
    found: list[bytes] = ds.dataset(path).to_table(["line"], filter=match)["line"].to_pylist()
    return found
