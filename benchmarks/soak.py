"""A trace through the real stack for 20 minutes while everything that changes one happens to it.

`python benchmarks/soak.py [--quick] [--json] [--minutes N] [--trace CSV] [--rps R]`. Under the
load: a canary to stable, a canary back, another safety policy, a predictor's kill -9, a recovery
on and off. The full run writes results/soak.json and a plot.
"""

import argparse
import json
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from subprocess import SubprocessError
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from httpx import HTTPError

from benchmarks.support.serving_trace import PromptMaker, read_trace, scaled, synthetic_trace
from benchmarks.support.soak_plot import plot
from benchmarks.support.soak_processes import ProcessWatch, grown
from benchmarks.support.soak_stack import SoakStack, soak_stack
from core.errors import SerinError
from observability.load import LoadConfig, LoadGenerator, TimedPrompt
from observability.tally import FailedRequest, LoadReport

RESULTS = Path(__file__).resolve().parent / "results"
MINUTES, MINUTES_QUICK = 20.0, 0.85
RPS = 3.0
"""Far below what two shared cores answer: leaks are looked for, not throughput."""
STREAM_SHARE = 0.5
WARM_SHARE = 0.2
"""Of the load's time, from a process's own start: then its bounded caches are full."""
SAMPLES = 240
FAILURES_MAX, FAILURES_SHOWN = 10_000, 50
HOLD_SHARE = 0.06
"""Of the load's time: how long a canary keeps its share, and the recovery stays on."""
CHANGES = 5
JUDGED_MIN = 6
"""Gateway, control plane, keeper, Prefect, MLflow and a predictor: fewer were not looked at."""
KILL = "predictor killed"
GROWTH_PERCENT_GOAL = 5.0
CHANGE_ERRORS = (AssertionError, OSError, ValueError, SerinError, HTTPError, SubprocessError)
UP_TO_KILL_SECONDS = 0.5
"""A request that a kill cut off ends before the successor answers, give or take this."""


@dataclass(frozen=True, slots=True)
class Change:
    """Something that was done to the stack: seconds after the load's start, and requests open."""

    name: str
    from_seconds: float
    to_seconds: float
    began_at: float
    ended_at: float
    in_flight: int
    error: str = ""


def planned(stack: SoakStack, hold: float) -> list[tuple[float, str, Callable[[], None]]]:
    """Return what happens, each at the earliest after this share of the load's time."""
    return [
        (0.15, "canary promoted", lambda: stack.promote(2, hold)),
        (0.32, "canary rolled back", lambda: stack.roll_back(3, hold)),
        (0.46, "policy reloaded", stack.reload_policy),
        (0.50, KILL, stack.kill_predictor),
        (0.72, "recovery on and off", lambda: stack.degrade(hold)),
    ]


def make_changes(stack: SoakStack, load: LoadGenerator, seconds: float) -> list[Change]:
    """Do everything that is planned, one after the other, while the load goes on."""
    began, done = time.monotonic(), []
    for share, name, change in planned(stack, HOLD_SHARE * seconds):
        time.sleep(max(0.0, began + share * seconds - time.monotonic()))
        at, since = time.time(), time.monotonic() - began
        in_flight = load.report().in_flight
        error = ""
        try:
            change()
        except CHANGE_ERRORS as problem:  # the load goes on: the report tells what did not work
            error = f"{type(problem).__name__}: {problem}"[:500]
        ended = time.monotonic() - began
        done.append(Change(name, since, ended, at, time.time(), in_flight, error))
        print(f"{name}: {ended - since:.1f} s {error}", file=sys.stderr)
    return done


def unexplained(failures: Sequence[FailedRequest], changes: Sequence[Change]) -> int:
    """Failures that no kill explains: of those it explains at most what it found in flight."""
    explained = 0
    for change in changes:
        if change.name == KILL:
            end = change.ended_at + UP_TO_KILL_SECONDS
            cut = [one for one in failures if change.began_at <= one.time_seconds <= end]
            explained += min(len(cut), change.in_flight)
    return len(failures) - explained


def run(minutes: float, trace: Path | None, rps: float, quick: bool) -> dict[str, Any]:
    """Serve the trace while the changes are made; return the report."""
    seconds, began = 60 * minutes, time.monotonic()
    arrivals = scaled(read_trace(trace) if trace else synthetic_trace(), rps, seconds)
    with tempfile.TemporaryDirectory() as name, soak_stack(Path(name)) as stack:
        maker = PromptMaker(next(stack.bundle.rglob("tokenizer.json")))
        asked = maker.from_trace(arrivals)
        timed = [TimedPrompt(one.prompt, one.tokens, one.at_seconds) for one in asked]
        config = LoadConfig(
            url=stack.settings.gateway_url,
            model=stack.settings.service,
            stream_share=STREAM_SHARE,
            failures_max=FAILURES_MAX,
            # Clients that keep connections leave files open at the gateway: theirs, not its.
            reuse_connections=False,
        )
        load = LoadGenerator(config, (), timed)
        watch = ProcessWatch(stack.settings.home, stack.names, stack.ports, seconds / SAMPLES)
        with watch:
            load.start()
            changes = make_changes(stack, load, seconds)
            traffic = load.wait()
        problems = len(stack.ledger.verify())
    rows = grown(watch, WARM_SHARE * seconds, seconds)
    return {
        "benchmark": "soak",
        "quick": quick,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "repeats": 1,
        "trace": trace.name if trace else "synthetic",
        "minutes": minutes,
        "rps": rps,
        "measured": rows,
        "changes": [told(change) for change in changes],
        "traffic": counts(traffic),
        "series": watch.series(),
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(traffic, changes, rows, problems),
    }


def told(change: Change) -> dict[str, Any]:
    """Return a change as the report has it."""
    return {
        "name": change.name,
        "from_seconds": round(change.from_seconds, 1),
        "to_seconds": round(change.to_seconds, 1),
        "requests_in_flight": change.in_flight,
        "error": change.error,
    }


def counts(traffic: LoadReport) -> dict[str, Any]:
    """Return what the clients met."""
    names = ("p50", "p95", "p99")
    values = (traffic.total.p50_seconds, traffic.total.p95_seconds, traffic.total.p99_seconds)
    return {
        "sent": traffic.sent,
        "ok": traffic.ok,
        "limited": traffic.limited,
        "failed": traffic.failed,
        "skipped": traffic.skipped,
        "causes": dict(traffic.causes),
        "latency_seconds": {
            name: round(value, 4)
            for name, value in zip(names, values, strict=True)
            if value is not None
        },
        "ok_by_version": {name: row.ok for name, row in traffic.by_version.items()},
        "failures": [asdict(one) for one in traffic.failures[:FAILURES_SHOWN]],
    }


def goals(
    traffic: LoadReport, changes: Sequence[Change], rows: Sequence[dict[str, Any]], problems: int
) -> list[dict[str, Any]]:
    """Return the goals: nothing unexplained, no growth, all changes while the load went on."""
    unexplained_all = unexplained(traffic.failures, changes) + traffic.limited + traffic.skipped
    during = sum(one.to_seconds <= traffic.seconds and not one.error for one in changes)
    judged = [row for row in rows if row["judged"]]
    memory = max((row["anonymous_growth_percent"] for row in judged), default=0.0)
    files = max((row["open_files_growth"] for row in judged), default=0)
    wanted: list[tuple[str, float, float, bool]] = [
        ("requests without an answer and without a cause", unexplained_all, 0, False),
        ("largest growth of a process's own memory in percent", memory, GROWTH_PERCENT_GOAL, False),
        ("largest growth of a process's open files", files, 0, False),
        ("changes made under the load", during, CHANGES, True),
        ("problems in the ledger's chain", problems, 0, False),
        ("processes that were judged", len(judged), JUDGED_MIN, True),
    ]
    return [
        {
            "name": name,
            "value": value,
            "goal": goal,
            "met": value >= goal if least else value <= goal,
        }
        for name, value, goal, least in wanted
    ]


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{MINUTES_QUICK:g} minute of load")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--minutes", type=float, help=f"of load, {MINUTES:g} by default")
    parser.add_argument("--trace", type=Path, help="CSV of arrivals; synthetic ones without it")
    parser.add_argument("--rps", type=float, default=RPS, help="requests per second on average")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    minutes = options.minutes or (MINUTES_QUICK if options.quick else MINUTES)
    report = run(minutes, options.trace, options.rps, options.quick)
    series = report.pop("series")
    if not options.quick:
        plot(report, series, RESULTS / "soak.png")
        (RESULTS / "soak.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
