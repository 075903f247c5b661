"""Counts the answers to a load: by outcome, arm and version, with latency quantiles. Opens nothing.

Bounded: latencies are a seeded random sample of fixed size, failures are listed up to a number.
"""

import math
import random
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

LATENCIES_MAX = 50_000
NAMES_MAX = 200


@dataclass(frozen=True, slots=True)
class FailedRequest:
    """A request without an HTTP 200 and a whole body. `status` is 0 when no answer came."""

    time_seconds: float
    cause: str
    status: int
    arm: str
    version: str
    request_id: str


@dataclass(frozen=True, slots=True)
class LoadCounts:
    """Answers of one arm, one version, or all; latencies of whole answers in seconds, or None."""

    ok: int
    limited: int
    failed: int
    p50_seconds: float | None
    p95_seconds: float | None
    p99_seconds: float | None


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a load met. `sent` = ok + limited + failed + in_flight; `skipped` were not sent."""

    seconds: float
    sent: int
    ok: int
    limited: int
    failed: int
    in_flight: int
    skipped: int
    total: LoadCounts
    by_arm: Mapping[str, LoadCounts]
    by_version: Mapping[str, LoadCounts]
    causes: Mapping[str, int]
    failures: tuple[FailedRequest, ...]

    def as_json(self) -> str:
        """One JSON object."""
        return msgspec.json.encode(self).decode()

    def as_text(self) -> str:
        """A few lines for people."""
        head = (
            f"{self.sent} requests in {self.seconds:.1f} s: {self.ok} ok, {self.limited} limited, "
            f"{self.failed} failed, {self.skipped} not sent"
        )
        rows = [("all", self.total)]
        rows += [(f"arm {name}", counts) for name, counts in self.by_arm.items()]
        rows += [(f"version {name}", counts) for name, counts in self.by_version.items()]
        lines = [
            f"  {name}: {row.ok} ok, {row.failed} failed, p50 {_milliseconds(row.p50_seconds)}, "
            f"p95 {_milliseconds(row.p95_seconds)}"
            for name, row in rows
        ]
        return "\n".join([head, *lines, *(f"  {item}" for item in self.failures[:10])])


class _Latencies:
    """A uniform sample of at most LATENCIES_MAX values (Vitter, 1985, algorithm R)."""

    __slots__ = ("_random", "_seen", "_values")

    def __init__(self, seed: int) -> None:
        self._values = array("d")
        self._seen = 0
        self._random = random.Random(seed)

    def add(self, value: float) -> None:
        self._seen += 1
        if len(self._values) < LATENCIES_MAX:
            self._values.append(value)
            return
        place = self._random.randrange(self._seen)
        if place < LATENCIES_MAX:
            self._values[place] = value

    def quantiles(self, *shares: float) -> list[float | None]:
        """Smallest values that at least these shares of the sample do not exceed."""
        found = sorted(self._values)
        last = len(found) - 1
        return [
            found[min(max(math.ceil(share * len(found)) - 1, 0), last)] if found else None
            for share in shares
        ]


class _Group:
    """Counts of one arm or version."""

    __slots__ = ("failed", "latencies", "limited", "ok")

    def __init__(self, seed: int) -> None:
        self.ok = self.limited = self.failed = 0
        self.latencies = _Latencies(seed)

    def counts(self) -> LoadCounts:
        return LoadCounts(
            self.ok, self.limited, self.failed, *self.latencies.quantiles(0.5, 0.95, 0.99)
        )


class Tally:
    """Thread-safe counts of one load."""

    def __init__(self, failures_max: int, seed: int) -> None:
        self._lock = threading.Lock()
        self._seed = seed
        self._failures_max = failures_max
        self._all = _Group(seed)
        self._arms: dict[str, _Group] = {}
        self._versions: dict[str, _Group] = {}
        self._causes: dict[str, int] = {}
        self._failures: list[FailedRequest] = []
        self._sent = self._skipped = 0
        self._began: float | None = None
        self._ended: float | None = None

    @property
    def in_flight(self) -> int:
        """Requests sent that have no outcome yet."""
        done = self._all
        return self._sent - done.ok - done.limited - done.failed

    def begin(self) -> None:
        """The load starts now."""
        self._began = time.monotonic()

    def end(self) -> None:
        """The last answer is there."""
        self._ended = time.monotonic()

    def send(self) -> None:
        """Count a request that is sent now."""
        with self._lock:
            self._sent += 1

    def skip(self) -> None:
        """Count a request that was due but not sent: too many were open."""
        with self._lock:
            self._skipped += 1

    def ok(self, arm: str, version: str, seconds: float) -> None:
        """Count a whole answer."""
        with self._lock:
            for group in self._groups(arm, version):
                group.ok += 1
                group.latencies.add(seconds)

    def limited(self, arm: str, version: str) -> None:
        """Count a 429."""
        with self._lock:
            for group in self._groups(arm, version):
                group.limited += 1

    def failed(self, request: FailedRequest) -> None:
        """Count, and list while there is room, a failed request."""
        with self._lock:
            for group in self._groups(request.arm, request.version):
                group.failed += 1
            self._causes[request.cause] = self._causes.get(request.cause, 0) + 1
            if len(self._failures) < self._failures_max:
                self._failures.append(request)

    def report(self) -> LoadReport:
        """Everything so far."""
        with self._lock:
            began = time.monotonic() if self._began is None else self._began
            ended = time.monotonic() if self._ended is None else self._ended
            return LoadReport(
                seconds=ended - began,
                sent=self._sent,
                ok=self._all.ok,
                limited=self._all.limited,
                failed=self._all.failed,
                in_flight=self.in_flight,
                skipped=self._skipped,
                total=self._all.counts(),
                by_arm={name: group.counts() for name, group in self._arms.items()},
                by_version={name: group.counts() for name, group in self._versions.items()},
                causes=dict(self._causes),
                failures=tuple(self._failures),
            )

    def _groups(self, arm: str, version: str) -> list[_Group]:
        found = [self._all]
        for name, groups in ((arm, self._arms), (version, self._versions)):
            if name and (name in groups or len(groups) < NAMES_MAX):
                found.append(groups.setdefault(name, _Group(self._seed)))
        return found


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.0f} ms"
