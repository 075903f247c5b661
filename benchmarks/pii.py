"""How much sensitive data is found, how much of it rightly, and how fast; beside Presidio.

`python benchmarks/pii.py [--quick] [--json]`. Two labelled corpora in four locales: Faker's values,
and formats that no pattern was written from. The full run writes results/pii.json and a plot.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.support import pii_corpus, pii_held_out
from benchmarks.support.pii_corpus import NAMES_AND_ADDRESSES, STRUCTURED, Labelled
from benchmarks.support.pii_scores import pooled, score
from privacy.pii import Scanner

RESULTS = Path(__file__).resolve().parent / "results"
SEED = 2026
PER_TYPE, PER_TYPE_QUICK = 300, 40
PRESIDIO_TEXTS_MAX, PRESIDIO_TEXTS_QUICK = 6_000, 500
ORDINARY_CHARACTERS = 300
ORDINARY_TEXTS = 4_000
REPEATS = 5
RECALL_GOAL, PRECISION_GOAL, MILLISECONDS_GOAL = 1.0, 0.99, 0.3
OBFUSCATED = "held out, obfuscated"
CHINESE = (
    "请问我的订单什么时候能够发货？我已经等了三天，客服一直没有回复，非常着急，麻烦尽快处理一下。"
)


def corpora(per_type: int) -> dict[str, list[Labelled]]:
    """Return the labelled texts by corpus; obfuscated e-mail addresses are one of their own."""
    held_out = list(pii_held_out.generate(per_type, SEED))
    return {
        "faker": list(pii_corpus.generate(per_type, SEED)),
        "held out": [item for item in held_out if item.source != OBFUSCATED],
        OBFUSCATED: [item for item in held_out if item.source == OBFUSCATED],
    }


def ordinary() -> dict[str, list[str]]:
    """Return texts of 300 characters without personal data."""
    from faker import Faker

    fake = Faker("en_US")
    fake.seed_instance(SEED)
    english = [fake.text(ORDINARY_CHARACTERS + 80)[:ORDINARY_CHARACTERS] for _ in range(200)]
    chinese = (CHINESE * 8)[:ORDINARY_CHARACTERS]
    return {"English": english * (ORDINARY_TEXTS // 200), "Chinese": [chinese] * ORDINARY_TEXTS}


def timed(
    name: str, texts: Sequence[str], call: Callable[[], object], repeats: int
) -> dict[str, Any]:
    """Return a row: megabytes of UTF-8 per second and milliseconds per text, medians."""
    size = sum(len(text.encode()) for text in texts)
    call()
    walls, cpus = [], []
    for _ in range(repeats):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    wall, cpu = statistics.median(walls), statistics.median(cpus)
    return {
        "name": name,
        "texts": len(texts),
        "megabytes_per_second": round(size / wall / 1e6, 2),
        "megabytes_per_cpu_second": round(size / cpu / 1e6, 2),
        "milliseconds_per_text": round(1000 * wall / len(texts), 4),
        "wall_seconds": round(wall, 3),
        "cpu_seconds": round(cpu, 3),
        "repeats": repeats,
    }


def speeds(scanner: Scanner, dense: Sequence[str]) -> list[dict[str, Any]]:
    """Time bulk and single calls on ordinary texts and on texts full of personal data."""
    rows = []
    for language, texts in ordinary().items():
        label = f"ordinary {language}, 300 characters"
        rows.append(timed(f"{label}, bulk", texts, partial(scanner.scan_many, texts), REPEATS))
        rows.append(
            timed(f"{label}, one by one", texts, partial(_one_by_one, scanner, texts), REPEATS)
        )
    rows.append(timed("labelled corpus, bulk", dense, lambda: scanner.scan_many(dense), REPEATS))
    rows.append(
        timed("labelled corpus, one by one", dense, lambda: [scanner.scan(x) for x in dense], 1)
    )
    return rows


def beside_presidio(scanner: Scanner, texts: list[Labelled], count: int) -> dict[str, Any] | str:
    """Return recall, precision and speed of both on the same texts and Presidio's types."""
    try:
        from benchmarks.support.pii_presidio import TYPES, Presidio

        presidio = Presidio()
    except ImportError as error:
        return f"not measured: {error}; it is in the dev group"
    step = max(1, len(texts) // count)
    chosen = texts[::step]
    plain = [item.text for item in chosen]
    theirs = score(chosen, presidio.scan_many(plain), TYPES)
    ours = score(chosen, _spans(scanner, plain), TYPES)
    return {
        "texts": len(chosen),
        "recall": {
            name: {"presidio": theirs[name].row()["recall"], "serin": ours[name].row()["recall"]}
            for name in TYPES
        },
        "precision": {
            name: {
                "presidio": theirs[name].row()["precision"],
                "serin": ours[name].row()["precision"],
            }
            for name in TYPES
        },
        "speed": [
            timed("presidio, its 13 recognisers", plain, lambda: presidio.scan_many(plain), 1),
            timed(
                "serin, all types, one by one", plain, lambda: [scanner.scan(x) for x in plain], 3
            ),
            timed("serin, all types, bulk", plain, lambda: scanner.scan_many(plain), 3),
        ],
    }


def run(per_type: int, presidio_texts: int) -> dict[str, Any]:
    """Measure everything; return the report."""
    began = time.monotonic()
    scanner = Scanner()
    quality: list[dict[str, Any]] = []
    goals: list[dict[str, Any]] = []
    texts = corpora(per_type)
    for corpus, documents in texts.items():
        found = _spans(scanner, [item.text for item in documents])
        scores = score(documents, found, [*STRUCTURED, *NAMES_AND_ADDRESSES])
        for name, counted in scores.items():
            if counted.labelled or counted.predicted:
                quality.append({"corpus": corpus, "type": name, **counted.row()})
        if corpus != OBFUSCATED:
            recall, precision = pooled(scores, STRUCTURED)
            goals += [
                _goal(f"recall of structured types, {corpus}", recall, RECALL_GOAL, recall >= 1.0),
                _goal(f"precision of structured types, {corpus}", precision, PRECISION_GOAL,
                      precision >= PRECISION_GOAL),
            ]  # fmt: skip
    dense = [item.text for item in texts["faker"]]
    timings = speeds(scanner, dense)
    single = max(row["milliseconds_per_text"] for row in timings if "ordinary" in row["name"])
    goals.append(
        _goal("milliseconds for 300 ordinary characters", single, MILLISECONDS_GOAL,
              single <= MILLISECONDS_GOAL)
    )  # fmt: skip
    presidio = beside_presidio(scanner, texts["faker"], presidio_texts)
    return {
        "benchmark": "pii",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "seed": SEED,
        "texts": {corpus: len(documents) for corpus, documents in texts.items()},
        "measured": [*quality, *timings],
        "beside_presidio": presidio,
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals,
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw recall by type on each corpus, and Presidio's where it has the type."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in report["measured"] if row.get("recall") is not None]
    types = [*STRUCTURED, *NAMES_AND_ADDRESSES]
    figure, axes = pyplot.subplots(figsize=(9, 6))
    for offset, corpus in ((-0.25, "faker"), (0.0, "held out")):
        values = {row["type"]: row["recall"] for row in rows if row["corpus"] == corpus}
        places = [index + offset for index, name in enumerate(types) if name in values]
        axes.barh(places, [values[name] for name in types if name in values], 0.25, label=corpus)
    if isinstance(report["beside_presidio"], dict):
        recall = report["beside_presidio"]["recall"]
        places = [index + 0.25 for index, name in enumerate(types) if name in recall]
        found = [recall[name]["presidio"] or 0 for name in types if name in recall]
        axes.barh(places, found, 0.25, label="presidio, faker")
    axes.set_yticks(range(len(types)), types, fontsize=8)
    axes.invert_yaxis()
    axes.set(xlabel="recall", xlim=(0, 1.02))
    axes.legend(fontsize=8, loc="lower left")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _spans(scanner: Scanner, texts: Sequence[str]) -> list[list[tuple[str, int, int]]]:
    return [
        [(span.type, span.start, span.end) for span in spans] for spans in scanner.scan_many(texts)
    ]


def _one_by_one(scanner: Scanner, texts: Sequence[str]) -> None:
    for text in texts:
        scanner.scan(text)


def _goal(name: str, value: float, goal: float, met: bool) -> dict[str, Any]:
    return {"name": name, "value": round(value, 5), "goal": goal, "met": met}


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    if options.quick:
        report = run(PER_TYPE_QUICK, PRESIDIO_TEXTS_QUICK)
    else:
        report = run(PER_TYPE, PRESIDIO_TEXTS_MAX)
        (RESULTS / "pii.json").write_text(
            json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        plot(report, RESULTS / "pii.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
