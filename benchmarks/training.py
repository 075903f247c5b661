"""Training an adapter: our loop against transformers' Trainer with peft and padding, side by side.

`python benchmarks/training.py [--quick] [--json] [--data FILE]`. Same rows, base, adapter, AdamW,
rates and threads; every training is a process of its own, repeats interleaved, a seed each,
medians. The full run writes results/training.json and a plot.
"""

import argparse
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.serving_models import SAMPLE, read_rows
from training.base import BaseRef, build_base
from training.config import BaseConfig, TrainConfig
from training.jobs import write_job

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
OURS, COMPILED, TRAINER = "ours", "compiled", "trainer"
WHOLE = "trainer, padded to the longest row"
RUN_SECONDS_MAX = 1200
SPEED_GOAL = 1.5
STANDARD_ERRORS = 2
LOSS_SHARE = 0.05
"""Losses this close to each other are taken as the same even where the seeds agree better."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is trained, and how often each kind."""

    rows: int
    epochs: int
    repeats: Mapping[str, int]


QUICK = Plan(600, 2, {OURS: 2, TRAINER: 2})
FULL = Plan(2400, 3, {OURS: 5, TRAINER: 5, WHOLE: 1, COMPILED: 1})


def train(kind: str, seed: int, plan: Plan, base: BaseRef, rows: list[Any], home: Path) -> Any:
    """Run one training in its process; return what it measured."""
    folder = home / f"{kind[:8]}-{seed}-{len(kind)}"
    config = TrainConfig(epochs=plan.epochs, seed=seed, threads=1, device="cpu")
    write_job(folder / "job.json", config, base, rows, [], None, folder / "adapter")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.support.training_runs", kind, str(folder / "job.json")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"{kind} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(plan: Plan, data: Path) -> dict[str, Any]:
    """Train every kind with every seed; return the report."""
    import torch

    began = time.monotonic()
    torch.set_num_threads(1)
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in plan.repeats}
    with tempfile.TemporaryDirectory(prefix="training-") as folder:
        home = Path(folder)
        rows = read_rows(data)[: plan.rows]
        base = build_base(BaseConfig(epochs=1, threads=1, device="cpu"), rows, home / "cache")
        for seed in range(max(plan.repeats.values())):
            for kind, repeats in plan.repeats.items():
                if seed < repeats:
                    found[kind].append(train(kind, seed, plan, base, rows, home))
    return {
        "benchmark": "training",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "data": data.name,
        "rows": len(rows),
        "epochs": plan.epochs,
        "measured": [_row(kind, repeats) for kind, repeats in found.items()],
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(found),
    }


def _row(kind: str, repeats: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    return {
        "row": kind,
        "repeats": len(repeats),
        **{name: round(_median(repeats, name), 3) for name in repeats[0]},
        "final_losses": [round(repeat["final_loss"], 4) for repeat in repeats],
    }


def _median(repeats: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(repeat[name] for repeat in repeats)


def goals(found: Mapping[str, Sequence[Mapping[str, float]]]) -> list[dict[str, Any]]:
    """Return the goals: speed by both clocks, the loss, and memory, against the Trainer."""
    ours, theirs = found[OURS], found[TRAINER]
    rows = []
    for clock in ("second", "cpu_second"):
        ratio = round(
            _median(ours, f"tokens_per_{clock}") / _median(theirs, f"tokens_per_{clock}"), 2
        )
        name = f"tokens per {clock.replace('_', ' ').replace('cpu', 'CPU')}, times the Trainer's"
        rows.append({"name": name, "value": ratio, "goal": SPEED_GOAL, "met": ratio >= SPEED_GOAL})
    losses = [[repeat["final_loss"] for repeat in kind] for kind in (ours, theirs)]
    above = round(statistics.mean(losses[0]) - statistics.mean(losses[1]), 4)
    errors = [statistics.stdev(kind) / len(kind) ** 0.5 for kind in losses]
    noise = max(STANDARD_ERRORS * math.hypot(*errors), LOSS_SHARE * statistics.mean(losses[1]))
    name = "mean final loss above the Trainer's; the goal is two standard errors, at least 5 %"
    rows.append({"name": name, "value": above, "goal": round(noise, 4), "met": above <= noise})
    memory = round(_median(ours, "peak_megabytes") / _median(theirs, "peak_megabytes"), 3)
    name = "peak memory, share of the Trainer's"
    return [*rows, {"name": name, "value": memory, "goal": 1.0, "met": memory <= 1.0}]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw tokens per second by both clocks."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["measured"]
    figure, axes = pyplot.subplots(figsize=(8, 3))
    places = range(len(rows))
    for offset, clock in ((-0.2, "second"), (0.2, "cpu_second")):
        values = [row[f"tokens_per_{clock}"] for row in rows]
        label = f"per {clock.replace('_', ' ')}"
        axes.barh([place + offset for place in places], values, 0.4, label=label)
    axes.set_yticks(list(places), [row["row"] for row in rows])
    axes.set(xlabel=f"tokens trained, {report['rows']} rows of {report['data']}")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rows, repeats and kinds")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--data", type=Path, default=SAMPLE, help="JSON lines: id, created_at, text, intent, domain"
    )
    options = parser.parse_args()
    report = run(QUICK if options.quick else FULL, options.data)
    if not options.quick:
        (RESULTS / "training.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "training.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
