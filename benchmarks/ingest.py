"""How fast a day comes in: the whole pass into Delta, its stages, its memory, and the usual way.

`python benchmarks/ingest.py [--quick] [--json]`. It writes generated conversations to a temporary
folder (2 GB, quick 200 MB). The full run writes results/ingest.json and a plot.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support.ingest_corpus import write_corpus
from benchmarks.support.ingest_stages import MEGABYTE, stage_rates
from benchmarks.support.ingest_usual import usual_pass
from lake.config import FieldMapping, IngestConfig
from lake.sources import list_days
from lake.table import Lake

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 11
MAPPING = FieldMapping(prompt="text", response="answer", slice_name="topic")
SIZES, SIZES_QUICK = (200, 1000, 2000), (60, 200)
USUAL_MEGABYTES, USUAL_MEGABYTES_QUICK = 100, 20
STAGE_BLOCKS, STAGE_BLOCKS_QUICK = 24, 8
VOCABULARY, TOKENIZER_ROWS = 4096, 6000
RATE_GOAL, RATE_FLOOR = 23.0, 11.6
"""Megabytes a second of 2 TB and of 1 TB a day."""
MEMORY_GOAL_MEGABYTES = 1000
FLAT_RATIO = 1.25
WATCH_SECONDS = 0.5


def one_pass(path: Path, processes: int, tokenizer: str) -> dict[str, Any]:
    """Take a file into a new lake, in this process and its workers; return what it came to."""
    from validation.records import check_rows, describe

    config = IngestConfig(data=str(path), mapping=MAPPING, processes=processes, tokenizer=tokenizer)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        began = time.monotonic()
        report = Lake(f"{folder}/lake").ingest_day(
            list_days(str(path)).days[0], config, check_rows, describe=describe
        )
        seconds = time.monotonic() - began
    return {
        "wall_seconds": round(seconds, 2),
        "cpu_seconds": round(_cpu_seconds(), 2),
        "rows": report.rows_in,
        "kept": report.kept,
        "duplicates": report.duplicates,
        "near_duplicates": report.near_duplicates,
        "quarantined": report.quarantined,
        "tokens": report.tokens,
    }


def measured_pass(arguments: Sequence[str], size_bytes: int, name: str) -> dict[str, Any]:
    """Run this script for one pass as a process of its own and watch the memory of its tree."""
    process = subprocess.Popen(
        [sys.executable, __file__, *arguments], stdout=subprocess.PIPE, text=True
    )
    peak = [0.0]
    watcher = threading.Thread(target=_watch, args=(process, peak), daemon=True)
    watcher.start()
    told, _ = process.communicate()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{name} failed")
    result = json.loads(told.splitlines()[-1])
    megabytes = size_bytes / MEGABYTE
    return {
        "name": name,
        "megabytes": round(megabytes, 1),
        **result,
        "megabytes_per_second": round(megabytes / result["wall_seconds"], 2),
        "megabytes_per_cpu_second": round(megabytes / result["cpu_seconds"], 2),
        "peak_megabytes": round(peak[0] / MEGABYTE),
    }


def run(quick: bool, folder: Path) -> dict[str, Any]:
    """Measure everything; return the report."""
    sizes = SIZES_QUICK if quick else SIZES
    files: list[Path] = []
    made: dict[str, Any] = {}
    for size in sizes:
        path = folder / f"day-{size}.jsonl"
        made[path.name] = dict(write_corpus(path, size * MEGABYTE, SEED))
        files.append(path)
    tokenizer = folder / "tokenizer.json"
    _train_tokenizer(files[0], tokenizer)
    largest = files[-1]
    rows = [
        _pass(path, 2, "", f"whole pass, 2 processes, {path.stat().st_size // MEGABYTE} MB")
        for path in files
    ]
    rows.append(_pass(largest, 2, str(tokenizer), "whole pass with tokens, 2 processes"))
    one = files[0] if quick else files[1]
    rows.append(_pass(one, 1, "", "whole pass, 1 process"))
    rows.append(_pass(one, 1, str(tokenizer), "whole pass with tokens, 1 process"))
    config = IngestConfig(data=str(largest), mapping=MAPPING, tokenizer=str(tokenizer))
    blocks = STAGE_BLOCKS_QUICK if quick else STAGE_BLOCKS
    stages = stage_rates(largest, config, blocks)
    part = folder / "usual-1.jsonl"
    usual_megabytes = USUAL_MEGABYTES_QUICK if quick else USUAL_MEGABYTES
    write_corpus(part, usual_megabytes * MEGABYTE, SEED)
    beside = [
        measured_pass(
            ["--usual", str(part), "--tokenizer", str(tokenizer)], part.stat().st_size,
            "pandas, datasets.map and tokenizers",
        ),
        _pass(part, 1, str(tokenizer), "serin on the same part, 1 process"),
        _pass(part, 2, str(tokenizer), "serin on the same part, 2 processes"),
    ]  # fmt: skip
    return {
        "benchmark": "ingest",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seed": SEED,
        "load_average_before": _LOAD_BEFORE,
        "generated": made,
        "measured": [*rows, *stages],
        "beside": beside,
        "goals": _goals(rows[: len(sizes)], rows[len(sizes)]),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw each stage's rate and the peak memory by file size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    stages = [row for row in report["measured"] if "peak_megabytes" not in row]
    passes = [row for row in report["measured"] if "2 processes, " in row["name"]]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4))
    names = [row["name"] for row in stages]
    left.barh(names, [row["megabytes_per_cpu_second"] or 0 for row in stages])
    left.invert_yaxis()
    left.set(xlabel="MB per CPU second", xscale="log")
    right.plot(
        [row["megabytes"] for row in passes], [row["peak_megabytes"] for row in passes], "o-"
    )
    right.set(xlabel="MB of input", ylabel="peak memory, MB", ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _goals(passes: list[dict[str, Any]], tokens: dict[str, Any]) -> list[dict[str, Any]]:
    largest = passes[-1]
    peaks = [row["peak_megabytes"] for row in passes]
    flat = round(max(peaks) / min(peaks), 3)
    rate, with_tokens = largest["megabytes_per_second"], tokens["megabytes_per_second"]
    return [
        _goal("MB/s of the whole pass, 2 processes", rate, RATE_GOAL, rate >= RATE_GOAL),
        _goal("the same, never under", rate, RATE_FLOOR, rate >= RATE_FLOOR),
        _goal("the same with tokens counted", with_tokens, RATE_FLOOR, with_tokens >= RATE_FLOOR),
        _goal("peak memory in MB", max(peaks), MEMORY_GOAL_MEGABYTES,
              max(peaks) <= MEMORY_GOAL_MEGABYTES),
        _goal("peak memory, largest over smallest", flat, FLAT_RATIO, flat <= FLAT_RATIO),
    ]  # fmt: skip


def _goal(name: str, value: float, goal: float, met: bool) -> dict[str, Any]:
    return {"name": name, "value": value, "goal": goal, "met": met}


def _pass(path: Path, processes: int, tokenizer: str, name: str) -> dict[str, Any]:
    arguments = ["--one-pass", str(path), "--processes", str(processes), "--tokenizer", tokenizer]
    return measured_pass(arguments, path.stat().st_size, name)


def _watch(process: subprocess.Popen[str], peak: list[float]) -> None:
    """Keep the largest sum of the tree's memory; shared pages count once (PSS)."""
    import psutil

    while process.poll() is None:
        total = 0
        try:
            root = psutil.Process(process.pid)
            for member in [root, *root.children(recursive=True)]:
                total += member.memory_full_info().pss
        except psutil.Error:
            continue
        peak[0] = max(peak[0], total)
        time.sleep(WATCH_SECONDS)


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def _train_tokenizer(path: Path, target: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    with path.open("rb") as file:
        lines = [file.readline().decode(errors="replace") for _ in range(TOKENIZER_ROWS)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(lines, trainer)
    tokenizer.save(str(target))


_LOAD_BEFORE = os.getloadavg()[0]


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="200 MB instead of 2 GB")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--one-pass", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--usual", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--tokenizer", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_pass:
        print(json.dumps(one_pass(options.one_pass, options.processes, options.tokenizer)))
        return
    if options.usual:
        began = time.monotonic()
        target = options.usual.with_suffix(".parquet")
        counts = usual_pass(options.usual, Path(options.tokenizer), target)
        seconds = {"wall_seconds": round(time.monotonic() - began, 2)}
        print(json.dumps({**seconds, "cpu_seconds": round(_cpu_seconds(), 2), **counts}))
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="serin-ingest-") as folder:
        report = run(options.quick, Path(folder))
    report["wall_seconds"] = round(time.monotonic() - began, 1)
    if not options.quick:
        text = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
        (RESULTS / "ingest.json").write_text(text, encoding="utf-8")
        plot(report, RESULTS / "ingest.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
