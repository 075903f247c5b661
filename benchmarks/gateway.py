"""What the gateway adds to a request, a stream's chunk and a core, beside LiteLLM's proxy.

`python benchmarks/gateway.py [--quick] [--json]`. A zero-delay upstream is asked directly, through
our gateway and through LiteLLM's proxy (`make litellm` installs it), each a process of its own;
repeats interleaved, medians. The full run writes results/gateway.json and a plot.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.gateway_clients import Seen, arrive, closed, stream
from benchmarks.support.gateway_targets import DIRECT, LITELLM_NAME, SERIN, Target, targets
from benchmarks.support.serving_clients import quantile

RESULTS = Path(__file__).resolve().parent / "results"
RATE = 200.0
SLOW_RATE = 20.0
"""A rate that LiteLLM's proxy follows on a shared core, too."""
OPEN_SHARE_MAX = 0.8
"""Of the closed loop's throughput: at a higher rate a target's queue would only grow."""
CLIENTS = 16
STREAM_CLIENTS = 4
ADDED_MILLISECONDS_GOAL = 1.0
THROUGHPUT_RATIO_GOAL = 5.0
CHUNK_MILLISECONDS_GOAL = 0.2
MEMORY_GROWTH_GOAL = 0.05


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: LiteLLM, being slower, gets fewer requests in its closed loops."""

    repeats: int
    open_seconds: float
    requests: Mapping[str, int]
    streams: int
    warm_requests: int
    memory_requests: int


QUICK = Plan(3, 2.0, {DIRECT: 2000, SERIN: 2000, LITELLM_NAME: 200}, 12, 2_000, 5_000)
FULL = Plan(5, 8.0, {DIRECT: 8000, SERIN: 8000, LITELLM_NAME: 800}, 40, 20_000, 100_000)


def measure(found: Mapping[str, Target], plan: Plan) -> list[dict[str, Any]]:
    """Return a row for each target: every cell's medians over the interleaved repeats."""
    rates = {"open_200": RATE, "open_20": SLOW_RATE}
    cells: dict[str, Callable[[Target], dict[str, float]]] = {
        "open_200": lambda target: _open(target, RATE, plan.open_seconds),
        "open_20": lambda target: _open(target, SLOW_RATE, plan.open_seconds),
        "closed_16": lambda target: _closed(target, plan.requests[target.name]),
        "streams_4": lambda target: _stream(target, plan.streams),
    }
    follows = {}
    for name, target in found.items():  # connections, caches, first imports
        warm = _closed(target, plan.requests[target.name] // 4)
        follows[name] = OPEN_SHARE_MAX * warm["requests_per_second"]
    measured: dict[str, dict[str, list[dict[str, float]]]] = {name: {} for name in found}
    for _ in range(plan.repeats):
        for cell, run in cells.items():
            for name, target in found.items():
                if rates.get(cell, 0.0) <= follows[name]:
                    measured[name].setdefault(cell, []).append(run(target))
    return [
        {
            "row": name,
            "repeats": plan.repeats,
            **{cell: _medians(repeats) for cell, repeats in measured[name].items()},
        }
        for name in found
    ]


def _open(target: Target, per_second: float, seconds: float) -> dict[str, float]:
    cpu = target.cpu_seconds()
    seen = arrive(target.url, {}, per_second, seconds)
    used = target.cpu_seconds() - cpu
    return {**_latency(seen), "cpu_ms_per_request": 1000 * used / max(1, len(seen.latencies))}


def _closed(target: Target, requests: int) -> dict[str, float]:
    cpu = target.cpu_seconds()
    seen = closed(target.url, {}, CLIENTS, requests)
    used = target.cpu_seconds() - cpu
    found = {**_latency(seen), "requests_per_second": len(seen.latencies) / seen.seconds}
    if used > 0:
        found["requests_per_cpu_second"] = len(seen.latencies) / used
    return found


def _stream(target: Target, streams: int) -> dict[str, float]:
    cpu = target.cpu_seconds()
    seen = stream(target.url, {}, STREAM_CLIENTS, streams)
    used = target.cpu_seconds() - cpu
    found = {
        f"chunk_ms_p{share}": 1000 * quantile(seen.chunks, share / 100) for share in (50, 95, 99)
    }
    count = len(seen.chunks)
    return {
        **found,
        "chunks": float(count),
        "failures": float(len(seen.failures)),
        "cpu_ms_per_chunk": 1000 * used / max(1, count),
    }


def _latency(seen: Seen) -> dict[str, float]:
    found = {
        f"latency_ms_p{share}": 1000 * quantile(seen.latencies, share / 100)
        for share in (50, 95, 99)
    }
    answers, failures = float(len(seen.latencies)), float(len(seen.failures))
    return {**found, "answers": answers, "failures": failures}


def _medians(repeats: list[dict[str, float]]) -> dict[str, float]:
    names = repeats[0].keys()
    found = {name: statistics.median(repeat[name] for repeat in repeats) for name in names}
    found["failures"] = sum(repeat["failures"] for repeat in repeats)
    return {name: round(value, 4) for name, value in found.items()}


def memory(target: Target, plan: Plan) -> dict[str, Any]:
    """Return the gateway's memory along many requests, after a warm start."""
    closed(target.url, {}, CLIENTS, plan.warm_requests)
    steps, found = 10, [round(target.megabytes(), 2)]
    for _ in range(steps):
        closed(target.url, {}, CLIENTS, plan.memory_requests // steps)
        found.append(round(target.megabytes(), 2))
    return {
        "requests": plan.memory_requests,
        "megabytes": found,
        "growth": round(found[-1] / found[0] - 1, 4),
    }


def goals(rows: list[dict[str, Any]], kept: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return what the gateway is meant to reach; a goal without LiteLLM has no value."""
    by_name = {row["row"]: row for row in rows}
    direct, serin, other = by_name[DIRECT], by_name[SERIN], by_name.get(LITELLM_NAME)
    added = serin["open_200"]["latency_ms_p50"] - direct["open_200"]["latency_ms_p50"]
    chunk = serin["streams_4"]["chunk_ms_p50"] - direct["streams_4"]["chunk_ms_p50"]
    ratio = None
    if other is not None:
        name = "requests_per_cpu_second"
        ratio = serin["closed_16"][name] / other["closed_16"][name]
    failures = sum(
        cell["failures"]
        for name, row in by_name.items()
        if name == SERIN
        for cell in row.values()
        if isinstance(cell, dict)
    )
    found = [
        ("added milliseconds of the median request at 200/s", added, ADDED_MILLISECONDS_GOAL),
        ("added milliseconds of a stream's median chunk", chunk, CHUNK_MILLISECONDS_GOAL),
        (f"memory growth over {kept['requests']} requests", kept["growth"], MEMORY_GROWTH_GOAL),
        ("failed requests of the gateway", failures, 0),
    ]
    lines: list[dict[str, Any]] = [
        {"name": name, "value": round(value, 4), "goal": goal, "met": value <= goal}
        for name, value, goal in found
    ]
    name = "requests per core-second, times LiteLLM's"
    value = None if ratio is None else round(ratio, 2)
    met = None if ratio is None else ratio >= THROUGHPUT_RATIO_GOAL
    return [*lines, {"name": name, "value": value, "goal": THROUGHPUT_RATIO_GOAL, "met": met}]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw latency at 200 requests/s and throughput per core of each row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3))
    rows = report["measured"]
    names = [row["row"] for row in rows]
    for offset, share in ((-0.2, 50), (0.2, 95)):
        values = [row.get("open_20", {}).get(f"latency_ms_p{share}", 0.0) for row in rows]
        places = [place + offset for place in range(len(rows))]
        left.bar(places, values, 0.4, label=f"p{share}")
    left.set_xticks(range(len(rows)), names)
    left.set(ylabel="ms at 20 requests/s", yscale="log")
    left.legend()
    through = [row for row in rows if "requests_per_cpu_second" in row["closed_16"]]
    values = [row["closed_16"]["requests_per_cpu_second"] for row in through]
    right.bar([row["row"] for row in through], values)
    right.set(ylabel="requests per core-second")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def run(plan: Plan, quick: bool) -> dict[str, Any]:
    """Measure everything; return the report."""
    began = time.monotonic()
    notes: dict[str, str] = {}
    with (
        tempfile.TemporaryDirectory(prefix="gateway-") as folder,
        targets(Path(folder), notes) as found,
    ):
        rows = measure(found, plan)
        kept = memory(found[SERIN], plan)
        cpu = {name: round(target.cpu_seconds(), 1) for name, target in found.items()}
    return {
        "benchmark": "gateway",
        "quick": quick,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "measured": rows,
        "memory": kept,
        "notes": notes,
        "cpu_seconds": cpu,
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(rows, kept),
    }


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    report = run(QUICK if options.quick else FULL, options.quick)
    if not options.quick:
        (RESULTS / "gateway.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "gateway.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
