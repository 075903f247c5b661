"""How far the evidence of a running canary has come: the judge's last decision, for people.

Reads the ledger only; asking changes nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rollout.times import to_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType

    from rollout.ledger import Ledger
    from rollout.release import Release

BAR_CHARACTERS = 20


@dataclass(frozen=True, slots=True)
class MetricView:
    """One metric: evidence as a share of what is needed (1 decides), and what it rests on.

    `difference` estimates canary minus stable, `requests_left` the requests until it promotes at
    its pace so far (None: not growing), `pairs` the shadow pairs judged beside the requests.
    """

    promote: float
    roll_back: float
    difference: float | None
    tolerance: float
    canary_requests: int
    stable_requests: int
    requests_left: int | None
    pairs: int = 0


@dataclass(frozen=True, slots=True)
class EvidenceView:
    """The judge's last decision about a release, and the time left to it in seconds."""

    decision: str
    reason: str
    time_seconds: float
    metrics: dict[str, MetricView]
    seconds_to_shortest: float
    seconds_to_limit: float


def evidence_view(ledger: "Ledger", release: "Release") -> EvidenceView | None:
    """Return the last decision about a running release; None before the first."""
    kept = ledger.last_decision(release)
    if kept is None:
        return None
    decision = kept["decision"]
    figures, config = decision["figures"], (decision.get("inputs") or {}).get("config", {})
    names = [key.partition(".")[0] for key in figures if key.endswith(".log_evidence_promote")]
    began = to_seconds(release.started_at) if release.started_at else kept["time_seconds"]
    passed = kept["time_seconds"] - began
    return EvidenceView(
        decision=decision["decision"],
        reason=decision["reason"],
        time_seconds=kept["time_seconds"],
        metrics={name: _metric(name, figures) for name in names},
        seconds_to_shortest=max(0.0, config.get("seconds_min", 0.0) - passed),
        seconds_to_limit=max(0.0, config.get("seconds_max", 0.0) - passed),
    )


def _metric(name: str, figures: Mapping[str, Any]) -> MetricView:
    def reached(side: str) -> float:
        value, goal = (
            figures[f"{name}.log_evidence_{side}"],
            figures[f"{name}.log_threshold_{side}"],
        )
        share = value / goal if isinstance(value, int | float) and goal else 0.0
        return min(1.0, max(0.0, share))

    return MetricView(
        promote=reached("promote"),
        roll_back=reached("rollback"),
        difference=figures.get(f"{name}.difference"),
        tolerance=figures[f"{name}.tolerance"],
        canary_requests=figures[f"{name}.canary_requests"],
        stable_requests=figures[f"{name}.stable_requests"],
        requests_left=figures.get(f"{name}.requests_left"),
        pairs=figures.get(f"{name}.pairs", 0),
    )


def evidence_table(seen: EvidenceView) -> "RenderableType":
    """Return bars toward promotion and rollback, one line a metric."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(
        "metric", "toward promote", "toward roll back", "difference", "requests", "left",
        box=None, header_style="dim",
    )  # fmt: skip
    for name, metric in seen.metrics.items():
        difference = "-" if metric.difference is None else f"{metric.difference:+.4f}"
        requests = f"{metric.canary_requests} + {metric.stable_requests}"
        table.add_row(
            name,
            Text(_bar(metric.promote), style="green"),
            Text(_bar(metric.roll_back), style="red"),
            f"{difference} of {metric.tolerance:g}",
            requests + (f", {metric.pairs} pairs" if metric.pairs else ""),
            "-" if metric.requests_left is None else str(metric.requests_left),
        )
    left = f"{_minutes(seen.seconds_to_shortest)} to the shortest time, "
    left += f"{_minutes(seen.seconds_to_limit)} to the limit"
    said = Text(f"judge: {seen.decision}: {seen.reason} ({left})")
    return Group(said, table) if seen.metrics else said


def _bar(share: float) -> str:
    filled = round(BAR_CHARACTERS * share)
    return "█" * filled + "░" * (BAR_CHARACTERS - filled) + f" {share:4.0%}"


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
