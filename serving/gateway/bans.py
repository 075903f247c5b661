"""Clients that are shut out for a while: in a file, so that people and all gateways share it."""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from core.errors import InputError
from core.files import write_whole

BANS_MAX = 100_000


class Ban(msgspec.Struct, frozen=True):
    """One address (of IPv6 its /64), from when until when (seconds since the epoch), and why."""

    address: str
    since_seconds: float
    until_seconds: float
    reason: str


class BanFile:
    """<home>/control/bans.json: every change reads, changes and replaces it under a lock."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self._path = home / "control" / "bans.json"
        self._clock = clock

    def read(self) -> dict[str, Ban]:
        """Return the bans in force, by address. Raises InputError for a damaged file."""
        try:
            bans = msgspec.json.decode(self._path.read_bytes(), type=list[Ban])
        except FileNotFoundError:
            return {}
        except msgspec.MsgspecError as error:
            raise InputError(f"{self._path} is damaged: {error}; delete it") from error
        now = self._clock()
        return {ban.address: ban for ban in bans if ban.until_seconds > now}

    def identity(self) -> tuple[int, int] | None:
        """What changes when the file does; None without one."""
        try:
            found = os.stat(self._path)
        except FileNotFoundError:
            return None
        return found.st_mtime_ns, found.st_ino

    def add(self, *bans: Ban) -> None:
        """Add bans; of one address the latest counts. Beyond BANS_MAX the first to end go."""
        with self._changing() as found:
            found.update({ban.address: ban for ban in bans})
            for ban in sorted(found.values(), key=lambda ban: ban.until_seconds)[:-BANS_MAX]:
                del found[ban.address]

    def lift(self, address: str) -> bool:
        """End an address's ban; False if it has none."""
        with self._changing() as found:
            return found.pop(address, None) is not None

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Ban]]:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with open(self._path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            bans = self.read()
            yield bans
            write_whole(self._path, msgspec.json.encode(list(bans.values())))


class Bans:
    """A gateway's view of the file: asked for each request, written at most once per look."""

    def __init__(self, file: BanFile, clock: Callable[[], float] = time.time) -> None:
        self._file = file
        self._clock = clock
        self._seen: tuple[int, int] | None = None
        self._bans: dict[str, Ban] = {}
        self._new: dict[str, Ban] = {}

    def __len__(self) -> int:
        return len(self._bans) + len(self._new)

    def seconds_left(self, address: str) -> float:
        """How long the address is still shut out; 0 when it is not."""
        ban = self._new.get(address) or self._bans.get(address)
        return max(0.0, ban.until_seconds - self._clock()) if ban is not None else 0.0

    def ban(self, address: str, seconds: float, reason: str) -> None:
        """Shut an address out from now on; the next look writes it down."""
        if len(self._new) < BANS_MAX:
            now = self._clock()
            self._new[address] = Ban(address, now, now + seconds, reason)

    def look(self) -> list[str]:
        """Write down new bans and take over what others changed; the addresses that are free again.

        Waits for the file's lock, so call it in a thread. Raises InputError or OSError when the
        file cannot be read or written: bans stay in force.
        """
        new = dict(self._new)
        if new:
            self._file.add(*new.values())
        elif self._file.identity() == self._seen:
            return []
        self._seen = self._file.identity()
        before, self._bans = self._bans, self._file.read()
        for address in new:
            del self._new[address]
        return [address for address in before if address not in self._bans]
