"""Draws a release's canary: the evidence of each metric over time, the share, the thresholds.

Derives the curves from the kept scrapes, as the judge saw them; decides nothing.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from core.contracts import CounterSample
from rollout.ledger import Ledger
from rollout.release import Release
from validation.canary import CanaryConfig, CanaryJudge

POINTS_MAX = 400
SIDES = (("promote", "toward promotion"), ("rollback", "toward rollback"))


def draw_release(ledger: Ledger, release: Release, path: Path) -> bool:
    """Draw the release's canary to a PNG; False when nothing was judged by bets in it."""
    kept = ledger.last_decision(release)
    inputs = (kept or {}).get("decision", {}).get("inputs")
    if not inputs:
        return False
    times, shares, curves = _curves(ledger, release, inputs["config"])
    if not curves:
        return False
    _draw(times, shares, curves, path, f"{release.release_id}: {release.state} {release.reason}")
    return True


def _curves(
    ledger: Ledger, release: Release, config: Mapping[str, Any]
) -> tuple[list[float], list[float], dict[str, list[float]]]:
    """Seconds, percent of canary share, and {metric.side: evidence / threshold} per scrape."""
    texts = [text for _, text in ledger.sample_texts(release.release_id)]
    every = max(1, len(texts) // POINTS_MAX)
    judge = CanaryJudge(CanaryConfig.model_validate(config))
    times: list[float] = []
    shares: list[float] = []
    curves: dict[str, list[float]] = {}
    for number, text in enumerate(texts):
        sample = msgspec.json.decode(text, type=CounterSample)
        judge.add(sample)
        if number % every and number != len(texts) - 1:
            continue
        times.append(sample.time_seconds)
        shares.append(100 * sample.share)
        for name, value in _reached(judge.decide().figures).items():
            curves.setdefault(name, []).append(value)
    return [time - times[0] for time in times], shares, curves


def _reached(figures: Mapping[str, Any]) -> dict[str, float]:
    """{metric.side: log evidence as a share of its threshold}, not below -0.5."""
    found = {}
    for key, value in figures.items():
        metric, _, side = key.partition(".log_evidence_")
        goal = figures.get(f"{metric}.log_threshold_{side}")
        if goal:
            found[f"{metric}.{side}"] = max(-0.5, value / goal)
    return found


def _draw(
    times: list[float],
    shares: list[float],
    curves: dict[str, list[float]],
    path: Path,
    title: str,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(3, 1, figsize=(8, 7), sharex=True, height_ratios=(3, 3, 1))
    for axes, (side, label) in zip(panels, SIDES, strict=False):
        for name, values in curves.items():
            if name.endswith(f".{side}"):
                axes.plot(times, values, label=name.partition(".")[0], linewidth=1.2)
        axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
        axes.set(ylabel=label, ylim=(-0.6, 1.6))
        axes.legend(fontsize=7, loc="upper left")
    panels[0].set_title(title[:90], fontsize=9)
    panels[2].step(times, shares, where="post", color="tab:orange")
    panels[2].set(ylabel="share %", xlabel="seconds", ylim=(0, 105))
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)
