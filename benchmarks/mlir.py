"""How fast a text classifier compiled through MLIR answers, against eager torch on one core.

`python benchmarks/mlir.py [--quick] [--json]`. The same seeded 4096-256-64-2 classifier on the
same rows, all variants in turn so that a busy machine slows each alike; the pass list is varied.
The full run adds torch's own compiler and writes results/mlir.json and a plot.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, get_args

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch

from training.classifier import ClassifierConfig, TrainedClassifier, new_classifier
from training.classifier_graph import (
    GraphConfig,
    Pass,
    compile_graph,
    export_module,
    largest_difference,
    load_graph,
)

RESULTS = Path(__file__).resolve().parent / "results"
ROWS = (1, 16)
ROUNDS, ROUNDS_QUICK = 3000, 600
WARM_UP_ROUNDS = 50
TEXT_BUCKETS = 300
"""Features of a text of about a hundred characters."""
DIFFERENCE_GOAL = 1e-5
RATIO_GOAL = 1.0
EAGER, INDUCTOR, DEFAULT = "eager torch", "torch.compile", "MLIR, default passes"

Run = Callable[[], Any]


def classifier() -> TrainedClassifier:
    """The benchmark's model: its speed does not depend on what it learned."""
    config = ClassifierConfig()
    torch.manual_seed(config.seed)
    layers = torch.nn.Sequential(new_classifier(config, 2), torch.nn.Softmax(dim=-1))
    return TrainedClassifier(layers.eval(), ("benign", "toxic"), config.features)


def variants(rows: int) -> dict[str, GraphConfig]:
    """The compiler's settings that are compared."""
    default = GraphConfig(rows=rows)
    return {
        "MLIR, no passes": GraphConfig(rows=rows, passes=(), level="O0"),
        DEFAULT: default,
        "MLIR, all passes": GraphConfig(rows=rows, passes=get_args(Pass)),
        "MLIR, default passes, this processor": default.model_copy(update={"target_cpu": "host"}),
    }


def text_rows(rows: int, buckets: int) -> Any:
    """Rows as dense as a short text's."""
    generator = np.random.default_rng(0)
    made = np.zeros((rows, buckets), dtype=np.float32)
    for row in made:
        row[generator.choice(buckets, TEXT_BUCKETS, replace=False)] = TEXT_BUCKETS**-0.5
    return made


def measure(
    model: TrainedClassifier, rows: int, rounds: int, inductor: bool
) -> list[dict[str, Any]]:
    """Compile every variant, then time all of them in turn; return a row for each."""
    asked = text_rows(rows, model.features.buckets)
    tensor = torch.from_numpy(asked)
    calls: dict[str, Run] = {EAGER: lambda: model.module(tensor)}
    told: dict[str, dict[str, Any]] = {EAGER: {}}
    if inductor:
        began = time.perf_counter()
        compiled = torch.compile(model.module)
        compiled(tensor)
        told[INDUCTOR] = {"compile_seconds": round(time.perf_counter() - began, 2)}
        calls[INDUCTOR] = lambda: compiled(tensor)
    for name, config in variants(rows).items():
        began = time.perf_counter()
        graph = compile_graph(config, export_module(config, model))
        told[name] = {
            "compile_seconds": round(time.perf_counter() - began, 2),
            "bytes": len(graph),
            "largest_difference": largest_difference(config, model, graph),
        }
        calls[name] = partial(load_graph(graph), asked)
    return timed(calls, told, rows, rounds)


def timed(
    calls: dict[str, Run], told: dict[str, dict[str, Any]], rows: int, rounds: int
) -> list[dict[str, Any]]:
    """Call each in turn, `rounds` times; return medians in microseconds of wall and CPU time."""
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, call in calls.items():
            began, used = time.perf_counter(), time.process_time()
            call()
            if number >= WARM_UP_ROUNDS:
                cpu[name].append(1e6 * (time.process_time() - used))
                wall[name].append(1e6 * (time.perf_counter() - began))
    return [
        {
            "name": name,
            "rows": rows,
            "median_microseconds": round(statistics.median(wall[name]), 1),
            "p95_microseconds": round(statistics.quantiles(wall[name], n=20)[-1], 1),
            "cpu_median_microseconds": round(statistics.median(cpu[name]), 1),
            "repeats": rounds,
            **told[name],
        }
        for name in calls
    ]


def goals(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The default passes against eager torch, and every variant's outputs.

    CPU time is compared: a busy machine lengthens a call's wall time by whole time slices.
    """
    found = []
    for rows in ROWS:
        by_name = {
            row["name"]: row["cpu_median_microseconds"] for row in measured if row["rows"] == rows
        }
        ratio = round(by_name[DEFAULT] / by_name[EAGER], 3)
        found.append(
            {
                "name": f"median CPU time of {DEFAULT} over {EAGER}, {rows} texts a call",
                "value": ratio,
                "goal": RATIO_GOAL,
                "met": ratio <= RATIO_GOAL,
            }
        )
    largest = max(row.get("largest_difference", 0.0) for row in measured)
    met = largest <= DIFFERENCE_GOAL
    name = "largest difference of a probability from torch's"
    return [*found, {"name": name, "value": largest, "goal": DIFFERENCE_GOAL, "met": met}]


def report(rounds: int, inductor: bool) -> dict[str, Any]:
    """Measure all sizes on one thread."""
    began = time.monotonic()
    torch.set_num_threads(1)
    model = classifier()
    with torch.inference_mode():
        measured = [row for rows in ROWS for row in measure(model, rows, rounds, inductor)]
    return {
        "benchmark": "mlir",
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "load_average": round(os.getloadavg()[0], 1),
        },
        "model": "4096-256-64-2, float32, one thread",
        "measured": measured,
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(measured),
    }


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the medians, a panel for each number of texts a call."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(len(ROWS), 1, figsize=(7, 5))
    for axes, rows in zip(panels, ROWS, strict=True):
        shown = [row for row in found["measured"] if row["rows"] == rows]
        axes.barh([row["name"] for row in shown], [row["cpu_median_microseconds"] for row in shown])
        axes.axvline(shown[0]["cpu_median_microseconds"], linestyle=":", color="grey")
        axes.set(xlabel=f"median CPU microseconds a call of {rows} texts")
        axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats, no torch.compile")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    rounds = ROUNDS_QUICK if options.quick else ROUNDS
    found = report(rounds, inductor=not options.quick)
    if not options.quick:
        (RESULTS / "mlir.json").write_text(json.dumps(found, indent=1) + "\n")
        plot(found, RESULTS / "mlir.png")
    print(json.dumps(found) if options.json else json.dumps(found["goals"], indent=1))


if __name__ == "__main__":
    main()
