"""What releases, daily runs, the watch and the stack's parts were like, read at each scrape.

Short-lived processes cannot be scraped: their figures lie in the ledger and in the runs' folders.
"""

import shutil
from bisect import bisect_left
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from cli.processes import alive
from cli.stack_file import read_stack
from core.contracts import ACTIVE_STATES
from core.errors import SerinError
from core.settings import Settings

if TYPE_CHECKING:
    from rollout.ledger import Ledger
    from rollout.release import Release

RELEASES_MAX = 500
RUNS_MAX = 200
BUSY_SECONDS = 2.0
BUCKETS_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 14400, 43200, 86400)
"""From a rollback's tenths of a second to a canary of a day."""


class Durations:
    """Observations by their labels' values, as one histogram. Cardinality is the caller's."""

    def __init__(self, name: str, text: str, *labels: str) -> None:
        self._family = (name, text, labels)
        self._found: dict[tuple[str, ...], tuple[list[int], float]] = {}

    def add(self, seconds: float, *values: str) -> None:
        """Count one duration."""
        counts, total = self._found.get(values, ([0] * (len(BUCKETS_SECONDS) + 1), 0.0))
        counts[bisect_left(BUCKETS_SECONDS, seconds)] += 1
        self._found[values] = counts, total + seconds

    def family(self) -> Metric:
        """Return the histogram."""
        name, text, labels = self._family
        made = HistogramMetricFamily(name, text, labels=labels)
        for values, (counts, total) in self._found.items():
            so_far, buckets = 0, []
            for edge, count in zip((*map(str, BUCKETS_SECONDS), "+Inf"), counts, strict=True):
                so_far += count
                buckets.append((edge, float(so_far)))
            made.add_metric(values, buckets, total)
        return made


class LedgerReader:
    """The ledger of a home, opened once there is one."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._ledger: Ledger | None = None

    def open(self) -> "Ledger | None":
        """Return the ledger; None while there is none or it does not answer."""
        from cli.overview import open_ledger

        if self._ledger is None:
            self._ledger = open_ledger(self.settings, [])
        return self._ledger


class ReleaseCollector(Collector):
    """The newest releases of one service, from the ledger; nothing while that does not answer."""

    def __init__(self, reader: LedgerReader) -> None:
        self._reader = reader

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        from rollout.times import to_seconds

        found = self._releases()
        if found is None:
            return
        states = GaugeMetricFamily(
            "serin_releases", f"Newest {RELEASES_MAX} releases", labels=("kind", "state")
        )
        took = Durations("serin_release_seconds", "Start to end of releases", "kind", "state")
        safe = Durations("serin_rollback_safe_seconds", "Decision to no canary traffic")
        counts: dict[tuple[str, str], int] = {}
        for release in found:
            key = str(release.kind), release.state.value.lower()
            counts[key] = counts.get(key, 0) + 1
            if release.started_at and release.finished_at:
                seconds = to_seconds(release.finished_at) - to_seconds(release.started_at)
                took.add(max(seconds, 0.0), *key)
            if release.rolling_back_at and release.safe_at:
                safe.add(to_seconds(release.safe_at) - to_seconds(release.rolling_back_at))
        for key, count in counts.items():
            states.add_metric(key, count)
        yield states
        yield took.family()
        yield safe.family()
        active = [release.percent for release in found if release.state in ACTIVE_STATES]
        yield _gauge("serin_release_running", "1 while a release is under way", bool(active))
        share = max(active, default=0) / 100
        yield _gauge("serin_release_share_ratio", "Share last intended for a candidate", share)
        alarms = sum(len(release.alarms) for release in found)
        yield _gauge("serin_release_alarms", "Alarms raised by those releases", alarms)

    def _releases(self) -> "list[Release] | None":
        ledger, settings = self._reader.open(), self._reader.settings
        if ledger is None:
            return None
        try:
            return ledger.releases(settings.service, settings.namespace, RELEASES_MAX)
        except SerinError:
            return None


class HealthCollector(Collector):
    """What the watch found at its last look: figures that no lasting process counts among them."""

    def __init__(self, reader: LedgerReader) -> None:
        self._reader = reader

    def collect(self) -> Iterator[Metric]:
        """Yield the families; nothing before the first look."""
        from tasks.remembering import Notes

        ledger, settings = self._reader.open(), self._reader.settings
        if ledger is None:
            return
        try:
            found = Notes(ledger, settings.namespace, settings.service).read()
        except SerinError:
            return
        if not found.time_seconds:
            return
        name = "serin_health_look_timestamp_seconds"
        yield _gauge(name, "The watch's last look since the epoch", found.time_seconds)
        figures = GaugeMetricFamily(
            "serin_health_figure", "The health matrix's figures that are known", labels=("metric",)
        )
        for metric, reading in found.readings.items():
            if reading.value is not None:
                figures.add_metric((metric,), reading.value)
        yield figures
        acting = GaugeMetricFamily(
            "serin_health_acting", "1 while the row's recovery is in force", labels=("row",)
        )
        unknown = GaugeMetricFamily(
            "serin_health_unknown", "1 while the row lacks data for too long", labels=("row",)
        )
        for row, state in found.states.items():
            acting.add_metric((row,), float(state.active and not state.dry))
            unknown.add_metric((row,), float(state.no_data))
        yield acting
        yield unknown


class RunCollector(Collector):
    """The daily runs, from their folders: how they ended, how long it took, what quality."""

    def __init__(self, reports: Path) -> None:
        self._reports = reports

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        stages = Durations("serin_stage_seconds", "Time of the daily run's stages", "stage")
        runs = Durations("serin_daily_run_seconds", "Time of daily runs", "state")
        ends: list[tuple[float, dict[str, Any]]] = []
        for folder in _newest(self._reports):
            for stage in _read(folder / "stages.json") or ():
                stages.add(float(stage["seconds"]), str(stage["name"]))
            result = _read(folder / "result.json")
            if result:
                state = str(result["final_state"]).lower().replace(" ", "_")
                runs.add(sum(result["seconds"].values()), state)
                ends.append(((folder / "result.json").stat().st_mtime, result))
        yield stages.family()
        yield runs.family()
        if not ends:
            return
        when, last = max(ends, key=lambda end: end[0])
        name = "serin_daily_run_end_timestamp_seconds"
        yield _gauge(name, "End of the last daily run since the epoch", when)
        score = GaugeMetricFamily(
            "serin_evaluation_score_ratio",
            "Share of exact answers on the last evaluation set",
            labels=("model",),
        )
        for model, field in (("stable", "quality_before"), ("candidate", "quality_after")):
            if last.get(field) is not None:
                score.add_metric((model,), float(last[field]))
        yield score


class HomeCollector(Collector):
    """The stack's parts and the disk that the home lies on."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        up = GaugeMetricFamily("serin_part_up", "1 while the part's process runs", labels=("part",))
        restarts = GaugeMetricFamily(
            "serin_part_restarts", "Starts after the first", labels=("part",)
        )
        for name, record in read_stack(self._home).processes.items():
            up.add_metric((name,), float(alive(record.identity)))
            restarts.add_metric((name,), record.restarts)
        yield up
        yield restarts
        disk = shutil.disk_usage(self._home)
        yield _gauge("serin_home_disk_free_bytes", "Free space below the home", disk.free)
        yield _gauge("serin_home_disk_size_bytes", "Size of the home's file system", disk.total)


def _gauge(name: str, text: str, value: float) -> Metric:
    found = GaugeMetricFamily(name, text)
    found.add_metric((), float(value))
    return found


def _newest(reports: Path) -> list[Path]:
    folders = [path for path in reports.iterdir() if path.is_dir()] if reports.is_dir() else []
    return sorted(folders, key=lambda path: path.stat().st_mtime)[-RUNS_MAX:]


def _read(path: Path) -> Any:
    """Return a run's paper; None for one that is not there or not whole yet."""
    try:
        return msgspec.json.decode(path.read_bytes())
    except (OSError, msgspec.DecodeError):
        return None
