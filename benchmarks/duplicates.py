"""How many duplicates and leaked evaluation rows are found, how many rightly, at what cost.

`python benchmarks/duplicates.py [--quick] [--json]`. Generated English and Chinese texts with
injected duplicates of known Jaccard similarity; rensa's own deduplicator beside the index. The full
run writes results/duplicates.json and a plot.
"""

import argparse
import json
import os
import platform
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.support.duplicate_texts import LANGUAGES, Writer, jaccard
from core.contracts import Message, Record
from core.sketches import BANDS, SIGNATURE_BYTES
from lake.config import DuplicatesConfig
from lake.duplicates import DuplicateIndex, IndexRow
from lake.sketches import Sketches, sketch
from validation.leakage import leakage_gate
from validation.leakage_config import LeakageConfig
from validation.texts import shingles

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 2026
HISTORY, HISTORY_QUICK = 10_000, 3_000
BATCH = 5_000
FILLED, FILLED_QUICK = (100_000, 500_000, 2_000_000), (100_000, 400_000)
LEAK_ROWS, LEAK_ROWS_QUICK = 2_000, 800
EXACT_SHARE, NEAR_SHARE, DIFFERENT_SHARE = 0.03, 0.2, 0.1
NEAR_FROM, DIFFERENT_BELOW = 0.8, 0.7
RECALL_GOAL, PRECISION_GOAL, LEAK_GOAL = 0.98, 0.99, 0.001
CONFIG = DuplicatesConfig()


def quality(language: str, history: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return recall and precision of one language, and the share dropped by true similarity.

    Truth: at least NEAR_FROM is a duplicate, below DIFFERENT_BELOW is none; what lies between is in
    the table by similarity only. Half of the injected rows repeat history, half their own batch.
    """
    writer = Writer.of(language, SEED)
    texts = [writer.text() for _ in range(history)]
    fresh = [writer.text() for _ in range(history // 2)]
    injected: list[tuple[str, float]] = []
    for place in range(int(history * (NEAR_SHARE + DIFFERENT_SHARE))):
        source = texts[place] if place % 2 else fresh[place % len(fresh)]
        edits = 1 + place % 8 if place < history * NEAR_SHARE else 9 + place % 9
        changed = writer.near(source, edits)
        injected.append((changed, jaccard(source, changed)))
    copies = texts[-int(history * EXACT_SHARE) :]
    with opened() as index:
        for start in range(0, history, BATCH):
            judge(index, f"history {start}", texts[start : start + BATCH])
        told = judge(index, "new", [*fresh, *(text for text, _ in injected), *copies])
    near = told[len(fresh) : len(fresh) + len(injected)]
    similar = np.array([value for _, value in injected])
    dropped = np.array([verdict != "new" for verdict in near])
    found = int(dropped[similar >= NEAR_FROM].sum())
    wrong = int(dropped[similar < DIFFERENT_BELOW].sum())
    wrong += sum(verdict != "new" for verdict in told[: len(fresh)])
    between = int(dropped[(similar < NEAR_FROM) & (similar >= DIFFERENT_BELOW)].sum())
    exact = told[len(fresh) + len(injected) :]
    row = {
        "name": f"near duplicates, {language}",
        "history": history,
        "duplicates": int((similar >= NEAR_FROM).sum()),
        "others": int((similar < DIFFERENT_BELOW).sum()) + len(fresh),
        "recall": round(found / max(1, int((similar >= NEAR_FROM).sum())), 5),
        "precision": round(found / max(1, found + wrong), 5),
        "dropped_between": between,
        "exact_recall": round(sum(verdict == "exact" for verdict in exact) / len(exact), 5),
    }
    curve = []
    for low in np.arange(0.4, 1.0, 0.05):
        inside = (similar >= low) & (similar < low + 0.05)
        if inside.any():
            share = round(float(dropped[inside].mean()), 4)
            curve.append({"language": language, "jaccard_from": round(float(low), 2),
                          "rows": int(inside.sum()), "dropped_share": share})  # fmt: skip
    return row, curve


def speed(history: int) -> list[dict[str, Any]]:
    """Return megabytes per CPU second and microseconds a row of each step, English and Chinese."""
    rows = []
    for language in LANGUAGES:
        writer = Writer.of(language, SEED + 1)
        batch = [row_of(writer.text()) for _ in range(min(history, 2 * BATCH))]
        size = sum(len(row.text.encode()) for row in batch)
        with opened() as index:
            seconds = {"sketch": [0.0] * 3, "look": [0.0] * 3, "commit": [0.0] * 3}
            sketch(batch[:10], CONFIG)
            for repeat in range(3):
                # Other digests, so that each repeat is new; near matching then finds every row.
                rows_now = [IndexRow(sha256(f"{repeat}{r.digest}".encode()).hexdigest(), r.text)
                            for r in batch]  # fmt: skip
                began = time.process_time()
                sketches = sketch(rows_now, CONFIG)
                seconds["sketch"][repeat] = time.process_time() - began
                began = time.process_time()
                index.look(str(repeat), sketches)
                seconds["look"][repeat] = time.process_time() - began
                began = time.process_time()
                index.commit(str(repeat))
                seconds["commit"][repeat] = time.process_time() - began
        whole = sum(sorted(values)[1] for values in seconds.values())
        rows.append({
            "name": f"speed, {language}",
            "rows": len(batch),
            "bytes_per_row": round(size / len(batch)),
            "microseconds_per_row": {
                name: round(1e6 * sorted(values)[1] / len(batch), 2)
                for name, values in seconds.items()
            },
            "megabytes_per_cpu_second": round(size / whole / 1e6, 1),
            "repeats": 3,
        })  # fmt: skip
    return rows


def growth(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Fill an index with random sketches; return its cost and memory at some sizes."""
    random_source = np.random.default_rng(SEED)
    rows: list[dict[str, Any]] = []
    with opened() as index:
        known, batch = 0, 0
        looks, commits = 0.0, 0.0
        for size in sizes:
            counted = 0
            while known < size:
                sketches = random_sketches(random_source, 4 * BATCH)
                began = time.process_time()
                index.look(str(batch), sketches)
                looked = time.process_time()
                index.commit(str(batch))
                looks += looked - began
                commits += time.process_time() - looked
                known, batch, counted = known + 4 * BATCH, batch + 1, counted + 4 * BATCH
            found = index.size()
            rows.append({
                "name": f"index of {known} long rows",
                "look_microseconds_per_row": round(1e6 * looks / counted, 2),
                "commit_microseconds_per_row": round(1e6 * commits / counted, 2),
                "megabytes_on_disk_per_million": round(found.bytes / found.documents, 1),
                "peak_resident_megabytes": round(
                    resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                ),
            })  # fmt: skip
            looks = commits = 0.0
    return rows


def random_sketches(source: np.random.Generator, count: int) -> Sketches:
    """Return sketches of rows that have nothing in common."""
    return Sketches(
        keys=source.integers(0, 1 << 64, count, dtype=np.uint64),
        checks=source.integers(0, 1 << 32, count, dtype=np.uint32),
        places=np.arange(count),
        bands=source.integers(0, 1 << 64, (count, BANDS), dtype=np.uint64),
        signatures=source.integers(0, 256, (count, SIGNATURE_BYTES), dtype=np.uint8),
    )


def beside_rensa(history: int) -> list[dict[str, Any]]:
    """Deduplicate the same English texts with rensa's deduplicator, shingles as its tokens."""
    from rensa import RMinHashDeduplicator

    writer = Writer.of("en", SEED + 2)
    texts = [writer.text() for _ in range(history // 2)]
    changed = [writer.near(text, 1 + place % 8) for place, text in enumerate(texts[: history // 8])]
    similar = [jaccard(one, other) for one, other in zip(texts, changed, strict=False)]
    whole = [*texts, *changed]
    size = sum(len(text.encode()) for text in whole)
    rows = []
    for name in ("rensa", "index"):
        began = time.process_time()
        if name == "rensa":
            theirs = RMinHashDeduplicator(threshold=NEAR_FROM, num_perm=128, use_lsh=True)
            kept = theirs.add_pairs(
                (str(place), sorted(shingles(text, 5))) for place, text in enumerate(whole)
            )
        else:
            with opened() as index:
                kept = [verdict == "new" for verdict in judge(index, "all", whole)]
        seconds = time.process_time() - began
        dropped = [not keep for keep in kept[len(texts) :]]
        pairs = list(zip(dropped, similar, strict=True))
        true = [drop for drop, value in pairs if value >= NEAR_FROM]
        rows.append({
            "name": f"beside rensa: {name}",
            "recall": round(sum(true) / len(true), 5),
            "megabytes_per_cpu_second": round(size / seconds / 1e6, 2),
            "rows": len(whole),
        })  # fmt: skip
    return rows


def leakage(count: int) -> list[dict[str, Any]]:
    """Inject evaluation rows into training, changed or not; count what the gate leaves in."""
    config = LeakageConfig(removed_share_max=1.0)
    rows = []
    for name, language, words in (
        ("short prompts, en", "en", (6, 14)),
        ("long prompts, en", "en", (40, 80)),
        ("short prompts, zh", "zh", (8, 16)),
        ("long prompts, zh", "zh", (40, 80)),
    ):
        writer = Writer.of(language, SEED + 3)
        source = random.Random(SEED)
        evaluation = [record("e", place, writer.text(*words)) for place in range(count)]
        clean = [record("t", place, writer.text(*words)) for place in range(3 * count)]
        leaked = []
        for place, item in enumerate(evaluation):
            text = writer.near(item.prompt, source.randint(0, 3))
            if similarity_of(config, item.prompt, text) >= config.similarity_min:
                leaked.append((place, record("l", place, text)))
        training = [*clean, *(item for _, item in leaked)]
        source.shuffle(training)
        began = time.process_time()
        found = leakage_gate(config, iter(training), evaluation)
        seconds = time.process_time() - began
        left = {place for place, item in leaked if item.record_id not in found.remove}
        taken = [item for item in clean if item.record_id in found.remove]
        wrong = [item for item in taken if not repeats(config, item, evaluation)]
        rows.append({
            "name": f"leakage, {name}",
            "evaluation_rows": count,
            "training_rows": len(training),
            "injected": len(leaked),
            "recall": round(1 - len(left) / max(1, len(leaked)), 5),
            "wrongly_removed": len(wrong),
            "leaked_share_after": round(len(left) / count, 6),
            "microseconds_per_training_row": round(1e6 * seconds / len(training), 1),
        })  # fmt: skip
    return rows


def similarity_of(config: LeakageConfig, one: str, other: str) -> float:
    """Return the exact similarity that the gate speaks of."""
    ours, theirs = (shingles(text, config.shingle_characters) for text in (one, other))
    return len(ours & theirs) / len(ours | theirs)


def repeats(config: LeakageConfig, item: Record, evaluation: Sequence[Record]) -> bool:
    """Tell by comparison with every evaluation row whether a row repeats one."""
    return any(
        similarity_of(config, item.prompt, other.prompt) >= config.similarity_min
        for other in evaluation
    )


def record(prefix: str, place: int, text: str) -> Record:
    """Return a record with this prompt."""
    return Record(f"{prefix}-{place}", "day-1", "", "all", (Message("user", text),), "ok")


def row_of(text: str) -> IndexRow:
    """Return what the index sees of a text."""
    return IndexRow(sha256(text.encode()).hexdigest(), text)


def judge(index: DuplicateIndex, batch: str, texts: Sequence[str]) -> list[str]:
    """Take a batch into the index and return its verdicts."""
    verdicts = index.look(batch, [row_of(text) for text in texts])
    index.commit(batch)
    return [*verdicts]


@contextmanager
def opened() -> Iterator[DuplicateIndex]:
    """An index in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        index = DuplicateIndex(Path(folder), CONFIG)
        try:
            yield index
        finally:
            index.close()


def run(history: int, filled: Sequence[int], leak_rows: int) -> dict[str, Any]:
    """Measure everything; return the report."""
    began = time.monotonic()
    grown = growth(filled)
    measured: list[dict[str, Any]] = []
    curve: list[dict[str, Any]] = []
    for language in LANGUAGES:
        row, shares = quality(language, history)
        measured.append(row)
        curve += shares
    goals = []
    for row in measured:
        goals.append(_goal(f"recall, {row['name']}", row["recall"], RECALL_GOAL, True))
        goals.append(_goal(f"precision, {row['name']}", row["precision"], PRECISION_GOAL, True))
    leaks = leakage(leak_rows)
    for row in leaks:
        goals.append(_goal(f"{row['name']}: share left", row["leaked_share_after"], LEAK_GOAL,
                           False))  # fmt: skip
    measured += [*speed(history), *beside_rensa(history), *grown, *leaks]
    return {
        "benchmark": "duplicates",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seed": SEED,
        "settings": CONFIG.model_dump(),
        "measured": measured,
        "dropped_by_similarity": curve,
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals,
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the share of rows dropped over their true similarity."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(6, 4))
    for language in LANGUAGES:
        rows = [row for row in report["dropped_by_similarity"] if row["language"] == language]
        places = [row["jaccard_from"] + 0.025 for row in rows]
        axes.plot(places, [row["dropped_share"] for row in rows], marker="o", label=language)
    axes.axvline(NEAR_FROM, color="grey", linewidth=0.8)
    axes.set(xlabel="true Jaccard similarity", ylabel="share dropped as near duplicates")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _goal(name: str, value: float, goal: float, at_least: bool) -> dict[str, Any]:
    met = value >= goal if at_least else value <= goal
    return {"name": name, "value": value, "goal": goal, "met": met}


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts, a smaller index")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.quick:
        report = run(HISTORY_QUICK, FILLED_QUICK, LEAK_ROWS_QUICK)
    else:
        report = run(HISTORY, FILLED, LEAK_ROWS)
        path = RESULTS / "duplicates.json"
        path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        plot(report, RESULTS / "duplicates.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
