"""Memory and open files of every process of a home over time, and how much they grew.

Linux only (/proc). PSS counts shared pages by halves, thirds, ...; it moves when a neighbour that
maps the same files starts or ends. Its anonymous part is what the process itself has taken, and is
what is judged. Connections to predictors, which the gateway keeps for a moment, are counted apart.
"""

import os
import statistics
import threading
import time
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from cli.environment import MEMBER_VARIABLE
from cli.processes import Identity, members

SHARE_OF_WINDOW = 0.2
"""The first and the last this much of a process's time after its warm-up are compared."""
MEASURED_SHARE_MIN = 0.3
"""Of the load's time after the warm-up: what lived shorter is listed, not judged."""
UNJUDGED = frozenset(("prometheus",))
"""Their memory grows by design: Prometheus keeps two hours and more of samples in memory before
it writes them to disk. They are measured and shown."""
SERIES_SAMPLES_MIN = 5
"""What was seen less often is no part of the series."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process, `at_seconds` after the start of the watch."""

    at_seconds: float
    pss_mib: float
    anonymous_mib: float
    files: int
    connections: int = 0


@dataclass(slots=True)
class Watched:
    """One process and what was seen of it."""

    name: str
    samples: list[Sample] = field(default_factory=list)


class ProcessWatch:
    """Samples every process of a home each `interval_seconds` between entering and leaving.

    `names` returns the names of processes by pid, as far as somebody has named them; `ports` those
    that predictors listen on.
    """

    def __init__(
        self,
        home: Path,
        names: Callable[[], dict[int, str]],
        ports: Callable[[], set[int]],
        interval_seconds: float,
    ) -> None:
        self._home, self._names, self._ports = home, names, ports
        self._interval = interval_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._began = time.monotonic()
        self.seen: dict[Identity, Watched] = {}

    def __enter__(self) -> "ProcessWatch":
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def elapsed(self) -> float:
        """Seconds since the start of the watch."""
        return time.monotonic() - self._began

    def series(self) -> list[dict[str, Any]]:
        """Return each process's memory and open files over time."""
        return [
            {
                "process": watched.name,
                "seconds": [round(item.at_seconds, 1) for item in watched.samples],
                "pss_mib": [round(item.pss_mib, 1) for item in watched.samples],
                "anonymous_mib": [round(item.anonymous_mib, 1) for item in watched.samples],
                "open_files": [item.files for item in watched.samples],
                "connections": [item.connections for item in watched.samples],
            }
            for watched in self.seen.values()
            if len(watched.samples) > SERIES_SAMPLES_MIN
        ]

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            names, ports = self._names(), self._ports()
            for identity in members(MEMBER_VARIABLE, str(self._home)):
                sample = look(identity.pid, self.elapsed(), ports)
                if sample is None:
                    continue  # it ended meanwhile
                watched = self.seen.get(identity)
                if watched is None:
                    watched = self.seen[identity] = Watched(name_of(identity.pid, names))
                watched.samples.append(sample)


def look(pid: int, at_seconds: float, ports: Container[int] = ()) -> Sample | None:
    """Read one process's memory and open files; None when it is gone.

    Connections to `ports` on this machine are counted apart.
    """
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
        found = psutil.Process(pid).connections("tcp4")
        files = len(os.listdir(f"/proc/{pid}/fd"))
    except (OSError, psutil.Error):
        return None
    connections = sum(bool(item.raddr) and item.raddr.port in ports for item in found)
    kib = {name: int(value.split()[0]) for name, value in (line.split(":") for line in lines)}
    if "Pss" not in kib:
        return None  # it has ended and is not waited for yet
    memory = kib["Pss"] / 1024, kib["Pss_Anon"] / 1024
    return Sample(at_seconds, *memory, max(0, files - connections), connections)


def name_of(pid: int, names: dict[int, str]) -> str:
    """The process's own name, or its parent's with a mark."""
    if pid in names:
        return names[pid]
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return "unnamed"
    parent = int(stat[stat.rindex(")") + 2 :].split()[1])
    return f"{names[parent]}, child" if parent in names else "unnamed"


def growth(watched: Watched, warm_seconds: float) -> dict[str, Any] | None:
    """Return what a process grew by after its own warm-up; None when it never had one."""
    born = watched.samples[0].at_seconds
    warm = [item for item in watched.samples if item.at_seconds >= born + warm_seconds]
    if len(warm) < 2:
        return None
    window = max(1, round(SHARE_OF_WINDOW * len(warm)))
    first, last = warm[:window], warm[-window:]
    return {
        "process": watched.name,
        "judged": watched.name not in UNJUDGED,
        "seconds": round(warm[-1].at_seconds - warm[0].at_seconds),
        "pss_mib": [_median([s.pss_mib for s in part]) for part in (first, last)],
        "pss_growth_percent": _percent([s.pss_mib for s in first], [s.pss_mib for s in last]),
        "anonymous_mib": [_median([s.anonymous_mib for s in part]) for part in (first, last)],
        "anonymous_growth_percent": _percent(
            [s.anonymous_mib for s in first], [s.anonymous_mib for s in last]
        ),
        "open_files": [round(_median([s.files for s in part])) for part in (first, last)],
        "connections": [round(_median([s.connections for s in part])) for part in (first, last)],
        # A request in flight opens a file for a moment; what stays open raises the fewest seen.
        "open_files_growth": min(s.files for s in last) - min(s.files for s in first),
    }


def grown(watch: ProcessWatch, warm_seconds: float, seconds: float) -> list[dict[str, Any]]:
    """Return the growth of every process that lived long enough after its warm-up."""
    least = MEASURED_SHARE_MIN * (seconds - warm_seconds)
    rows = [growth(watched, warm_seconds) for watched in watch.seen.values()]
    return sorted(
        (row for row in rows if row is not None and row["seconds"] >= least),
        key=lambda row: str(row["process"]),
    )


def _median(values: Sequence[float]) -> float:
    return round(statistics.median(values), 1)


def _percent(first: Sequence[float], last: Sequence[float]) -> float:
    before = statistics.median(first)
    return round(100 * (statistics.median(last) - before) / before, 2) if before else 0.0
