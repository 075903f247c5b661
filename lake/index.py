"""The duplicate index of a lake: opened, brought to what the log tells, and filled where it lacks.

Knows how batches of the log are named in the index; what makes rows alike, duplicates.py knows.
"""

import logging
import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pyarrow.dataset as ds

from core.contracts import Message
from lake.config import DuplicatesConfig
from lake.duplicates import DuplicateIndex
from lake.log import BatchEntry, FileState, batch_name
from lake.sketches import IndexRow, Sketches
from lake.tables import Tables

FOLDER = "duplicates"
COLUMNS = ["content_digest", "messages", "response"]
RESTORE_ROWS = 20_000
"""About as many rows as one look has; the last look of a file takes what is left."""
LOG = logging.getLogger("serin.ingestion")


@contextmanager
def opened_index(
    tables: Tables,
    config: DuplicatesConfig,
    states: Mapping[str, FileState],
    barred: Collection[str],
    folder: Path | None = None,
) -> Iterator[DuplicateIndex]:
    """Open the index of a lake and make it hold what the log's batches hold.

    `barred` are digests of files that nothing may be a duplicate of. It lies in `folder`, else in
    the lake's own; that of a lake in an object store is else made anew each time.
    """
    with tempfile.TemporaryDirectory(prefix="serin-index-") as scratch:
        if folder is None:
            folder = Path(scratch if "://" in tables.uri else tables.uri) / FOLDER
        names = {digest: _names(state) for digest, state in states.items()}
        shut = {name for digest in barred for name in names.get(digest, ())}
        with closing(DuplicateIndex(folder, config, shut.__contains__)) as index:
            committed = {name for found in names.values() for name in found}
            index.recover(committed.__contains__)
            for digest, found in names.items():
                if index.missing(found):
                    _restore(index, tables, states[digest].batches[0], digest, found)
            yield index


def look_name(batch: str, number: int) -> str:
    """Return the index's name for a batch's part that was looked up at once."""
    return f"{batch}#{number}"


def index_row(messages: Sequence[Message], response: str, digest: str) -> IndexRow:
    """Return what the index is asked about a row."""
    return IndexRow(digest, "\n".join([turn.content for turn in messages]), response)


def joined(parts: Sequence[Sketches]) -> Sketches:
    """Return the sketches of consecutive rows as one."""
    starts = np.cumsum([0, *(len(part) for part in parts)])
    return Sketches(
        keys=np.concatenate([part.keys for part in parts]),
        checks=np.concatenate([part.checks for part in parts]),
        places=np.concatenate(
            [part.places + start for part, start in zip(parts, starts, strict=False)]
        ),
        bands=np.concatenate([part.bands for part in parts]),
        signatures=np.concatenate([part.signatures for part in parts]),
    )


def _names(state: FileState) -> list[str]:
    return [
        look_name(batch_name(entry.file_digest, state.attempt, entry.index), number)
        for entry in state.batches
        for number in range(max(1, entry.looks))
    ]


def _restore(
    index: DuplicateIndex, tables: Tables, entry: BatchEntry, digest: str, names: Sequence[str]
) -> None:
    """Enter a file's rows anew, spread over those of its names that are missing."""
    LOG.info("the duplicate index learns the rows of %s again", entry.source)
    missing = index.missing(names)
    mine = (ds.field("day") == entry.day) & (ds.field("file_digest") == digest)
    decode = msgspec.json.Decoder(tuple[Message, ...]).decode
    rows: list[IndexRow] = []
    for batch in tables.columns(COLUMNS, mine):
        digests, texts, responses = (batch.column(name).to_pylist() for name in COLUMNS)
        rows += [
            index_row(decode(text), response, digest)
            for digest, text, response in zip(digests, texts, responses, strict=True)
        ]
        if len(rows) >= RESTORE_ROWS and len(missing) > 1:
            index.restore(missing.pop(0), rows)
            rows = []
    for name in missing:
        index.restore(name, rows)
        rows = []
