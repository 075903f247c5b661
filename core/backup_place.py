"""Where backups are kept: blobs named by their digest, a manifest for each backup, ledger segments.

A folder or any fsspec address such as s3://. Knows no room's files and not what they mean.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from core.digests import digest_bytes, digest_file
from core.errors import (
    ConfigurationError,
    InputError,
    IntegrityError,
    NotFoundError,
    SerinError,
    UnavailableError,
)

SCHEMA_VERSION = 1
TRANSFERS = 8
"""Files in flight at once: an object store answers each slowly."""
PROBLEMS_MAX = 100
UNFINISHED_SECONDS_MAX = 86_400.0
"""A backup begun within this time may still run: its blobs are not left-overs."""
ID_FORM = "%Y%m%dT%H%M%S%fZ"
SHOWN_DIGEST = 12


class Entry(msgspec.Struct, frozen=True):
    """One file of a backup: its path below the home, and the blob that holds it."""

    path: str
    digest: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True):
    """One whole backup. `facts` are its maker's; `ledger` is the blob of the ledger's rows."""

    backup_id: str
    at_seconds: float
    home: str
    entries: tuple[Entry, ...]
    ledger: Entry
    ledger_seq: int
    facts: dict[str, Any]
    schema_version: int = SCHEMA_VERSION

    @property
    def bytes(self) -> int:
        """How much it holds, in bytes, blobs shared with other backups included."""
        return self.ledger.bytes + sum(entry.bytes for entry in self.entries)

    def blobs(self) -> tuple[Entry, ...]:
        """Every file, the ledger too."""
        return (*self.entries, self.ledger)


@dataclass(frozen=True, slots=True)
class Kept:
    """What is kept of one backup that was begun; without a manifest it is not whole."""

    backup_id: str
    manifest: Manifest | None
    problem: str


class BackupPlace:
    """One place. Every method raises UnavailableError when it does not answer.

    On a disk all folders and files are readable by their owner only.
    """

    def __init__(self, address: str) -> None:
        from fsspec.core import url_to_fs

        if not address:
            raise ConfigurationError(
                "no place for backups is known: name one, or set SERIN_BACKUP_URI to a folder on "
                "another disk or to s3://BUCKET/FOLDER"
            )
        self.address = address
        try:
            self._system, self._root = url_to_fs(address)
        except (ValueError, ImportError) as error:
            raise ConfigurationError(f"backups cannot be kept at {address}: {error}") from error
        self._root = self._root.rstrip("/")
        self._local = "file" in _protocols(self._system)

    def put_blob(self, source: Path, digest: str) -> None:
        """Copy a file to the blob of its digest; it appears whole or not at all.

        Raises IntegrityError when the file changed since it was digested.
        """
        if self._local:
            self._write_local(self._blob(digest), source.read_bytes(), digest)
            return
        self._do(lambda: self._system.put_file(str(source), self._path(self._blob(digest))))
        if digest_file(source) != digest:
            self._remove(self._blob(digest))
            raise IntegrityError(f"{source} changed while it was copied; back up again")

    def put_bytes(self, name: str, content: bytes) -> None:
        """Write one small file; it appears whole or not at all."""
        if self._local:
            self._write_local(name, content, None)
        else:
            self._do(lambda: self._system.pipe_file(self._path(name), content))

    def put_content(self, content: bytes) -> Entry:
        """Keep bytes as a blob; return its entry, with an empty path."""
        digest = digest_bytes(content)
        self.put_bytes(self._blob(digest), content)
        return Entry("", digest, len(content))

    def read(self, name: str) -> bytes:
        """Read one file. Raises NotFoundError."""
        found = self._do(lambda: self._system.cat_file(self._path(name)))
        return bytes(found)

    def read_blob(self, entry: Entry) -> bytes:
        """Read a blob and check it. Raises IntegrityError that names what is wrong."""
        what = f"{entry.path or 'the ledger'} (blob {entry.digest[:SHOWN_DIGEST]})"
        try:
            content = self.read(self._blob(entry.digest))
        except NotFoundError:
            raise IntegrityError(f"{what} is missing") from None
        if len(content) != entry.bytes:
            raise IntegrityError(f"{what} has {len(content)} bytes, recorded are {entry.bytes}")
        if digest_bytes(content) != entry.digest:
            raise IntegrityError(f"{what} is damaged: its content does not give its digest")
        return content

    def names(self, folder: str) -> dict[str, int]:
        """{name: bytes} of the files below a folder of the place, {} without it."""
        base = self._path(folder)
        self._system.invalidate_cache()
        try:
            found = self._do(lambda: self._system.find(base, detail=True))
        except NotFoundError:
            return {}
        return {
            str(path)[len(base) + 1 :]: int(info["size"])
            for path, info in found.items()
            if not str(path).endswith(".part")
        }

    def begin(self, at_seconds: float) -> str:
        """Note that a backup begins; return its id. Without a manifest it will be told as partial.

        Raises InputError when the clock gives an id that is taken.
        """
        backup_id = datetime.fromtimestamp(at_seconds, UTC).strftime(ID_FORM)
        if backup_id in self.names("begun"):
            raise InputError(f"a backup {backup_id} was begun already; try again")
        self.put_bytes(f"begun/{backup_id}", b"begun\n")
        return backup_id

    def withdraw(self, backup_id: str) -> None:
        """Forget a backup that was begun and did not come about, when its maker tells so itself."""
        with contextlib.suppress(SerinError):  # still listed as not whole, which is true
            self._remove(f"begun/{backup_id}")

    def finish(self, manifest: Manifest) -> None:
        """Write the manifest, the last thing of a backup: with it the backup is whole."""
        content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        self.put_bytes(f"manifests/{manifest.backup_id}.{digest_bytes(content)}.json", content)

    def send(
        self, files: Mapping[str, Path], whole: bool, told: Callable[[int], None] = lambda _: None
    ) -> tuple[Entry, ...]:
        """Keep files under their paths; blobs that are there are not sent again unless `whole`."""
        entries = [
            Entry(path, digest_file(file), file.stat().st_size) for path, file in files.items()
        ]
        known = {} if whole else self.names("blobs")
        missing = {
            entry.digest: files[entry.path]
            for entry in entries
            if known.get(_below_blobs(entry.digest)) != entry.bytes
        }
        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(lambda item: self.put_blob(item[1], item[0]), missing.items()))
        told(len(missing))
        return tuple(entries)

    def fetch(self, entries: Iterable[Entry], folder: Path) -> None:
        """Write the files below a folder, each checked. Raises IntegrityError naming a bad one."""

        def one(entry: Entry) -> None:
            target = folder / entry.path
            if not target.resolve().is_relative_to(folder.resolve()):
                raise IntegrityError(f"{entry.path} of the backup leads out of the home")
            content = self.read_blob(entry)
            make_private_folder(target.parent)
            with open(target, "wb", opener=_owner_only) as file:
                file.write(content)

        with ThreadPoolExecutor(TRANSFERS) as pool:
            list(pool.map(one, entries))

    def kept(self) -> list[Kept]:
        """Every backup that was begun, newest first, with what is wrong with its manifest."""
        files: dict[str, str] = {}
        for name in self.names("manifests"):
            files[name.partition(".")[0]] = name
        ids = sorted({*self.names("begun"), *files}, reverse=True)
        return [self._kept(backup_id, files.get(backup_id)) for backup_id in ids]

    def manifest(self, backup_id: str = "") -> Manifest:
        """Read one manifest, by default the newest that can be read.

        Raises NotFoundError without one, IntegrityError when the named one is not whole.
        """
        kept = self.kept()
        if backup_id:
            kept = [item for item in kept if item.backup_id == backup_id]
        whole = [item.manifest for item in kept if item.manifest is not None]
        if whole:
            return whole[0]
        if kept:
            raise IntegrityError(f"backup {kept[0].backup_id}: {kept[0].problem}")
        named = f"backup {backup_id}" if backup_id else "a backup"
        raise NotFoundError(f"{self.address} does not hold {named}; `serin backup list` tells")

    def problems(self, manifest: Manifest) -> list[str]:
        """Read every blob of a backup; one sentence for each that is missing or damaged."""

        def one(entry: Entry) -> str:
            try:
                self.read_blob(entry)
            except IntegrityError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(TRANSFERS) as pool:
            found = [problem for problem in pool.map(one, manifest.blobs()) if problem]
        return found[:PROBLEMS_MAX]

    def prune(self, days: float, now_seconds: float) -> list[str]:
        """Remove backups older than `days`, never the last good one; return their ids.

        Blobs that no manifest names go too, unless a backup that runs may have sent them.
        """
        kept = self.kept()
        oldest = now_seconds - days * 86_400.0
        old = [item for item in kept if _id_seconds(item.backup_id) < oldest]
        young = [item for item in kept if item not in old]
        good = next((item for item in young + old if self._good(item)), None)
        if good is None:
            return []
        removed = [item for item in old if item is not good]
        for item in removed:
            for name in self.names("manifests"):
                if name.startswith(item.backup_id):
                    self._remove(f"manifests/{name}")
            self._remove(f"begun/{item.backup_id}")
        left = [item for item in kept if item not in removed]
        running = any(
            item.manifest is None
            and _id_seconds(item.backup_id) > now_seconds - UNFINISHED_SECONDS_MAX
            for item in left
        )
        if not running:
            self._remove_unnamed([item.manifest for item in left if item.manifest is not None])
        return [item.backup_id for item in removed]

    def remove(self, name: str) -> None:
        """Remove one file; nothing happens when it is not there."""
        self._remove(name)

    def _remove_unnamed(self, manifests: Iterable[Manifest]) -> None:
        named = {entry.digest for manifest in manifests for entry in manifest.blobs()}
        for name in self.names("blobs"):
            if name.rpartition("/")[2] not in named:
                self._remove(f"blobs/{name}")

    def _good(self, item: Kept) -> bool:
        return item.manifest is not None and not self.problems(item.manifest)

    def _kept(self, backup_id: str, name: str | None) -> Kept:
        if name is None:
            why = "it was interrupted, or its manifest is missing; it cannot be restored"
            return Kept(backup_id, None, why)
        try:
            content = self.read(f"manifests/{name}")
            if digest_bytes(content) != name.split(".")[1]:
                raise IntegrityError("its manifest is damaged: its content does not give its name")
            manifest = msgspec.json.decode(content, type=Manifest)
        except (SerinError, msgspec.MsgspecError, IndexError) as error:
            return Kept(backup_id, None, str(error))
        if manifest.schema_version > SCHEMA_VERSION:
            return Kept(backup_id, None, "a newer Serin wrote it; use that one")
        return Kept(backup_id, manifest, "")

    def _blob(self, digest: str) -> str:
        return f"blobs/{_below_blobs(digest)}"

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write_local(self, name: str, content: bytes, digest: str | None) -> None:
        if digest is not None and digest_bytes(content) != digest:
            raise IntegrityError(f"a file changed while it was copied to {name}; back up again")
        path = Path(self._path(name))

        def write() -> None:
            make_private_folder(path.parent)
            draft = path.with_name(f"{path.name}.{os.getpid()}.part")
            with open(draft, "wb", opener=_owner_only) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)

        self._do(write)

    def _remove(self, name: str) -> None:
        try:
            self._do(lambda: self._system.rm_file(self._path(name)))
        except NotFoundError:
            return

    def _do(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except FileNotFoundError as error:
            raise NotFoundError(f"{self.address} has no {error}") from error
        except OSError as error:
            raise UnavailableError(f"the backups at {self.address}: {error}") from error


def make_private_folder(path: Path) -> None:
    """Make a folder and the missing ones above it, for their owner only."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    for folder in reversed(missing):
        folder.mkdir(mode=0o700, exist_ok=True)


def _below_blobs(digest: str) -> str:
    return f"{digest[:2]}/{digest}"


def _protocols(system: Any) -> tuple[str, ...]:
    found = system.protocol
    return (found,) if isinstance(found, str) else tuple(found)


def _id_seconds(backup_id: str) -> float:
    try:
        return datetime.strptime(backup_id, ID_FORM).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return 0.0


def _owner_only(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
