"""`serin judge`: replays a file of requests through the canary judge and prints its verdict.

Knows the file's columns and the share schedule; the mathematics is in validation/judge.py.
"""

import csv
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from core.contracts import CanaryDecision
from core.errors import InputError
from validation.judge import MetricName, Observation, SequentialConfig, SequentialJudge

COLUMNS = ("t", "arm", "latency_s", "error")
ARMS = {"stable": False, "canary": True}
TRUE, FALSE = {"1", "true", "yes", "1.0"}, {"0", "false", "no", "0.0"}
PLOT_POINTS_MAX = 2_000
DEFAULTS = SequentialConfig()


@dataclass(slots=True)
class Replay:
    """What the replay found: the final decision, where, and the curves for the plot."""

    decision: CanaryDecision
    request_index: int = -1
    time_seconds: float = 0.0
    curves: list[tuple[float, CanaryDecision]] = field(default_factory=list)


def judge(
    file: Annotated[
        Path, typer.Argument(help="CSV: t, arm (stable|canary), latency_s, error, ...")
    ],
    shares: Annotated[
        str, typer.Option(help="canary share by time: SECONDS:SHARE,... from the first t on")
    ] = "0:0.05",
    json_output: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
    plot: Annotated[Path | None, typer.Option(help="draw the evidence to a PNG")] = None,
    min_seconds: Annotated[float, typer.Option(help="no promotion before")] = DEFAULTS.seconds_min,
    max_seconds: Annotated[float, typer.Option(help="inconclusive after")] = DEFAULTS.seconds_max,
    p95_ratio: Annotated[float, typer.Option(help="allowed p95 ratio")] = DEFAULTS.p95_ratio,
    error_tolerance: Annotated[
        float, typer.Option(help="allowed rise of the error share")
    ] = DEFAULTS.error_tolerance,
    quality_tolerance: Annotated[
        float, typer.Option(help="allowed fall of the mean score")
    ] = DEFAULTS.quality_tolerance,
    alpha_rollback: Annotated[
        float, typer.Option(help="chance of a false rollback")
    ] = DEFAULTS.alpha_rollback,
    alpha_promote: Annotated[
        float, typer.Option(help="chance of a false promotion")
    ] = DEFAULTS.alpha_promote,
) -> None:
    """Replay a recorded canary and print: promote, rollback, continue or inconclusive."""
    config = SequentialConfig(
        seconds_min=min_seconds,
        seconds_max=max_seconds,
        p95_ratio=p95_ratio,
        error_tolerance=error_tolerance,
        quality_tolerance=abs(quality_tolerance),
        alpha_rollback=alpha_rollback,
        alpha_promote=alpha_promote,
    )
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            replay = replay_stream(stream, config, parse_shares(shares), keep_curves=bool(plot))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error
    if plot is not None:
        draw(replay, plot)
    found = as_json(replay)
    typer.echo(json.dumps(found) if json_output else as_text(found))


def parse_shares(text: str) -> list[tuple[float, float]]:
    """Parse `0:0.05,1200:0.15` into [(seconds after the first request, share)], times rising."""
    try:
        pairs = [part.split(":") for part in text.split(",")]
        schedule = [(float(seconds), float(share)) for seconds, share in pairs]
    except ValueError as error:
        raise InputError(f"--shares {text!r}: write SECONDS:SHARE,SECONDS:SHARE") from error
    times = [seconds for seconds, _ in schedule]
    if times != sorted(set(times)) or not all(0 <= share <= 1 for _, share in schedule):
        raise InputError(f"--shares {text!r}: times must rise and shares lie in 0..1")
    return schedule


def replay_stream(
    stream: TextIO,
    config: SequentialConfig,
    schedule: list[tuple[float, float]],
    keep_curves: bool = False,
) -> Replay:
    """Feed a CSV's requests in file order until the judge decides; see `serin judge --help`."""
    reader = csv.DictReader(stream)
    header = reader.fieldnames or []
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise InputError(f"the file lacks the column(s) {', '.join(missing)}; it has {header}")
    metrics: tuple[MetricName, ...] = ("errors", "latency")
    if "quality" in header:
        metrics = (*metrics, "quality")
    judge_ = SequentialJudge(config, metrics)
    replay = Replay(judge_.decide())
    for index, (seen, first) in enumerate(_observations(reader)):
        share = share_at(schedule, seen.time_seconds - first)
        judge_.observe(seen, share)
        replay.decision = judge_.decide()
        replay.request_index, replay.time_seconds = index, seen.time_seconds
        if keep_curves:
            _keep(replay, judge_.elapsed_seconds)
        if replay.decision.decision != "continue":
            break
    return replay


def share_at(schedule: list[tuple[float, float]], seconds: float) -> float:
    """Return the declared share at a time; 0 before the schedule's first entry."""
    passed = [share for start, share in schedule if seconds >= start]
    return passed[-1] if passed else 0.0


def as_json(replay: Replay) -> dict[str, Any]:
    """Return the one JSON object that `serin judge --json` prints; infinities become null."""
    evidence: dict[str, dict[str, Any]] = {}
    for key, value in replay.decision.figures.items():
        metric, _, name = key.partition(".")
        finite = not isinstance(value, float) or math.isfinite(value)
        evidence.setdefault(metric, {})[name] = value if finite else None
    known_time = math.isfinite(replay.time_seconds)
    return {
        "verdict": replay.decision.decision,
        "request_index": replay.request_index,
        "t": replay.time_seconds if known_time else None,
        "reason": replay.decision.reason,
        "evidence": evidence,
    }


def as_text(found: dict[str, Any]) -> str:
    """Return the verdict for people: one line, then one line per metric."""
    lines = [f"{found['verdict']} at request {found['request_index']}: {found['reason']}"]
    for metric, values in found["evidence"].items():
        shown = "  ".join(
            f"{name} {value:.2f}" if isinstance(value, float) else f"{name} {value}"
            for name, value in values.items()
        )
        lines.append(f"  {metric:<12} {shown}")
    return "\n".join(lines)


def draw(replay: Replay, path: Path) -> None:
    """Draw each metric's evidence, as logarithms, against its two thresholds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5))
    names = sorted(key for key in replay.decision.figures if ".log_evidence" in key)
    seconds = [time for time, _ in replay.curves]
    for key in names:
        axes.plot(seconds, [made.figures[key] for _, made in replay.curves], label=key, lw=1)
    for key in (key for key in replay.decision.figures if ".log_threshold" in key):
        axes.axhline(float(replay.decision.figures[key] or 0), color="grey", lw=0.6, ls="--")
    axes.set(xlabel="seconds", ylabel="log evidence", title=replay.decision.reason)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _keep(replay: Replay, seconds: float) -> None:
    replay.curves.append((seconds, replay.decision))
    if len(replay.curves) > 2 * PLOT_POINTS_MAX:
        replay.curves = replay.curves[::2]


def _observations(rows: "csv.DictReader[str]") -> Iterator[tuple[Observation, float]]:
    first = math.nan
    for row in rows:
        arm = (row["arm"] or "").strip().lower()
        if arm not in ARMS:
            raise InputError(f"line {rows.line_num}: arm {arm!r} is neither stable nor canary")
        time_seconds = _number(row["t"])
        now = math.nan if time_seconds is None else time_seconds
        first = now if math.isnan(first) else first
        yield (
            Observation(
                time_seconds=now,
                canary=ARMS[arm],
                latency_seconds=_number(row["latency_s"]),
                error=_flag(row["error"]),
                quality=_number(row.get("quality")),
            ),
            first,
        )


def _number(text: str | None) -> float | None:
    try:
        value = float((text or "").strip())
    except ValueError:
        return None
    return None if math.isnan(value) else value


def _flag(text: str | None) -> bool | None:
    word = (text or "").strip().lower()
    return True if word in TRUE else False if word in FALSE else None
