"""Compares canary judges on the same seeded streams: false rollbacks, detection, exposure.

`python benchmarks/canary.py [--quick] [--json]`; the full run writes results/canary.json.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.canary_judges import (
    CONSTANT,
    SHAPES,
    Betting,
    Classic,
    Effect,
    FixedHorizon,
    Judge,
    MannWhitney,
    Shape,
    make_stream,
)

RESULTS = Path(__file__).resolve().parent / "results" / "canary.json"
HEALTHY = Effect("A/A")
EFFECTS = (
    Effect("p95 +30 %", slower=1.3),
    Effect("p95 +50 %", slower=1.5),
    Effect("p95 +100 %", slower=2.0),
    Effect("errors 1 %", failing=0.01),
    Effect("errors 2 %", failing=0.02),
    Effect("errors 5 %", failing=0.05),
    Effect("errors 100 %", failing=1.0),
    Effect("quality -5 %", quality_drop=0.05),
    Effect("quality -15 %", quality_drop=0.15),
)
SECONDS_BY_RATE = {1: 14_400.0, 10: 2_400.0, 100: 600.0}
PUBLISHED_SHARE = 0.185
"""The share at which the published 222 canary requests come in the published 2 minutes at 10/s."""
PUBLISHED = {"p95 +100 %": 120.0, "errors 5 %": 180.0, "errors 100 %": 10.0, "p95 +50 %": 1140.0}


@dataclass(frozen=True, slots=True)
class Job:
    """One stream to be judged by everyone."""

    seed: int
    rate: int
    shape: Shape
    effect: Effect


def judges() -> list[Judge]:
    """Return the judges that are compared."""
    return [Betting(), Classic(), MannWhitney(), FixedHorizon()]


def judge_job(job: Job) -> list[dict[str, Any]]:
    """Return one row per judge for one stream."""
    seconds = SECONDS_BY_RATE[job.rate]
    if job.effect is HEALTHY or job.effect == HEALTHY:
        seconds = min(seconds, 20_000 / job.rate)
    stream = make_stream(job.seed, job.rate, seconds, job.shape, job.effect)
    scored = job.effect.quality_drop > 0
    rows = []
    for judge in judges():
        started = time.process_time()
        outcome = judge.replay(stream, scored)
        rows.append(
            {
                "judge": judge.name,
                "rate": job.rate,
                "shape": job.shape.name,
                "effect": job.effect.name,
                "share": job.shape.shares[-1][1] if job.effect != HEALTHY else "all shapes",
                "rolled_back": outcome.seconds is not None,
                "seconds": outcome.seconds,
                "canary_requests": outcome.canary_requests,
                "cpu_seconds": time.process_time() - started,
            }
        )
    return rows


def plan(quick: bool) -> list[Job]:
    """Return every stream: A/A runs over all shapes, then each effect at each rate."""
    healthy = 2 if quick else 140
    repeats = 1 if quick else 15
    rates = (10,) if quick else (1, 10, 100)
    jobs = [
        Job(10_000 * rate + seed, rate, shape, HEALTHY)
        for rate in rates
        for shape in SHAPES
        for seed in range(healthy)
    ]
    published = Shape("constant", ((0.0, PUBLISHED_SHARE),))
    jobs += [
        Job(90_000_000 + 10_000 * rate + seed, rate, shape, effect)
        for rate in rates
        for shape in (Shape("constant", CONSTANT), *([published] if rate == 10 else []))
        for effect in EFFECTS
        for seed in range(repeats)
    ]
    return jobs


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per judge, effect and rate: shares, medians, repeats, CPU seconds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        key = (row["judge"], row["effect"], row["share"], row["rate"])
        groups.setdefault(key, []).append(row)
    found = []
    for (judge, effect, share, rate), members in groups.items():
        caught = [row for row in members if row["rolled_back"]]
        found.append(
            {
                "judge": judge,
                "effect": effect,
                "canary_share": share,
                "requests_per_second": rate,
                "repeats": len(members),
                "rolled_back_share": len(caught) / len(members),
                "seconds_median": _median([row["seconds"] for row in caught]),
                "canary_requests_median": _median([row["canary_requests"] for row in caught]),
                "cpu_seconds": round(sum(row["cpu_seconds"] for row in members), 2),
            }
        )
    return found


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def goals(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the goals: false rollbacks of this judge, and its published detection times."""
    ours = [row for row in measured if row["judge"] == "sequential"]
    healthy = [row for row in ours if row["effect"] == HEALTHY.name]
    worst = max((row["rolled_back_share"] for row in healthy), default=None)
    found = [
        {
            "name": "false rollbacks, largest share at any rate",
            "value": worst,
            "goal": 0.01,
            "met": worst is not None and worst <= 0.01,
        }
    ]
    for row in ours:
        limit = PUBLISHED.get(row["effect"])
        if limit is None or row["canary_share"] != PUBLISHED_SHARE:
            continue
        value = row["seconds_median"]
        found.append(
            {
                "name": f"seconds to roll back {row['effect']} at 10/s, share {PUBLISHED_SHARE:g}",
                "value": value,
                "goal": limit,
                "met": value is not None and value <= limit,
            }
        )
    return found


def draw(measured: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of runs rolled back, by effect and judge, at 10 requests/s."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(10, 5))
    effects = [HEALTHY.name, *(effect.name for effect in EFFECTS)]
    names = [judge.name for judge in judges()]
    for offset, name in enumerate(names):
        shares = {
            row["effect"]: row["rolled_back_share"]
            for row in measured
            if row["judge"] == name
            and row["requests_per_second"] == 10
            and row["canary_share"] != PUBLISHED_SHARE
        }
        places = [index + 0.2 * offset for index in range(len(effects))]
        axes.bar(places, [shares.get(effect, 0.0) for effect in effects], 0.2, label=name)
    axes.set_xticks([index + 0.3 for index in range(len(effects))], effects, rotation=30)
    axes.set(ylabel="share of runs rolled back", title="canary judges at 10 requests/s, 5 % share")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run the comparison and print or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few streams, under two minutes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    started = time.monotonic()
    jobs = plan(options.quick)
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.processes) as pool:
        for index, found in enumerate(pool.map(judge_job, jobs, chunksize=4), 1):
            rows.extend(found)
            if index % 50 == 0:
                print(f"{index}/{len(jobs)} streams", file=sys.stderr)
    measured = summarise(rows)
    report = {
        "benchmark": "canary",
        "quick": options.quick,
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
        },
        "wall_seconds": round(time.monotonic() - started, 1),
        "effects": [asdict(effect) for effect in (HEALTHY, *EFFECTS)],
        "measured": measured,
        "goals": goals(measured),
    }
    if not options.quick:
        RESULTS.write_text(json.dumps(report, indent=1) + "\n")
        draw(measured, RESULTS.with_suffix(".png"))
    if options.json:
        print(json.dumps(report))
        return
    for row in measured:
        print(row)
    for goal in report["goals"]:
        print(goal)


if __name__ == "__main__":
    main()
