"""Outcomes in the order of assignment: what a judge may be fed while a canary is compared.

A draw's outcome counts once it and all earlier draws of its service have one. Counted as they
complete, the first requests would show a slow canary too rarely and too fast.
"""

import math
import secrets
import time
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator
from hashlib import blake2b

from core.contracts import LATENCY_BUCKETS_SECONDS
from serving.gateway.balancer import Arm, Service
from serving.gateway.exposition import family, labels

STRATA_MAX = 64
"""Declared shares per comparison; draws at a further one are not counted."""
UNANSWERED_SECONDS = math.inf
ARMS = ("stable", "canary")
Key = tuple[str, str, str]
"""Service, canary's revision, stable's revision: what a comparison is between."""


class Tally:
    """Counts of one arm at one declared share: core.contracts.ArmOutcomes while they grow."""

    __slots__ = ("blocks", "errors", "latencies", "requests", "scores")

    def __init__(self) -> None:
        self.requests = self.errors = self.blocks = 0
        self.latencies: dict[int, int] = {}
        self.scores: dict[int, int] = {}


class Draw:
    """One observation: the request (or the conversation's first request) and how it ended."""

    __slots__ = ("_line", "bucket", "blocked", "comparison", "error", "finished", "tally")

    def __init__(self, line: "Line", comparison: "Comparison", tally: Tally) -> None:
        self._line = line
        self.comparison = comparison
        self.tally = tally
        self.finished = self.error = self.blocked = False
        self.bucket = 0

    def finish(self, error: bool, blocked: bool, seconds: float) -> None:
        """Give the outcome, once (later calls change nothing); infinite seconds: unanswered."""
        if self.finished:
            return
        self.finished, self.error, self.blocked = True, error, blocked
        self.bucket = bisect_left(LATENCY_BUCKETS_SECONDS, seconds)
        self._line.settle()


class Line:
    """One service's draws in the order of assignment; only its head may settle."""

    __slots__ = ("draws",)

    def __init__(self) -> None:
        self.draws: deque[Draw] = deque()

    def settle(self) -> None:
        """Count every draw that has an outcome and no earlier draw without one."""
        while self.draws and self.draws[0].finished:
            draw = self.draws.popleft()
            tally = draw.tally
            tally.requests += 1
            tally.errors += draw.error
            tally.blocks += draw.blocked
            tally.latencies[draw.bucket] = tally.latencies.get(draw.bucket, 0) + 1
            draw.comparison.open_draws -= 1


class Comparison:
    """Two revisions of a service against each other, per declared share at the draw."""

    __slots__ = ("conversations", "left_at", "open_draws", "scored", "strata")

    def __init__(self) -> None:
        self.strata: dict[float, dict[str, Tally]] = {}
        """Declared share -> arm -> counts, in the order of the first draw."""
        self.conversations: set[int] = set()
        self.scored: set[bytes] = set()
        self.open_draws = 0
        self.left_at: float | None = None

    def tallies(self, share: float) -> dict[str, Tally] | None:
        """Both arms' counts at a declared share; None when there were too many shares."""
        found = self.strata.get(share)
        if found is None and len(self.strata) < STRATA_MAX:
            found = self.strata[share] = {arm: Tally() for arm in ARMS}
        return found


class Settlement:
    """All comparisons; those whose revisions left the routes are kept a while, then dropped."""

    def __init__(
        self,
        series_max: int,
        series_keep_seconds: float,
        settling_max: int,
        conversations_max: int,
    ) -> None:
        self.process = secrets.token_hex(8)
        """Another name means that every count began anew."""
        self._series_max = series_max
        self._series_keep_seconds = series_keep_seconds
        self._settling_max = settling_max
        self._conversations_max = conversations_max
        self._conversation_key = secrets.token_bytes(16)
        self._lines: dict[str, Line] = {}
        self._comparisons: dict[Key, Comparison] = {}
        self._running: dict[str, tuple[Key, float]] = {}

    def apply(self, services: Iterable[Service]) -> None:
        """Note the routes in force: their comparisons run from now on, others may age."""
        now = time.monotonic()
        services = tuple(services)
        self._running = {
            service.name: (key, service.share)
            for service in services
            if (key := comparison_key(service)) is not None and 0 < service.share < 1
        }
        for key, _ in self._running.values():
            self._comparisons.setdefault(key, Comparison())
        in_force = {comparison_key(service) for service in services}
        for key, comparison in self._comparisons.items():
            if key in in_force:
                comparison.left_at = None
            elif comparison.left_at is None:
                comparison.left_at = now
        names = {service.name for service in services}
        self._lines = {
            name: line for name, line in self._lines.items() if line.draws or name in names
        }
        self._drop_old(now)

    def _drop_old(self, now: float) -> None:
        left = sorted(
            (comparison.left_at, key)
            for key, comparison in self._comparisons.items()
            if comparison.left_at is not None and not comparison.open_draws
        )
        surplus = len(left) - self._series_max
        for index, (left_at, key) in enumerate(left):
            if index < surplus or now - left_at > self._series_keep_seconds:
                del self._comparisons[key]

    def draw(self, service: Service, arm: Arm, conversation: str | None) -> Draw | None:
        """Note one draw right after it was made; None when it is no observation.

        None depends on the past and on who asks, never on the arm drawn or on how it answers: the
        draws that are observed stay a fair sample at the declared share.
        """
        running = self._running.get(service.name)
        if running is None:
            return None
        key, share = running
        comparison = self._comparisons[key]
        tallies = comparison.tallies(share)
        line = self._lines.get(service.name)
        if line is None:
            line = self._lines[service.name] = Line()
        if tallies is None or len(line.draws) >= self._settling_max:
            return None
        if conversation is not None and not self._is_first(comparison, conversation):
            return None
        draw = Draw(line, comparison, tallies[arm.name])
        comparison.open_draws += 1
        line.draws.append(draw)
        return draw

    def _is_first(self, comparison: Comparison, conversation: str) -> bool:
        """Whether a conversation is to be observed now.

        Its arm was drawn once for all its requests, so it is one observation however long it gets:
        its first request stands for it, which is there before either arm could shorten or lengthen
        it. When the memory is full a conversation that is not in it may have been counted before:
        new ones are left out then, because one counted twice breaks the judge's bounds and one
        left out only costs evidence.
        """
        known = comparison.conversations
        if len(known) >= self._conversations_max:
            return False
        digest = blake2b(conversation.encode(), digest_size=8, key=self._conversation_key).digest()
        number = int.from_bytes(digest)
        if number in known:
            return False
        known.add(number)
        return True

    def running(self, service: str) -> tuple[Key, float] | None:
        """The comparison of the routes in force and the share declared in them, if there is one."""
        return self._running.get(service)

    def scored(self, key: Key, share: float, arm: str) -> tuple[set[bytes], Tally] | None:
        """Where a score of an observed answer belongs: the ids scored so far, and the counts.

        None when that comparison does not run: nobody is judging it.
        """
        running = self._running.get(key[0])
        if running is None or running[0] != key:
            return None
        comparison = self._comparisons[key]
        tallies = comparison.strata.get(share)
        return None if tallies is None else (comparison.scored, tallies[arm])

    def lines(self) -> Iterator[str]:
        """Yield everything in Prometheus' text format; buckets and scores without a count not."""
        prefix = "serin_gateway_settled_"
        rows = [
            (names, tally)
            for key, comparison in self._comparisons.items()
            for share, tallies in comparison.strata.items()
            for arm, tally in tallies.items()
            for names in [_names(key, share, arm)]
        ]
        yield from family(
            "serin_gateway_process",
            "gauge",
            "1, by the name of the process that counts.",
            [(labels(process=self.process), 1)],
        )
        yield from family(
            prefix + "requests_total",
            "counter",
            "Observations settled in the order of assignment, by the share declared at the draw.",
            ((labels(**names), tally.requests) for names, tally in rows),
        )
        yield from family(
            prefix + "errors_total",
            "counter",
            "Settled observations that the drawn arm failed.",
            ((labels(**names), tally.errors) for names, tally in rows),
        )
        yield from family(
            prefix + "blocks_total",
            "counter",
            "Settled observations that were blocked for safety.",
            ((labels(**names), tally.blocks) for names, tally in rows),
        )
        yield from family(
            prefix + "latency_total",
            "counter",
            "Settled observations by the index of their latency bucket, not cumulative.",
            (
                (labels(**names, bucket=str(index)), count)
                for names, tally in rows
                for index, count in sorted(tally.latencies.items())
            ),
        )
        yield from family(
            prefix + "scores_total",
            "counter",
            "Scores of observed answers, in hundredths.",
            (
                (labels(**names, score=str(score)), count)
                for names, tally in rows
                for score, count in sorted(tally.scores.items())
            ),
        )


def comparison_key(service: Service) -> Key | None:
    """What a service with two arms compares; None with one."""
    stable, canary = service.arm("stable"), service.arm("canary")
    if stable is None or canary is None:
        return None
    return service.name, canary.revision, stable.revision


def _names(key: Key, share: float, arm: str) -> dict[str, str]:
    service, canary, stable = key
    return {
        "service": service,
        "canary": canary,
        "stable": stable,
        "share": repr(share),
        "arm": arm,
    }
