"""The gateway's counters, by assignment: each request counts for the arm that was drawn for it.

Counts and writes Prometheus' text format; decides nothing. Counters start at 0 with the process.
"""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import accumulate

from core.contracts import LATENCY_BUCKETS_SECONDS
from serving.gateway.balancer import Arm, Service
from serving.gateway.exposition import family, labels
from serving.gateway.outcomes import OUTCOMES, Outcome

EDGES = tuple(repr(edge) for edge in LATENCY_BUCKETS_SECONDS)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"


class Series:
    """Counters of one arm with one revision. `draws` = all outcomes + `in_flight`, always."""

    __slots__ = ("buckets", "draws", "left_at", "name", "outcomes", "retries", "seconds")

    def __init__(self, service: str, arm: Arm) -> None:
        self.name = (service, arm.name, arm.revision, arm.model_version)
        self.draws = 0
        self.outcomes: dict[Outcome, int] = dict.fromkeys(OUTCOMES, 0)
        self.buckets = [0] * (len(EDGES) + 1)
        self.seconds = 0.0
        self.retries: dict[str, int] = {}
        self.left_at: float | None = None

    @property
    def requests(self) -> int:
        """Requests with an outcome."""
        return sum(self.outcomes.values())

    @property
    def in_flight(self) -> int:
        """Requests drawn that have no outcome yet."""
        return self.draws - self.requests

    def draw(self) -> None:
        """Count one draw of this arm."""
        self.draws += 1

    def finish(self, outcome: Outcome, seconds: float) -> None:
        """Count the outcome of one draw, `seconds` after it."""
        self.outcomes[outcome] += 1
        self.buckets[bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += 1
        self.seconds += seconds

    def retry(self, reason: str) -> None:
        """Count one request that needed another endpoint than the first."""
        self.retries[reason] = self.retries.get(reason, 0) + 1


class Metrics:
    """All series; those of revisions that left the routes are kept for a while, then dropped."""

    def __init__(self, series_max: int, series_keep_seconds: float) -> None:
        self._series: dict[tuple[str, str, str], Series] = {}
        self._current: tuple[tuple[str, Arm], ...] = ()
        self._shares: dict[str, float] = {}
        self._series_max = series_max
        self._series_keep_seconds = series_keep_seconds
        self.generation = 0
        self.refused: dict[str, int] = {}
        """Requests refused before the draw, by reason."""
        self.started_at_seconds = time.time()

    def apply(self, generation: int, services: Iterable[Service]) -> None:
        """Note the routes in force: their arms have series from now on, others may age."""
        now = time.monotonic()
        services = tuple(services)
        self.generation = generation
        self._shares = {service.name: service.share for service in services}
        self._current = tuple((service.name, arm) for service in services for arm in service.arms)
        for service, arm in self._current:
            self.series(service, arm).left_at = None
        keys = {(service, arm.name, arm.revision) for service, arm in self._current}
        for key, series in self._series.items():
            if key not in keys and series.left_at is None:
                series.left_at = now
        self._drop_old(now)

    def _drop_old(self, now: float) -> None:
        left = sorted(
            (series.left_at, key)
            for key, series in self._series.items()
            if series.left_at is not None and not series.in_flight
        )
        surplus = len(left) - self._series_max
        for index, (left_at, key) in enumerate(left):
            if index < surplus or now - left_at > self._series_keep_seconds:
                del self._series[key]

    def series(self, service: str, arm: Arm) -> Series:
        """The counters of an arm, new ones if it was never seen."""
        key = (service, arm.name, arm.revision)
        found = self._series.get(key)
        if found is None:
            found = self._series[key] = Series(service, arm)
        return found

    def refuse(self, reason: str) -> None:
        """Count one request that was refused before the draw."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def exposition(
        self, ejections: dict[str, int], waiting: int, settled: Iterable[str] = ()
    ) -> bytes:
        """Return everything in Prometheus' text format; `settled` are lines of other counters."""
        lines = [
            *self._arm_lines(),
            *self._histogram_lines(),
            *settled,
            *family(
                "serin_gateway_refused_total",
                "counter",
                "Requests refused before the draw.",
                ((labels(reason=reason), count) for reason, count in self.refused.items()),
            ),
            *family(
                "serin_gateway_ejections_total",
                "counter",
                "Endpoints that were given a rest.",
                ((labels(reason=reason), count) for reason, count in ejections.items()),
            ),
            *family(
                "serin_gateway_waiting",
                "gauge",
                "Requests that wait for a place.",
                [("", waiting)],
            ),
            *family(
                "serin_gateway_routes_generation",
                "gauge",
                "Generation of the routes in force.",
                [("", self.generation)],
            ),
            *family(
                "process_start_time_seconds",
                "gauge",
                "Start of the process since the epoch.",
                [("", self.started_at_seconds)],
            ),
        ]
        return ("\n".join(lines) + "\n").encode()

    def _arm_lines(self) -> Iterator[str]:
        all_series = list(self._series.values())
        yield from family(
            "serin_gateway_declared_share",
            "gauge",
            "Share of requests drawn for the canary, 0 to 1.",
            ((labels(service=name), share) for name, share in self._shares.items()),
        )
        yield from family(
            "serin_gateway_arm",
            "gauge",
            "1 for each arm of the routes in force.",
            ((_names(self.series(name, arm)), 1) for name, arm in self._current),
        )
        yield from family(
            "serin_gateway_draws_total",
            "counter",
            "Requests drawn for the arm.",
            ((_names(series), series.draws) for series in all_series),
        )
        yield from family(
            "serin_gateway_requests_total",
            "counter",
            "Requests drawn for the arm by their outcome, whoever answered them.",
            (
                (_names(series, outcome=outcome), series.outcomes[outcome])
                for series in all_series
                for outcome in OUTCOMES
            ),
        )
        yield from family(
            "serin_gateway_retries_total",
            "counter",
            "Requests drawn for the arm that another endpoint had to answer.",
            (
                (_names(series, reason=reason), count)
                for series in all_series
                for reason, count in series.retries.items()
            ),
        )
        yield from family(
            "serin_gateway_in_flight",
            "gauge",
            "Requests drawn for the arm that have no outcome yet.",
            ((_names(series), series.in_flight) for series in all_series),
        )

    def _histogram_lines(self) -> Iterator[str]:
        name = "serin_gateway_request_seconds"
        yield f"# HELP {name} Time from the draw to the end of the answer."
        yield f"# TYPE {name} histogram"
        for series in self._series.values():
            names = _names(series)[1:-1]
            counts = list(accumulate(series.buckets))
            for edge, count in zip((*EDGES, "+Inf"), counts, strict=True):
                yield f'{name}_bucket{{{names},le="{edge}"}} {count}'
            yield f"{name}_sum{{{names}}} {series.seconds!r}"
            yield f"{name}_count{{{names}}} {counts[-1]}"


def _names(series: Series, **more: str) -> str:
    service, arm, revision, version = series.name
    return labels(service=service, arm=arm, revision=revision, model_version=version, **more)
