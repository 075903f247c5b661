"""Raw data in: which files are days, and their rows in bounded batches.

Knows files, formats and positions; does not know what a good record is.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Any

import fsspec
from msgspec.structs import replace

from core.addresses import DATA_SCHEMES, check_address
from core.errors import InputError, NotFoundError
from lake.config import EvaluationConfig, FieldMapping, IngestConfig
from lake.readers import DATA_SUFFIXES, RawBlock, RawRow, data_suffix, read_blocks

__all__ = [
    "DayFile",
    "DayListing",
    "EvaluationConfig",
    "FieldMapping",
    "IngestConfig",
    "RawBlock",
    "RawRow",
    "day_blocks",
    "list_days",
]

CHUNK_BYTES = 1 << 20
GLOB = re.compile(r"[*?\[]")
DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class DayFile:
    """One file, which is one day. `name` is the file's name, `day` the same without its endings."""

    day: str
    name: str
    url: str
    size_bytes: int

    def digest(self) -> str:
        """Return the SHA-256 of the file's bytes, read in bounded chunks."""
        state = hashlib.sha256()
        system, path = locate(self.url)
        with system.open(path, "rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                state.update(chunk)
        return state.hexdigest()

    def stamp(self) -> tuple[str, ...]:
        """Return size and time (or entity tag) of the file now: equal stamps, same bytes."""
        system, path = locate(self.url)
        system.invalidate_cache()
        facts = system.info(path)
        return tuple(str(facts.get(name)) for name in ("size", "mtime", "LastModified", "ETag"))


@dataclass(frozen=True, slots=True)
class DayListing:
    """The days in order, and the files that are not days, each with the reason in brackets."""

    days: tuple[DayFile, ...]
    left_out: tuple[str, ...]


def locate(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a path or URL and the path in it.

    Raises InputError for a scheme that is not allowed or whose driver is not installed.
    """
    check_address(url, DATA_SCHEMES, "data")
    try:
        system, path = fsspec.core.url_to_fs(url)
    except (ValueError, ImportError) as error:
        raise InputError(f"{url} cannot be opened: {error}") from error
    return system, str(path)


def list_days(uri: str, pattern: str = "*", excluded: Sequence[str] = ()) -> DayListing:
    """List the daily files of a folder (path or fsspec URL), of a glob, or the one file `uri`.

    Days come in name order, numbers compared as numbers. Where any name carries a number or date
    (day-01, 2026-03-01), only such names are days, so that an eval.jsonl beside them is none.
    Files of `excluded` (paths or URLs) are never days. Raises NotFoundError for a missing folder
    and InputError for one without days.
    """
    system, root = locate(uri)
    listed = _listed(system, root)
    if not listed and not system.exists(root):
        raise NotFoundError(f"there is no data at {uri}; give a folder of daily files")
    barred = {(type(other), path.rstrip("/")) for other, path in map(locate, excluded)}
    left_out: list[str] = []
    found: list[dict[str, Any]] = []
    for entry in sorted(listed, key=lambda entry: natural_key(entry["name"])):
        name = base_name(entry["name"])
        if name.startswith(".") or entry["type"] != "file":
            continue
        reason = _why_no_day(name, pattern, (type(system), entry["name"].rstrip("/")) in barred)
        if reason:
            left_out.append(f"{name} ({reason})")
        else:
            found.append(entry)
    numbered = [entry for entry in found if DIGITS.search(stem(base_name(entry["name"])))]
    if numbered:
        plain = [base_name(entry["name"]) for entry in found if entry not in numbered]
        left_out += [f"{name} (no number or date in its name)" for name in plain]
        found = numbered
    if not found:
        kinds = ", ".join(DATA_SUFFIXES)
        raise InputError(f"no daily file in {uri} (looked for {kinds}); left out: {left_out}")
    return DayListing(_day_files(system, found), tuple(left_out))


def day_blocks(day_file: DayFile, config: IngestConfig) -> Iterator[RawBlock]:
    """Yield a day's rows in bounded blocks, in file order, still to be decoded.

    A row that cannot be decoded comes with its position and the reason instead of a value, and the
    rows around it come as usual. Raises NotFoundError when the file is gone.
    """
    system, path = locate(day_file.url)
    try:
        with system.open(path, "rb") as file:
            for block in read_blocks(file, day_file.name, config):
                yield replace(block, position=file.tell())
    except FileNotFoundError as error:
        raise NotFoundError(f"{day_file.url} is gone; list the days again") from error


def stem(name: str) -> str:
    """Return a data file's name without its endings."""
    return name[: len(name) - len(data_suffix(name))]


def base_name(path: str) -> str:
    """Return the last part of a path."""
    return path.rstrip("/").rsplit("/", 1)[-1]


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Order names with their numbers compared as numbers: day-2 before day-10."""
    return [
        (0, int(part), "") if part.isdigit() else (1, 0, part)
        for part in DIGITS.split(name)
        if part
    ]


def _listed(system: Any, root: str) -> list[dict[str, Any]]:
    """Return the entries of a folder, those that a glob matches, or of the one file."""
    if system.isdir(root):
        return list(system.ls(root, detail=True))
    if system.exists(root):
        return [system.info(root)]
    if GLOB.search(root):
        return list(system.glob(root, detail=True).values())
    return []


def _why_no_day(name: str, pattern: str, is_excluded: bool) -> str:
    if is_excluded:
        return "given for another purpose"
    if not data_suffix(name):
        return "not a data file"
    return "" if fnmatch(name, pattern) else f"does not match {pattern}"


def _day_files(system: Any, entries: list[dict[str, Any]]) -> tuple[DayFile, ...]:
    names = Counter(base_name(entry["name"]) for entry in entries)
    stems = Counter(stem(base_name(entry["name"])) for entry in entries)
    files = []
    for entry in entries:
        name = base_name(entry["name"])
        day = stem(name) if stems[stem(name)] == 1 else name
        if names[name] > 1:
            # The same name in several folders of a glob: then the folder names the day.
            folder = base_name(entry["name"].rstrip("/").rpartition("/")[0])
            day = f"{folder}-{stem(name)}"
        url = system.unstrip_protocol(entry["name"])
        files.append(DayFile(day, name, url, int(entry["size"] or 0)))
    return tuple(files)
