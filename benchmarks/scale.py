"""What a day costs when it comes in by parts: CPU per step, and what is left for one process.

`python benchmarks/scale.py [--quick] [--json]`. The steps run one after the other on one core, so
their CPU times add up to what a cluster has to spend; docs/scale.md multiplies them out. The full
run writes results/scale.json.
"""

import argparse
import json
import os
import platform
import random
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.duplicate_texts import LANGUAGES, Writer
from lake.config import FieldMapping, IngestConfig, ScaleConfig
from lake.snapshots import create_snapshot
from lake.sources import list_days
from lake.table import Lake
from validation.records import check_rows

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 2026
ROWS, ROWS_QUICK = 60_000, 6_000
PARTS = (1, 4)
EXACT_SHARE, NEAR_SHARE, BAD_SHARE = 0.03, 0.02, 0.01
CONFIG_MAPPING = FieldMapping(prompt="text", response="intent")


def write_day(path: Path, rows: int) -> None:
    """Write a day of JSON lines in both languages with repeats, near repeats and bad rows."""
    source = random.Random(SEED)
    writers = [Writer.of(language, SEED) for language in LANGUAGES]
    held: list[tuple[Writer, str]] = []
    with path.open("w", encoding="utf-8") as file:
        for place in range(rows):
            writer = writers[place % len(writers)]
            draw = source.random()
            text = writer.text(50, 90)
            if held and draw < EXACT_SHARE:
                writer, text = source.choice(held)
            elif held and draw < EXACT_SHARE + NEAR_SHARE:
                writer, text = source.choice(held)
                text = writer.near(text, 1)
            elif len(held) < 10_000:
                held.append((writer, text))
            row = {"id": str(place), "text": text, "intent": "ok", "domain": f"d{place % 5}"}
            line = json.dumps(row, ensure_ascii=False)
            file.write((line[:-9] if source.random() < BAD_SHARE else line) + "\n")


def one_pass(data: Path, folder: Path, parts: int) -> dict[str, Any]:
    """Take the day in by so many parts; return CPU seconds by step and the snapshot's id."""
    seconds: dict[str, float] = {}

    def spread(step: Callable[[Any], Any], orders: Sequence[Any]) -> list[Any]:
        began = time.process_time()
        done = [step(order) for order in orders]
        seconds[step.__name__] = time.process_time() - began
        return done

    config = IngestConfig(
        data=str(data), mapping=CONFIG_MAPPING, scale=ScaleConfig(parts=parts), rows_min=5
    )
    lake = Lake(str(folder / "lake"))
    day = list_days(config.data).days[0]
    began, wall = time.process_time(), time.perf_counter()
    report = lake.ingest_day(day, config, check_rows, spread=spread)
    whole = time.process_time() - began
    wall = time.perf_counter() - wall
    seconds["one process"] = whole - sum(seconds.values())
    snapshot = create_snapshot(lake, None, (), folder / "snapshots", 5)
    return {
        "name": f"{parts} parts, one core",
        "parts": parts,
        "megabytes": round(day.size_bytes / 1e6, 1),
        "rows": report.rows_in,
        "kept": report.kept,
        "duplicates": report.duplicates,
        "near_duplicates": report.near_duplicates,
        "quarantined": report.quarantined,
        "megabytes_per_cpu_second": round(day.size_bytes / whole / 1e6, 2),
        "microseconds_per_row": {
            name: round(1e6 * value / report.rows_in, 2) for name, value in seconds.items()
        },
        "cpu_seconds": round(whole, 2),
        "wall_seconds": round(wall, 2),
        "snapshot": snapshot.snapshot_id if snapshot else "",
    }


def run(rows: int) -> dict[str, Any]:
    """Measure everything; return the report."""
    measured = []
    with tempfile.TemporaryDirectory() as scratch:
        data = Path(scratch) / "data"
        data.mkdir()
        # A first small day warms imports, tables of letters and compiled patterns.
        warm = Path(scratch) / "warm"
        warm.mkdir()
        write_day(warm / "day-0.jsonl", 500)
        one_pass(warm, Path(scratch) / "warmed", 2)
        write_day(data / "day-1.jsonl", rows)
        for parts in PARTS:
            measured.append(one_pass(data, Path(scratch) / str(parts), parts))
    same = len({(row["snapshot"], row["kept"], row["quarantined"]) for row in measured}) == 1
    return {
        "benchmark": "scale",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seed": SEED,
        "measured": measured,
        "goals": [
            {"name": "the same rows by any number of parts", "value": same, "goal": True,
             "met": same}
        ],
    }  # fmt: skip


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smaller day")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    report = run(ROWS_QUICK if options.quick else ROWS)
    if not options.quick:
        path = RESULTS / "scale.json"
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
