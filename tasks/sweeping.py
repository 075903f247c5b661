"""Which files of a home repeat a record's text, and how each is freed of it.

Knows files and marks; the lake's tables and the registry are others' business.
"""

import html
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec

from core.digests import digest_json
from core.files import write_whole
from lake.erasure import FoundRecord

Action = Literal["rewrite", "overwrite", "delete", "by hand"]
FOLDERS = (
    "reports", "answers", "judged", "adapters", "stories", "logs", "mlflow", "prefect", "control",
)  # fmt: skip
"""Where texts of records may be, below the home; lake and snapshots are not among them."""
DATABASES = (".db", ".db-wal", ".sqlite")
WEIGHTS = (".safetensors", ".bin", ".pt", ".blob")
EVALUATION = "evaluation.json"
FILE_BYTES_MAX = 1 << 30
FILES_MAX = 1_000_000
BLANK = b"x"


@dataclass(frozen=True, slots=True)
class Trace:
    """One file that repeats a record's text, and what is to be done with it."""

    path: Path
    action: Action


class Marks:
    """The ways in which files write what tells them to be of some records."""

    def __init__(self, records: Iterable[FoundRecord]) -> None:
        found = list(records)
        self.record_ids = frozenset(record.record_id for record in found)
        self.prompt_keys = frozenset(digest_json(record.messages) for record in found)
        texts = {text for record in found for text in record.texts}
        forms = {form for text in texts for form in _forms(text)}
        forms |= {json.dumps(record_id) for record_id in self.record_ids}
        # The longest first: one form may begin another.
        self._forms = sorted((form.encode() for form in forms if form), key=len, reverse=True)

    def within(self, content: bytes) -> bool:
        """Whether any form stands in the bytes."""
        return any(form in content for form in self._forms)

    def blanked(self, content: bytes) -> bytes:
        """Return the bytes with every form overwritten, as long as before."""
        for form in self._forms:
            content = content.replace(form, BLANK * len(form))
        return content


def traces(home: Path, marks: Marks) -> list[Trace]:
    """Return the files below a home that repeat a record's text; reads each of them once."""
    return [
        Trace(path, _action(path, home))
        for path in _files(home)
        if path.stat().st_size <= FILE_BYTES_MAX and _touches(path, marks)
    ]


def clear(trace: Trace, marks: Marks) -> None:
    """Free one file of the records; a file that is gone meanwhile is free."""
    if trace.action == "by hand":
        return
    try:
        if trace.action == "delete":
            trace.path.unlink()
        elif trace.action == "overwrite":
            _overwrite(trace.path, marks)
        else:
            write_whole(trace.path, _without(trace.path, marks))
    except FileNotFoundError:
        return


def _action(path: Path, home: Path) -> Action:
    if path.name.endswith(DATABASES):
        return "by hand"
    top = path.relative_to(home).parts[0]
    if top == "logs":
        return "overwrite"  # a running process goes on writing to it
    if path.name == EVALUATION or top == "answers" or path.suffix == ".jsonl":
        return "rewrite"
    return "delete"


def _touches(path: Path, marks: Marks) -> bool:
    try:
        content = path.read_bytes()
    except OSError:
        return False
    if path.parent.name == "answers":
        return marks.within(content) or any(key.encode() in content for key in marks.prompt_keys)
    return marks.within(content)


def _without(path: Path, marks: Marks) -> bytes:
    """Return a file of records or answers without those that are to be erased."""
    content = path.read_bytes()
    if path.suffix == ".jsonl":
        lines = content.splitlines(keepends=True)
        return b"".join(line for line in lines if not marks.within(line))
    decoded = msgspec.json.decode(content)
    if isinstance(decoded, Mapping):
        kept: Any = {
            key: value
            for key, value in decoded.items()
            if key not in marks.prompt_keys and not marks.within(msgspec.json.encode(value))
        }
    else:
        kept = [item for item in _sequence(decoded) if not marks.within(msgspec.json.encode(item))]
    return msgspec.json.encode(kept)


def _sequence(decoded: Any) -> Sequence[Any]:
    return decoded if isinstance(decoded, list) else []


def _overwrite(path: Path, marks: Marks) -> None:
    content = path.read_bytes()
    blanked = marks.blanked(content)
    with path.open("r+b") as file:
        file.write(blanked)


def _files(home: Path) -> Iterator[Path]:
    left = FILES_MAX
    for name in FOLDERS:
        for path in sorted((home / name).rglob("*")) if (home / name).is_dir() else ():
            if path.is_file() and not path.is_symlink() and path.suffix not in WEIGHTS:
                left -= 1
                if left < 0:
                    return
                yield path


def _forms(text: str) -> set[str]:
    """Return a text as files write it: plain, in JSON (ASCII or not), in HTML, in both."""
    plain = json.dumps(text, ensure_ascii=False)[1:-1]
    ascii_only = json.dumps(text)[1:-1]
    found = {text, plain, ascii_only}
    found |= {html.escape(form) for form in found} | {html.escape(form, False) for form in found}
    # JSON in JSON, as tables keep conversations.
    return found | {json.dumps(form, ensure_ascii=False)[1:-1] for form in found}
