"""Reads a gateway's counters over HTTP and sums them up per arm. Judges nothing.

Kept light (no HTTP library): the watch of every minute and the status command import it.
"""

import http.client
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.contracts import (
    LATENCY_BUCKET_COUNT,
    LATENCY_BUCKETS_SECONDS,
    ArmCounters,
    ArmOutcomes,
    CounterSample,
    ScoredPairs,
    Stratum,
)
from core.counters import ArmIncrease, histogram_quantile, increase
from core.errors import UnavailableError

PREFIX = "serin_gateway_"
SETTLED = PREFIX + "settled_"
SHADOW_PAIRS = PREFIX + "shadow_pairs_total"
SCORE_MAX = 100
SCRAPE_BYTES_MAX = 64 << 20
Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ArmSummary:
    """One arm over a span of time; latencies in seconds, NaN without a request."""

    revision: str
    draws: int
    requests: int
    errors: int
    error_share: float
    p50_seconds: float
    p95_seconds: float


@dataclass(frozen=True, slots=True)
class Summary:
    """Both arms over `seconds`; an arm is None when the later scrape has none."""

    seconds: float
    share: float
    stable: ArmSummary | None
    canary: ArmSummary | None


def scrape(url: str, service: str, timeout_seconds: float = 5.0) -> CounterSample:
    """Read the counters of one service from the gateway at `url` (http://host:port).

    The arms are those of the routes in force: after a promotion the new revision is stable, and
    its counters as the stable arm start at 0, and so do the strata of another pair of revisions.
    Raises UnavailableError when the gateway does not
    answer in time, or answers something else.
    """
    text = _fetch(url, timeout_seconds)
    return parse_sample(text, service, time.time())


def parse_sample(text: str, service: str, time_seconds: float) -> CounterSample:
    """Return one service's counters from an exposition. Raises UnavailableError if it is none.

    A service that the gateway has no routes for gives a sample without arms.
    """
    share, process, arms = 0.0, "", {}
    settled: dict[tuple[str, str], _Settled] = {}
    counts: dict[tuple[str, str], _Counts] = {}
    paired: dict[tuple[str, str], list[ScoredPairs]] = {}
    for name, labels, value in _series(text):
        if name == PREFIX + "process":
            process = labels.get("process", "")
        if labels.get("service") != service:
            continue
        key = labels.get("arm", ""), labels.get("revision", "")
        if name == PREFIX + "declared_share":
            share = value
        elif name == PREFIX + "arm":
            arms[key[0]] = key[1]
        elif name.startswith(SETTLED):
            pair = labels.get("canary", ""), labels.get("stable", "")
            settled.setdefault(pair, _Settled()).add(name, labels, value)
        elif name == SHADOW_PAIRS:
            pair = labels.get("canary", ""), labels.get("stable", "")
            paired.setdefault(pair, []).append(_scored_pairs(labels, value))
        else:
            counts.setdefault(key, _Counts()).add(name, labels, value)
    found = {
        arm: counts.get((arm, revision), _Counts()).counters(revision)
        for arm, revision in arms.items()
    }
    compared = arms.get("canary", ""), arms.get("stable", "")
    strata = settled.get(compared, _Settled()).strata()
    pairs = sorted(paired.get(compared, ()), key=lambda at: (at.canary_percent, at.stable_percent))
    return CounterSample(
        time_seconds, share, found.get("stable"), found.get("canary"), process, strata, tuple(pairs)
    )


def quantile(buckets_increase: Sequence[float], q: float) -> float:
    """The latency in seconds that a share `q` of the requests stayed below, in all of them.

    `buckets_increase` are cumulative counts at core.contracts.LATENCY_BUCKETS_SECONDS, followed
    by the count of all requests (the +Inf bucket). Prometheus' histogram_quantile.
    """
    *buckets, requests = buckets_increase
    return histogram_quantile(q, buckets, requests)


def summary(then: CounterSample, now: CounterSample) -> Summary:
    """Sum up what happened between two scrapes, counter resets included (Prometheus' increase).

    An arm that `then` did not have, or had with another revision, is counted from 0.
    """
    return Summary(
        seconds=now.time_seconds - then.time_seconds,
        share=now.share,
        stable=_arm_summary(then.stable, now.stable),
        canary=_arm_summary(then.canary, now.canary),
    )


def _arm_summary(then: ArmCounters | None, now: ArmCounters | None) -> ArmSummary | None:
    if now is None:
        return None
    if then is None or then.revision != now.revision:
        grown = ArmIncrease(now.draws, now.requests, now.errors, now.latency_buckets)
    else:
        grown = increase(then, now)
    return ArmSummary(
        revision=now.revision,
        draws=grown.draws,
        requests=grown.requests,
        errors=grown.errors,
        error_share=grown.error_share,
        p50_seconds=grown.latency_quantile(0.5),
        p95_seconds=grown.latency_quantile(0.95),
    )


class _Counts:
    """Counters of one (arm, revision) while an exposition is read."""

    __slots__ = ("buckets", "draws", "errors", "requests")

    def __init__(self) -> None:
        self.draws = self.errors = self.requests = 0.0
        self.buckets: dict[float, float] = {}

    def add(self, name: str, labels: Labels, value: float) -> None:
        """Sum up: one revision may have several series, e.g. of two model versions' labels."""
        if name == PREFIX + "draws_total":
            self.draws += value
        elif name == PREFIX + "requests_total" and labels.get("outcome") == "error":
            self.errors += value
        elif name == PREFIX + "request_seconds_count":
            self.requests += value
        elif name == PREFIX + "request_seconds_bucket":
            edge = float(labels["le"])
            self.buckets[edge] = self.buckets.get(edge, 0.0) + value

    def counters(self, revision: str) -> ArmCounters:
        if self.buckets and not self.buckets.keys() >= set(LATENCY_BUCKETS_SECONDS):
            raise UnavailableError(
                f"the gateway counts latencies of {revision} in other buckets than this program; "
                "restart it with the same version of Serin"
            )
        return ArmCounters(
            revision=revision,
            draws=int(self.draws),
            requests=int(self.requests),
            errors=int(self.errors),
            latency_buckets=tuple(
                int(self.buckets.get(edge, 0.0)) for edge in LATENCY_BUCKETS_SECONDS
            ),
        )


class _Settled:
    """Settled outcomes of one comparison while an exposition is read, in order of appearance."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[float, dict[str, dict[str, dict[int, int]]]] = {}

    def add(self, name: str, labels: Labels, value: float) -> None:
        """Note one sample; raises UnavailableError for one that this program cannot place."""
        kind = name.removeprefix(SETTLED).removesuffix("_total")
        number = {"latency": "bucket", "scores": "score"}.get(kind, "")
        try:
            share, arm = float(labels["share"]), labels["arm"]
            index = int(labels[number]) if number else 0
        except (KeyError, ValueError) as error:
            raise UnavailableError(f"{name} has labels that cannot be read: {error}") from error
        limit = {"latency": LATENCY_BUCKET_COUNT, "scores": SCORE_MAX}.get(kind, 0)
        known = arm in ("stable", "canary") and 0 < share < 1
        if not (known and 0 <= index <= limit and value >= 0):
            raise UnavailableError(
                f"{name} counts for {arm} at share {share}, index {index}, which cannot be; "
                "restart the gateway with the same version of Serin"
            )
        counts = self._counts.setdefault(share, {}).setdefault(arm, {})
        counts.setdefault(kind, {})[index] = int(value)

    def strata(self) -> tuple[Stratum, ...]:
        return tuple(
            Stratum(share, _outcomes(arms.get("stable", {})), _outcomes(arms.get("canary", {})))
            for share, arms in self._counts.items()
        )


def _scored_pairs(labels: Labels, value: float) -> ScoredPairs:
    """Read one count of pairs; raises UnavailableError for one that cannot be."""
    try:
        canary, stable = int(labels["canary_score"]), int(labels["stable_score"])
    except (KeyError, ValueError) as error:
        raise UnavailableError(f"{SHADOW_PAIRS} has no scores: {error}") from error
    if not (0 <= canary <= SCORE_MAX and 0 <= stable <= SCORE_MAX and value >= 0):
        raise UnavailableError(
            f"{SHADOW_PAIRS} counts {value} at scores {canary} and {stable}, which cannot be; "
            "restart the gateway with the same version of Serin"
        )
    return ScoredPairs(canary, stable, int(value))


def _outcomes(counts: Mapping[str, dict[int, int]]) -> ArmOutcomes:
    requests, errors, blocks = (
        counts.get(kind, {}).get(0, 0) for kind in ("requests", "errors", "blocks")
    )
    latencies, scores = counts.get("latency", {}), counts.get("scores", {})
    return ArmOutcomes(requests, errors, blocks, latencies, scores)


def _fetch(url: str, timeout_seconds: float) -> str:
    """GET <url>/metrics without redirects, proxies or retries."""
    parts = urlsplit(url)
    if parts.scheme != "http" or not parts.hostname:
        raise UnavailableError(f"{url!r} is not the http:// address of a gateway")
    connection = http.client.HTTPConnection(
        parts.hostname, parts.port or 80, timeout=timeout_seconds
    )
    try:
        connection.request("GET", parts.path.rstrip("/") + "/metrics")
        answer = connection.getresponse()
        content = answer.read(SCRAPE_BYTES_MAX)
    except (OSError, http.client.HTTPException) as error:
        raise UnavailableError(
            f"no metrics from {url}: {error or type(error).__name__}; is the gateway running?"
        ) from error
    finally:
        connection.close()
    if answer.status != 200:
        raise UnavailableError(f"{url}/metrics answered {answer.status}; is it a Serin gateway?")
    return content.decode("utf-8", "replace")


def _series(text: str) -> Iterator[tuple[str, Labels, float]]:
    """Every sample line of Prometheus' text format that belongs to the gateway.

    Raises UnavailableError for a line that cannot be read: a half page must not look like resets.
    """
    lines = text.splitlines(keepends=True)
    if not lines or not lines[-1].endswith("\n") or not any(PREFIX in line for line in lines):
        raise UnavailableError("the metrics are empty, cut off, or not a gateway's; scrape again")
    for line in lines:
        if not line.startswith(PREFIX):
            continue
        name, brace, rest = line.partition("{")
        try:
            if brace:
                labels, value = _labels(rest)
            else:
                name, _, value = line.partition(" ")
                labels = {}
            number = float(value.split()[0])
        except (ValueError, IndexError) as error:
            raise UnavailableError(f"unreadable metric {line.strip()[:200]!r}") from error
        if math.isfinite(number):
            yield name, labels, number


def _labels(text: str) -> tuple[dict[str, str], str]:
    """Parse `a="b",c="d"} 1`: the labels and what follows. Raises ValueError."""
    labels: dict[str, str] = {}
    while not text.startswith("}"):
        name, equals, text = text.partition('="')
        if not equals:
            raise ValueError("label without value")
        value = []
        while True:
            end = text.index('"')
            escape = text.find("\\", 0, end)
            if escape < 0:
                value.append(text[:end])
                text = text[end + 1 :]
                break
            value.append(text[:escape])
            value.append({"n": "\n"}.get(text[escape + 1], text[escape + 1]))
            text = text[escape + 2 :]
        labels[name.lstrip(",").strip()] = "".join(value)
    return labels, text[1:]
