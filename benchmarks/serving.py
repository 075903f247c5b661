"""Serving, one optimisation at a time, against one-by-one transformers on the same machine.

`python benchmarks/serving.py [--quick] [--json] [--trace FILE] [--shape NAME]`. Real predictor
processes, closed loops of 1 to 64 clients and a trace's arrivals; repeats interleaved over the
rows, medians. The full run adds a 135 M-parameter shape and writes results/serving.json and a plot;
with --shape it measures one shape anew and leaves the other's figures as they are.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.serving_clients import (
    Asked,
    closed_loop,
    figures,
    medians,
    open_loop,
)
from benchmarks.support.serving_goals import FINAL, NAIVE, VLLM, goals
from benchmarks.support.serving_plot import plot
from benchmarks.support.serving_predictors import MODEL, NotServingError, Predictor, Row
from benchmarks.support.serving_trace import (
    Arrival,
    PromptMaker,
    read_trace,
    scaled,
    synthetic_trace,
)
from observability.load import LoadConfig, LoadGenerator

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
BUILD_SECONDS_MAX = 1200
VLLM_ENVIRONMENT = ROOT / ".venv-vllm"
BUNDLES: dict[str, dict[str, Any]] = {
    "fp32": {"weight_precision": "fp32", "kv_cache_precision": "f32", "prefix_caching": False},
    "int8": {"weight_precision": "int8", "kv_cache_precision": "f32", "prefix_caching": False},
    "int8 u8": {"weight_precision": "int8", "kv_cache_precision": "u8", "prefix_caching": False},
    "all": {"weight_precision": "int8", "kv_cache_precision": "u8", "prefix_caching": True},
}
ONE = {"concurrency": 1}
STARTS = 3
OPEN_SHARE = 0.7
"""Of the saturation load: where a service is meant to work."""
TRACE_SAMPLE = 200


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured on one shape. A round is one answer of each client."""

    shape: str
    answer_tokens: int
    rounds: Mapping[int, int]
    rounds_batched: Mapping[int, int]
    repeats: Mapping[int, int]
    open_seconds: float
    naive_threads: int
    fixed_repeats: int
    quick: bool = False


QUICK = Plan("builtin", 64, {1: 8, 16: 2}, {1: 8, 16: 8}, {1: 1, 16: 2}, 6.0, 1, 1, True)
FULL = (
    Plan(
        "builtin", 64, {1: 10, 4: 5, 16: 3, 64: 2}, {1: 20, 4: 20, 16: 15, 64: 8},
        {1: 3, 4: 3, 16: 5, 64: 3}, 20.0, 1, 3,
    ),
    Plan(
        "135m", 16, {1: 3, 4: 1, 16: 1, 64: 1}, {1: 5, 4: 4, 16: 3, 64: 1},
        {1: 3, 4: 3, 16: 3, 64: 1}, 60.0, 2, 1,
    ),
)  # fmt: skip
"""On one thread the small model answers faster; the large one gets every core of the machine."""


def rows(plan: Plan) -> list[Row]:
    """Return what is compared, each row with one optimisation more than the one before."""
    found = [
        Row(NAIVE, "fp32", "reference", config={"threads": plan.naive_threads}),
        Row("+ compiled", "fp32", config=ONE),
        Row("+ batching", "fp32"),
        Row("+ int8 weights", "int8"),
        Row("+ u8 cache", "int8 u8"),
        Row(FINAL, "all"),
    ]
    if plan.quick:
        return [row for row in found if row.bundle in ("fp32", "all")]
    settings = {"vllm": {"python": str(VLLM_ENVIRONMENT / "bin" / "python")}}
    return [*found, Row(VLLM, "all", "vllm", settings, VLLM_ENVIRONMENT / ".installed")]


def build(plan: Plan, folder: Path) -> dict[str, Any]:
    """Build the plan's bundles in a process of its own; return {name: path, seconds, size}."""
    wanted = {row.bundle for row in rows(plan)}
    given = [f"{name}={json.dumps(BUNDLES[name])}" for name in BUNDLES if name in wanted]
    command = ["-m", "benchmarks.support.serving_models", plan.shape, str(folder), *given]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    if done.returncode != 0:
        raise SystemExit(f"the bundles were not built:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


@contextlib.contextmanager
def serving(
    plan: Plan, bundles: Mapping[str, Any], folder: Path, notes: dict[str, str]
) -> Iterator[dict[str, Predictor]]:
    """Start every row's predictor one after the other; note why vLLM's is missing, if it is."""
    found: dict[str, Predictor] = {}
    with contextlib.ExitStack() as stack:
        for row in rows(plan):
            if row.needs and not row.needs.exists():
                notes[row.name] = "not installed (make test-vllm)"
                continue
            try:
                started = Predictor(row, Path(bundles[row.bundle]["path"]), folder / row.name)
            except NotServingError as error:
                if row.needs is None:
                    raise SystemExit(f"{row.name}: {error}") from error
                notes[row.name] = f"did not start: {error}"
                continue
            stack.callback(started.stop)
            found[row.name] = started
        yield found


def start_seconds(plan: Plan, bundles: Mapping[str, Any], folder: Path) -> list[float]:
    """Return how long the last row takes to be ready, each time in a new process."""
    row = next(row for row in rows(plan) if row.name == FINAL)
    found = []
    for number in range(1 if plan.quick else STARTS):
        started = Predictor(row, Path(bundles[row.bundle]["path"]), folder / f"start-{number}")
        found.append(started.start_seconds)
        started.stop()
    return found


def closed_loops(
    plan: Plan, running: Mapping[str, Predictor], maker: PromptMaker
) -> dict[str, dict[str, Any]]:
    """Measure every row with every number of clients, repeats interleaved over the rows."""
    batched = {row.name: row.batched for row in rows(plan)}
    found: dict[str, dict[str, Any]] = {name: {} for name in running}
    for clients, repeats in plan.repeats.items():
        cells: dict[str, list[dict[str, float]]] = {name: [] for name in running}
        for _ in range(repeats):
            for name, predictor in running.items():
                rounds = (plan.rounds_batched if batched[name] else plan.rounds)[clients]
                asked = maker.closed_loop(clients * (rounds + 1), plan.answer_tokens)
                cells[name].append(_closed_cell(predictor, asked, clients, rounds))
        for name, measured in cells.items():
            found[name][str(clients)] = {**medians(measured), "repeats": repeats}
    return found


def _closed_cell(
    predictor: Predictor, asked: list[Asked], clients: int, rounds: int
) -> dict[str, float]:
    cpu = predictor.cpu_seconds()
    outcome = closed_loop(predictor, MODEL, asked, clients, rounds, stream=False)
    used = predictor.cpu_seconds() - cpu
    everything = clients * (rounds + 1) * asked[0].tokens  # the first answers cost CPU time too
    return {**figures(outcome), "cpu_seconds": used, "tokens_per_cpu_second": everything / used}


def streamed(
    plan: Plan, running: Mapping[str, Predictor], maker: PromptMaker, clients: int = 16
) -> dict[str, Any]:
    """Measure the times to the first token and between tokens of `clients` that stream."""
    found: dict[str, Any] = {}
    for name, predictor in running.items():
        asked = maker.closed_loop(2 * clients, plan.answer_tokens)
        found[name] = medians(
            [figures(closed_loop(predictor, MODEL, asked, clients, 1, stream=True))]
        )
    return found


def open_loops(
    plan: Plan,
    running: Mapping[str, Predictor],
    maker: PromptMaker,
    trace: list[Arrival],
) -> dict[str, Any]:
    """Replay the trace at 70 % of what naive can do, then at 70 % of what the last row can do."""
    mixed = maker.from_trace(scaled(trace, TRACE_SAMPLE, 1.0))
    most = {
        name: _requests_per_second(running[name], mixed, clients)
        for name, clients in ((NAIVE, 4), (FINAL, 32), (VLLM, 32))
        if name in running
    }
    found: dict[str, Any] = {"saturation_requests_per_second": most}
    for load, basis in (("naive's", NAIVE), ("the last row's", FINAL)):
        per_second = OPEN_SHARE * most[basis]
        asked = maker.from_trace(scaled(trace, per_second, plan.open_seconds))
        cells = found.setdefault(f"{OPEN_SHARE:.0%} of {load} saturation", {})
        for name in most:
            if per_second > most[name]:
                continue  # its queue would only grow
            outcome = open_loop(running[name], MODEL, asked, stream=True)
            cells[name] = {"requests_per_second": per_second, **medians([figures(outcome)])}
    return found


def _requests_per_second(predictor: Predictor, asked: list[Asked], clients: int) -> float:
    """Return how many requests like these a row answers in a second, with all clients busy."""
    outcome = closed_loop(predictor, MODEL, asked, clients, 3, stream=False)
    return len(outcome.answers) / outcome.seconds


def saturation(cells: Mapping[str, Any]) -> float:
    """Return the most tokens per second that a row gave, with whatever number of clients."""
    return max(float(cell["tokens_per_second"]) for cell in cells.values())


def fixed_answers(
    plan: Plan, bundles: Mapping[str, Any], folder: Path, tokens_per_second: float
) -> dict[str, Any]:
    """Return latencies of equally long answers at random arrivals, 70 % of the saturation load.

    The last row has the machine to itself; where that load was measured, others idled beside it.
    """
    per_second = OPEN_SHARE * tokens_per_second / plan.answer_tokens
    row = next(row for row in rows(plan) if row.name == FINAL)
    bundle = Path(bundles[row.bundle]["path"])
    maker = PromptMaker(bundle / "weights" / "tokenizer.json")
    predictor = Predictor(row, bundle, folder / "fixed")
    try:
        found = [
            _fixed_load(plan, predictor, maker, per_second, seed)
            for seed in range(plan.fixed_repeats)
        ]
    finally:
        predictor.stop()
    return {"requests_per_second": round(per_second, 2), "repeats": len(found), **medians(found)}


def _fixed_load(
    plan: Plan, predictor: Predictor, maker: PromptMaker, per_second: float, seed: int
) -> dict[str, float]:
    config = LoadConfig(
        url=predictor.url,
        headers={"Authorization": f"Bearer {predictor.token}"},
        model=MODEL,
        rps=per_second,
        seconds=plan.open_seconds,
        max_tokens=plan.answer_tokens,
        in_flight_max=4096,
        seed=seed,
    )
    prompts = maker.closed_loop(round(2 * per_second * plan.open_seconds) + 10, 1)
    load = LoadGenerator(config, [item.prompt for item in prompts])
    load.start()
    report = load.wait()
    return {
        "answers": report.ok,
        "failures": report.failed + report.limited + report.skipped,
        **{
            f"latency_ms_{name}": round(1000 * value, 1)
            for name in ("p50", "p95", "p99")
            if (value := getattr(report.total, f"{name}_seconds")) is not None
        },
    }


def measure(plan: Plan, trace: list[Arrival], folder: Path) -> dict[str, Any]:
    """Return everything measured on one shape."""
    began = time.monotonic()
    bundles = build(plan, folder)
    notes: dict[str, str] = {}
    starts = start_seconds(plan, bundles, folder)
    with serving(plan, bundles, folder, notes) as running:
        weights = Path(bundles["all"]["path"]) / "weights"
        maker = PromptMaker(weights / "tokenizer.json")
        closed = closed_loops(plan, running, maker)
        streams = streamed(plan, running, maker)
        opened = open_loops(plan, running, maker, trace)
        table = [
            {
                "row": row.name,
                "note": notes.get(row.name, ""),
                **bundles[row.bundle],
                **_facts(running.get(row.name)),
                "closed_loop": closed.get(row.name, {}),
                "streamed_16_clients": streams.get(row.name, {}),
            }
            for row in rows(plan)
        ]
    fixed = fixed_answers(plan, bundles, folder, saturation(closed[FINAL]))
    for line in table:
        del line["path"]
    return {
        "shape": plan.shape,
        "answer_tokens": plan.answer_tokens,
        "rows": table,
        "open_loop": opened,
        "fixed_answers": fixed,
        "start_seconds": [round(value, 2) for value in starts],
        "wall_seconds": round(time.monotonic() - began, 1),
    }


def _facts(predictor: Predictor | None) -> dict[str, float]:
    if predictor is None:
        return {}
    return {
        "start_seconds": round(predictor.start_seconds, 2),
        "megabytes": round(predictor.megabytes(), 1),
        "cpu_seconds": round(predictor.cpu_seconds(), 1),
    }


def on_gpu(quick: bool) -> dict[str, Any]:
    """Run the torch-based paths where a GPU is at hand, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.support.serving_gpu", *["--quick"][: int(quick)]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        return {"device": None, "note": f"failed: {done.stderr.strip().splitlines()[-1:]}"}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def measured_before(but: str) -> list[dict[str, Any]]:
    """Return the other shapes that were measured fully before."""
    path = RESULTS / "serving.json"
    found = json.loads(path.read_text())["measured"] if path.exists() else []
    return [shape for shape in found if shape["shape"] != but]


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the small shape, fewer rows")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--trace", type=Path, help="CSV: TIMESTAMP, ContextTokens, GeneratedTokens")
    names = [plan.shape for plan in FULL]
    parser.add_argument("--shape", choices=names, help="of the full run, only this shape")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    began = time.monotonic()
    trace = read_trace(options.trace) if options.trace else synthetic_trace()
    source = options.trace.name if options.trace else "synthetic, seed 1"
    shapes = measured_before(but=options.shape) if options.shape and not options.quick else []
    for plan in (QUICK,) if options.quick else FULL:
        if options.shape in (None, plan.shape):
            with tempfile.TemporaryDirectory(prefix="serving-") as folder:
                shapes.append({**measure(plan, trace, Path(folder)), "trace": source})
    shapes.sort(key=lambda found: names.index(found["shape"]))
    report = {
        "benchmark": "serving",
        "quick": options.quick,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "measured": shapes,
        "gpu": on_gpu(options.quick),
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(shapes),
    }
    if not options.quick:
        (RESULTS / "serving.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "serving.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
