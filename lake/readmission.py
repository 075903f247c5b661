"""Quarantined rows that came in after a correction: found by id, corrected, marked as re-admitted.

A correction is a file like any other: it goes through the same contract, and what that refuses
stays in quarantine. A quarantined row is never deleted; the mark stands in a table of its own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from core.errors import InputError, NotFoundError
from lake.config import IngestConfig
from lake.log import VersionEntry
from lake.preparation import CheckRows
from lake.schema import QUARANTINE, QUARANTINE_SCHEMA, READMITTED, READMITTED_SCHEMA
from lake.sources import DayFile, day_blocks
from lake.table import IngestReport, Lake

ID_FIELD = "quarantine_id"
DIGEST_SHOWN = 12
CORRECTIONS_MAX = 1_000_000
"""Rows of one correction file; their marks are one commit."""


@dataclass(frozen=True, slots=True)
class Readmission:
    """What became of a correction file: `readmitted` are ids of quarantined rows."""

    report: IngestReport
    readmitted: tuple[str, ...]
    refused_again: int


def quarantine_id(row: Mapping[str, Any]) -> str:
    """Return the id by which people name a quarantined row: its file and its number there."""
    return f"{row['file_digest'][:DIGEST_SHOWN]}-{row['row']}"


def quarantined_rows(
    lake: Lake, day: str | None = None, reason: str | None = None, limit: int = 100
) -> list[dict[str, Any]]:
    """List quarantined rows with their `id` and when they were re-admitted, or None."""
    marks = _marks(lake, day)
    found = lake.quarantined(day, reason, limit)
    return [
        {
            "id": quarantine_id(row),
            **row,
            "readmitted_at": marks.get((row["file_digest"], row["row"])),
        }
        for row in found
    ]


def quarantined_row(lake: Lake, name: str) -> dict[str, Any]:
    """Return one quarantined row by its id. Raises NotFoundError."""
    digest, _, number = name.rpartition("-")
    if digest and number.isdigit() and lake.table(QUARANTINE) is not None:
        wanted = (ds.field("row") == int(number)) & pc.starts_with(
            ds.field("file_digest"), pattern=digest
        )
        for batch in lake.columns(QUARANTINE_SCHEMA.names, wanted, QUARANTINE):
            for row in batch.to_pylist():
                at = _marks(lake, row["day"]).get((row["file_digest"], row["row"]))
                return {"id": quarantine_id(row), **row, "readmitted_at": at}
    raise NotFoundError(f"there is no quarantined row {name}; `serin quarantine` lists them")


def readmit(
    lake: Lake,
    correction: DayFile,
    check: CheckRows,
    *,
    row: str | None = None,
    day: str | None = None,
) -> Readmission:
    """Take a correction in and mark the quarantined rows that it corrects.

    Which ones: `row` names the one that its single row corrects; with `day` it is that day's whole
    file again, and rows keep their numbers; else each row names its own in `quarantine_id`. Rows
    are read as the refused file was. The same correction again adds nothing. Raises InputError for
    a correction that names rows of several files or none, NotFoundError for unknown rows.
    """
    names = _names(correction)
    if row is not None:
        if len(names) != 1:
            raise InputError(f"{correction.name} has {len(names)} rows; one row corrects {row}")
        names = dict.fromkeys(names, row)
    entry = _origin(lake, names, day)
    waiting = _refused(lake, entry.day, entry.file_digest)
    wanted = {
        number: number if day is not None else int(name.rpartition("-")[2])
        for number, name in names.items()
    }
    unknown = set(wanted.values()) - waiting
    if day is None and unknown:
        raise NotFoundError(f"row {min(unknown)} of {entry.source} is not in quarantine")
    config = IngestConfig(data=correction.url, **entry.intake)
    report = lake.ingest_day(replace(correction, day=entry.day), config, check)
    digest = correction.digest()
    again = _refused(lake, entry.day, digest)
    done = {mine for number, mine in wanted.items() if mine in waiting and number not in again}
    _mark(lake, entry, sorted(done), correction.name, digest)
    ids = [f"{entry.file_digest[:DIGEST_SHOWN]}-{number}" for number in sorted(done)]
    return Readmission(report, tuple(ids), len(again))


def _names(correction: DayFile) -> dict[int, str]:
    """Return which quarantined row each row of a correction names ("": none)."""
    config = IngestConfig(data=correction.url)
    names: dict[int, str] = {}
    for block in day_blocks(correction, config):
        for raw in block.decoded(config.row_bytes_max):
            value = raw.value or {}
            names[len(names) + 1] = str(value.get(ID_FIELD) or "")
        if len(names) > CORRECTIONS_MAX:
            raise InputError(f"{correction.name} has more than {CORRECTIONS_MAX} rows; split it")
    return names


def _origin(lake: Lake, names: Mapping[int, str], day: str | None) -> VersionEntry:
    """Return the file whose rows are corrected."""
    versions = lake.versions()
    if day is not None:
        of_day = [entry for entry in versions if entry.day == day and entry.quarantined]
        if not of_day:
            raise NotFoundError(f"no row of {day} is in quarantine; `serin quarantine` lists them")
        return of_day[0]
    digests = {name.rpartition("-")[0] for name in names.values()}
    if "" in digests or len(digests) != 1:
        raise InputError(
            f"each row of a correction names its quarantined row of one file in `{ID_FIELD}` "
            "(or give --row ID, or --day DAY for a whole file)"
        )
    found = [entry for entry in versions if entry.file_digest.startswith(min(digests))]
    if len(found) != 1:
        raise NotFoundError(f"no file in the lake is {min(digests)}; `serin quarantine` lists ids")
    return found[0]


def _refused(lake: Lake, day: str, file_digest: str) -> set[int]:
    mine = (ds.field("day") == day) & (ds.field("file_digest") == file_digest)
    return {
        number
        for batch in lake.columns(["row"], mine, QUARANTINE)
        for number in batch.column("row").to_pylist()
    }


def _mark(
    lake: Lake, entry: VersionEntry, numbers: list[int], source: str, correction_digest: str
) -> None:
    """Write the marks in one commit, whose transaction is the correction: again is harmless."""
    if not numbers:
        return
    lake.create([READMITTED])
    now = datetime.now(UTC)
    files = lake.part_files(READMITTED, entry.day, correction_digest)
    rows = {
        "day": [entry.day] * len(numbers),
        "file_digest": [entry.file_digest] * len(numbers),
        "row": numbers,
        "correction": [source] * len(numbers),
        "correction_digest": [correction_digest] * len(numbers),
        "readmitted_at": [now.isoformat(timespec="seconds")] * len(numbers),
    }
    files.write(pa.RecordBatch.from_pydict(rows, schema=READMITTED_SCHEMA))
    lake.commit(READMITTED, files, {}, int(now.timestamp()))


def _marks(lake: Lake, day: str | None) -> dict[tuple[str, int], str]:
    condition = None if day is None else ds.field("day") == day
    return {
        (row["file_digest"], row["row"]): row["readmitted_at"]
        for batch in lake.columns(["file_digest", "row", "readmitted_at"], condition, READMITTED)
        for row in batch.to_pylist()
    }
