"""The health matrix's figures out of counters: rates, shares and drops over a window. Pure.

A counter that fell began anew with its process, as in Prometheus' increase().
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from core.contracts import LATENCY_BUCKETS_SECONDS, Figure
from core.counters import histogram_quantile
from validation.health import Reading
from validation.health_config import HealthConfig, Metric

QUANTILE = 0.95
DEVIATIONS = 4.0
"""Shares drawn at random stay within so many standard deviations but once in 16,000 looks."""
BUCKETS_PER_WEEK = 28
MALFORMED = ("invalid_body", "body_too_slow", "body_too_large", "wrong_method")
"""The gateway's reasons for refusals that a request's form is to blame for."""
REFUSED_ILLEGAL = ("failed_authentication", "malformed", "filtered")
"""Illegal requests that are no part of `requests`. Those that the request filter holds back are
illegal too: else the filter, once on, would hide what it was turned on for."""
COUNTED: tuple[Metric, ...] = (
    "request_rate", "latency_p95_seconds", "illegal_request_share", "predictor_exits",
    "unscanned_bytes", "routing_share_error",
)  # fmt: skip


class Look(msgspec.Struct, frozen=True):
    """Monotone counters at one time, by name; what nobody told is not in it.

    Names: requests, blocked, failed_authentication, malformed, filtered, exits, and by family
    unscanned_bytes:<predictor>, bucket:<index> of the latency, draws:<arm>:<revision>.
    """

    time_seconds: float
    counts: dict[str, float]
    declared_share: float | None = None
    wanted_share: float | None = None
    """The canary's share that the gateway declares, and that the service's status says."""


@dataclass(frozen=True, slots=True)
class Score:
    """Scores of one version from one source within one part of a week."""

    version: str
    source: str
    bucket: int
    count: float
    total: float


@dataclass(frozen=True, slots=True)
class Increase:
    """What was counted between two looks; a name that either of them lacks is unknown."""

    seconds: float
    counts: Mapping[str, float] = field(default_factory=dict)

    def of(self, *names: str) -> float | None:
        """The sum of these counts; None when one is unknown."""
        values = [self.counts.get(name) for name in names]
        known = [value for value in values if value is not None]
        return sum(known) if len(known) == len(values) else None

    def of_family(self, family: str) -> float | None:
        """The sum over a family's names; None when none of them is known."""
        known = [value for name, value in self.counts.items() if _family(name) == family]
        return sum(known) if known else None


def increase(looks: Sequence[Look], window_seconds: float) -> Increase | None:
    """Return what was counted over the last window; None before the second look.

    It begins with the last look that is a window old, or with the first one there is. Who is
    silent for a look is compared with what was told before; a name that is new in a family that
    was told before began at 0.
    """
    if len(looks) < 2:
        return None
    now = looks[-1].time_seconds
    old = [at for at, look in enumerate(looks[:-1]) if now - look.time_seconds >= window_seconds]
    first = old[-1] if old else 0
    grown: dict[str, float] = {}
    told = dict(looks[first].counts)
    for later in looks[first + 1 :]:
        families = {_family(name) for name in told} - {""}
        for name, value in later.counts.items():
            before = told.get(name, 0.0 if _family(name) in families else value)
            step = value - before if value >= before else value
            grown[name] = grown.get(name, 0.0) + step
        told |= later.counts
    return Increase(now - looks[first].time_seconds, grown)


def counted_readings(config: HealthConfig, looks: Sequence[Look]) -> dict[str, Reading]:
    """Return the readings of all metrics that come from counters."""
    windows = {
        condition.metric: row.window_seconds
        for row in config.rows.values()
        for condition in row.conditions
    }
    readings: dict[str, Reading] = {}
    for metric in COUNTED:
        if metric in windows:
            compared = _same_share(looks) if metric == "routing_share_error" else looks
            grown = increase(compared, windows[metric])
            if grown is None or grown.seconds <= 0:
                readings[metric] = Reading(why="counted from the next look on")
            else:
                readings[metric] = _counted(metric, grown, looks[-1], config.requests_min)
    return readings


def _counted(metric: Metric, grown: Increase, look: Look, requests_min: int) -> Reading:
    requests = grown.of("requests")
    match metric:
        case "predictor_exits":
            return _plain(grown.of("exits"), "the control plane does not answer")
        case "unscanned_bytes":
            return _plain(grown.of_family("unscanned_bytes"), "no predictor counts them")
    if requests is None:
        return Reading(why="the gateway does not answer")
    detail: dict[str, Figure] = {"requests": requests, "seconds": round(grown.seconds, 1)}
    match metric:
        case "request_rate":
            return Reading(requests / grown.seconds, detail=detail)
        case "latency_p95_seconds":
            if requests < requests_min:
                return Reading(0.0, detail=detail)
            return Reading(_p95(grown), detail=detail)
        case "routing_share_error":
            return _share_error(grown, look, detail)
    illegal = {name: grown.of(name) or 0.0 for name in ("blocked", *REFUSED_ILLEGAL)}
    asked = requests + sum(illegal[name] for name in REFUSED_ILLEGAL)
    value = sum(illegal.values()) / asked if asked >= requests_min else 0.0
    return Reading(value, detail={**detail, **illegal})


def _same_share(looks: Sequence[Look]) -> Sequence[Look]:
    """Return the looks since the share that is declared now: others' draws say nothing of it."""
    first = len(looks)
    while first and looks[first - 1].declared_share == looks[-1].declared_share:
        first -= 1
    return looks[first:]


def _family(name: str) -> str:
    """What stands before the first colon of a name; "" for a counter that stands alone."""
    return name.partition(":")[0] if ":" in name else ""


def _plain(value: float | None, why: str) -> Reading:
    return Reading(value, why="" if value is not None else why)


def _p95(grown: Increase) -> float | None:
    counts = [grown.counts.get(f"bucket:{at}", 0.0) for at in range(len(LATENCY_BUCKETS_SECONDS))]
    total, cumulative = 0.0, []
    for count in counts:
        total += count
        cumulative.append(total)
    whole = total + grown.counts.get(f"bucket:{len(counts)}", 0.0)
    value = histogram_quantile(QUANTILE, cumulative, whole) if whole else math.nan
    return value if math.isfinite(value) else None


def _share_error(grown: Increase, look: Look, detail: dict[str, Figure]) -> Reading:
    """How far the canary's share is from what the service says: declared, or drawn beyond chance.

    Only draws since the present share was declared count.
    """
    declared, wanted = look.declared_share, look.wanted_share
    if declared is None or wanted is None:
        return Reading(why="gateway or control plane does not answer")
    drawn = {
        arm: sum(v for name, v in grown.counts.items() if name.startswith(f"draws:{arm}:"))
        for arm in ("stable", "canary")
    }
    draws = sum(drawn.values())
    error = abs(declared - wanted)
    if 0 < declared < 1 and draws:
        noise = DEVIATIONS * math.sqrt(declared * (1 - declared) / draws)
        error = max(error, abs(drawn["canary"] / draws - declared) - noise)
    shown: dict[str, Figure] = {"declared": declared, "wanted": wanted, "draws": draws}
    return Reading(error, detail={**detail, **shown})


def bucket_of(time_seconds: float, window_seconds: float) -> int:
    """The part of a week that a time is in; a week is `window_seconds` long."""
    return int(time_seconds // (window_seconds / BUCKETS_PER_WEEK))


def quality_drop(
    scores: Sequence[Score],
    version: str,
    stable_since: float,
    now: float,
    window_seconds: float,
    scores_min: int,
) -> Reading:
    """Return the largest drop, over sources, of a version's mean score against the week before.

    This week begins when the version became stable, at most a window ago; the week before is the
    window before that, whichever version it was about.
    """
    here = bucket_of(max(now - window_seconds, stable_since), window_seconds)
    earliest = here - BUCKETS_PER_WEEK
    drops: dict[str, float] = {}
    detail: dict[str, Figure] = {"version": version}
    for source in sorted({score.source for score in scores}):
        mine = [s for s in scores if s.source == source]
        week = _mean([s for s in mine if s.bucket >= here and s.version == version], scores_min)
        before = _mean([s for s in mine if earliest <= s.bucket < here], scores_min)
        detail |= {f"{source}_mean": week, f"{source}_mean_before": before}
        if week is not None and before:
            drops[source] = (before - week) / before
    if not drops:
        return Reading(why="too few scores in one of the two weeks", detail=detail)
    return Reading(max(drops.values()), detail=detail)


def _mean(scores: Sequence[Score], scores_min: int) -> float | None:
    count = sum(score.count for score in scores)
    return sum(score.total for score in scores) / count if count >= scores_min else None


def with_score(scores: Sequence[Score], new: Score) -> tuple[Score, ...]:
    """Add to the scores of one part of a week, and forget what is older than two weeks."""
    kept = [s for s in scores if s.bucket >= new.bucket - 2 * BUCKETS_PER_WEEK - 1]
    for at, score in enumerate(kept):
        if (score.version, score.source, score.bucket) == (new.version, new.source, new.bucket):
            count, total = score.count + new.count, score.total + new.total
            kept[at] = Score(score.version, score.source, score.bucket, count, total)
            return tuple(kept)
    return (*kept, new)
