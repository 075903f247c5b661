"""Runs the sample's story from nothing and reports what every day came to.

`python benchmarks/story.py [--quick] [--json]`; quick takes the first day only. The full run writes
results/story.json.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "story.json"
SECONDS_GOAL = 720
RUN_SECONDS_MAX = 3600


def run_story(home: Path, quick: bool) -> dict[str, Any]:
    """Run `serin run` on the sample with its story; return its run.json."""
    command = [sys.executable, "-m", "cli.main", "run", "--data", "samples/days"]
    command += ["--story", "samples/story.yaml", *(["--days-max", "1"] if quick else [])]
    environment = {**os.environ, "SERIN_HOME": str(home)}
    subprocess.run(
        command, cwd=ROOT, env=environment, stdout=sys.stderr, timeout=RUN_SECONDS_MAX, check=False
    )
    found: dict[str, Any] = json.loads(next(home.glob("stories/*/run.json")).read_text())
    return found


def goals(found: dict[str, Any], quick: bool) -> list[dict[str, Any]]:
    """Return the story's goals: every day as expected, no failed request, and its time."""
    failed, seconds = found["traffic"]["failed"], round(found["seconds"])
    problems = 0 if quick else len(found["problems"])
    return [
        {"name": "days not as expected", "value": problems, "goal": 0, "met": problems == 0},
        {"name": "failed client requests", "value": failed, "goal": 0, "met": failed == 0},
        {
            "name": "seconds after installation",
            "value": seconds,
            "goal": SECONDS_GOAL,
            "met": seconds <= SECONDS_GOAL,
        },
    ]


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="the first day only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        found = run_story(Path(home), options.quick)
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
        "goals": goals(found, options.quick),
    }
    if not options.quick:
        RESULTS.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
