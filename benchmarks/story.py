"""Runs the sample's story from nothing, then again, and reports what every day came to.

`python benchmarks/story.py [--quick] [--json]`; quick takes the first day, once. The full run
writes results/story.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "story.json"
SECONDS_GOAL = 720
SECONDS_AGAIN_GOAL = 360
MEMORY_GIB_GOAL = 6.0
MEMORY_SAMPLE_SECONDS = 2.0
RUN_SECONDS_MAX = 3600


def run_story(home: Path, quick: bool) -> dict[str, Any]:
    """Run `serin run` on the sample with its story; return its run.json and its peak memory."""
    command = [sys.executable, "-m", "cli.main", "run", "--data", "samples/days"]
    command += ["--story", "samples/story.yaml", *(["--days-max", "1"] if quick else [])]
    environment = {**os.environ, "SERIN_HOME": str(home)}
    running = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sys.stderr)
    peak, deadline = 0.0, time.monotonic() + RUN_SECONDS_MAX
    while running.poll() is None and time.monotonic() < deadline:
        peak = max(peak, memory_gibibytes(home))
        time.sleep(MEMORY_SAMPLE_SECONDS)
    if running.poll() is None:
        running.terminate()
        running.wait()
    newest = max(home.glob("stories/*/run.json"), key=lambda path: path.stat().st_mtime)
    found: dict[str, Any] = json.loads(newest.read_text())
    return {**found, "memory_gibibytes_max": round(peak, 2)}


def memory_gibibytes(home: Path) -> float:
    """Memory of all processes of a home, shared pages counted once (PSS)."""
    found = 0
    for process in psutil.process_iter():
        try:
            if str(home) in process.environ().get("SERIN_HOME", ""):
                found += process.memory_full_info().pss
        except psutil.Error:
            continue  # it ended meanwhile, or is somebody else's
    return found / 2**30


def goals(found: dict[str, Any], again: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return the story's goals: days as expected, no failed request, its times and memory."""
    runs = [found, *([again] if again else [])]
    values: list[tuple[str, float, float]] = [
        ("days not as expected", sum(len(run["problems"]) for run in runs) if again else 0, 0),
        ("failed client requests", sum(run["traffic"]["failed"] for run in runs), 0),
        ("seconds after installation", round(found["seconds"]), SECONDS_GOAL),
        ("GiB of memory", max(run["memory_gibibytes_max"] for run in runs), MEMORY_GIB_GOAL),
    ]
    if again:
        values.append(("seconds of a second run", round(again["seconds"]), SECONDS_AGAIN_GOAL))
    return [
        {"name": name, "value": value, "goal": goal, "met": value <= goal}
        for name, value, goal in values
    ]


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first day only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = run_story(Path(home), options.quick)
        again = None if options.quick else run_story(Path(home), quick=False)
    for day in found["days"]:
        day.pop("folder", None)
    machine = {"processor": platform.machine(), "cores": os.cpu_count()}
    report = {
        "benchmark": "story",
        "quick": options.quick,
        "machine": machine,
        "repeats": 1,
        "measured": found["days"],
        "traffic": found["traffic"],
        "wall_seconds": round(found["seconds"], 1),
        "goals": goals(found, again),
    }
    if not options.quick:
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
