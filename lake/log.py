"""What the commits of a table tell of the files that came in: which batches, and which are whole.

A file comes in as one batch or several, each a commit. Only its last one makes it a version: until
then nothing of it counts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec

METADATA_KEY = "serin"
DISCARDED_KEY = "serin_discarded"


class BatchEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One commit of a day file, as its metadata in the Delta log.

    `blocks` raw blocks of the file went into it and `looks` parts into the duplicate index; `near`
    of the duplicates are near ones; `settings` is the digest of all that its rows depend on beside
    the bytes, `intake` the part that a correction needs, `tokenizer` the digest of the tokenizer
    whose ids are stored. Older lakes have only the first seven and one commit a file.
    """

    day: str
    source: str
    file_digest: str
    rows_in: int
    kept: int
    duplicates: int
    quarantined: int
    index: int = 0
    last: bool = True
    blocks: int = 0
    looks: int = 0
    near: int = 0
    tokens: int = 0
    settings: str = ""
    judged_at: float = 0
    intake: dict[str, Any] = {}
    tokenizer: str = ""


@dataclass(frozen=True, slots=True)
class VersionEntry:
    """A whole day file: the Delta version of its last commit, and its figures."""

    version: int
    day: str
    source: str
    file_digest: str
    rows_in: int
    kept: int
    duplicates: int
    quarantined: int
    near_duplicates: int = 0
    tokens: int = 0
    intake: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: str = ""


@dataclass(slots=True)
class FileState:
    """How far one file came. `attempt` counts how often a half of it was discarded."""

    attempt: int = 0
    batches: list[BatchEntry] = field(default_factory=list)
    version: int = -1
    judged_at: float = 0

    @property
    def whole(self) -> bool:
        """Whether the last batch is in."""
        return bool(self.batches) and self.batches[-1].last

    def entry(self) -> VersionEntry:
        """Return the file as one version."""
        last = self.batches[-1]
        return VersionEntry(
            version=self.version,
            day=last.day,
            source=last.source,
            file_digest=last.file_digest,
            rows_in=sum(batch.rows_in for batch in self.batches),
            kept=sum(batch.kept for batch in self.batches),
            duplicates=sum(batch.duplicates for batch in self.batches),
            quarantined=sum(batch.quarantined for batch in self.batches),
            near_duplicates=sum(batch.near for batch in self.batches),
            tokens=sum(batch.tokens for batch in self.batches),
            intake=last.intake,
            tokenizer=last.tokenizer,
        )


def batch_name(file_digest: str, attempt: int, index: int) -> str:
    """Return the name under which a batch is known to both tables and to the duplicate index."""
    return f"{file_digest}.{attempt}.{index}" if attempt or index else file_digest


def file_states(history: Iterable[Mapping[str, Any]]) -> dict[str, FileState]:
    """Return how far each file came, by its digest, from a table's history in any order."""
    states: dict[str, FileState] = {}
    for commit in sorted(history, key=lambda commit: int(commit["version"])):
        if METADATA_KEY in commit:
            entry = msgspec.json.decode(commit[METADATA_KEY], type=BatchEntry)
            state = states.setdefault(entry.file_digest, FileState())
            state.batches.append(entry)
            state.version = int(commit["version"])
        elif DISCARDED_KEY in commit:
            state = states.setdefault(commit[DISCARDED_KEY], FileState())
            state.attempt += 1
            state.batches.clear()
    return states
