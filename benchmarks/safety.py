"""What the safety chain costs for a text of 300 characters, filter by filter, on one core.

`python benchmarks/safety.py [--quick] [--json] [--data FOLDER]`. With the folder of the data sets
it also counts how many benign queries the whole chain holds back, and how many toxic comments. The
full run writes results/safety.json and a plot.
"""

import argparse
import csv
import json
import os
import platform
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from serving.safety.chain import Chain, Checked, build_chain, run_filter
from serving.safety.decisions import Context, Direction
from serving.safety.policy import SHIPPED_POLICY, read_policy
from serving.safety.stream import OutputGuard
from serving.safety.views import views

RESULTS = Path(__file__).resolve().parent / "results"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
CHARACTERS = 300
TEXTS, TEXTS_QUICK = 5_000, 600
STREAM_PIECE_CHARACTERS = 4
MEDIAN_MILLISECONDS_GOAL = 2.0
P99_MILLISECONDS_GOAL = 8.0
FALSE_POSITIVES_GOAL = 0.01
DIRECTIONS: tuple[Direction, ...] = ("input", "output")
SYSTEM_PROMPT = "You are the assistant of a bank. Answer in a friendly tone and never guess. "
SENTENCES = {
    "en": (
        "Could you tell me why {} was charged to my account on {}?",
        "I ordered a lamp under W-{} and it has not arrived yet.",
        "Please book a table for {} people near the station, not later than {}.",
        "What's the difference between the {} plan and the one I have now?",
        "My colleague says that the form {} must be signed twice; is that so?",
        "Set an alarm for {} in the morning and remind me of the {} bills!",
    ),
    "zh": (
        "请问我的账户为什么在{}号被扣了{}元？",
        "订单W-{}的台灯还没有到，能帮我查一下吗？",
        "帮我订一张{}点去上海的火车票，谢谢。",
        "这个套餐和我现在用的{}元套餐有什么区别呢？",
        "同事说表格{}要签两次名字，是这样吗？",
    ),
}


def texts(language: str, count: int) -> list[str]:
    """Return ordinary texts of CHARACTERS characters, each another one."""
    drawn = random.Random(f"{language}{count}")
    made = []
    for _ in range(count):
        text = ""
        while len(text) < CHARACTERS:
            sentence = drawn.choice(SENTENCES[language])
            text += sentence.format(drawn.randint(2, 9999), drawn.randint(2, 9999)) + " "
        made.append(text[:CHARACTERS])
    return made


def timed(name: str, call: Callable[[str], object], given: Sequence[str]) -> dict[str, Any]:
    """Return a row: what `call` takes for a text, in CPU and wall milliseconds."""
    for text in given[:20]:
        call(f"{text[:-1]}~")
    cpu, wall = [], []
    for text in given:
        views.cache_clear()
        began, cpu_began = time.perf_counter(), time.thread_time()
        call(text)
        cpu.append(1000 * (time.thread_time() - cpu_began))
        wall.append(1000 * (time.perf_counter() - began))
    total = sum(cpu) / 1000
    return {
        "name": name,
        "texts": len(given),
        "median_milliseconds": round(statistics.median(cpu), 4),
        "p99_milliseconds": round(quantile(cpu, 0.99), 4),
        "median_wall_milliseconds": round(statistics.median(wall), 4),
        "p99_wall_milliseconds": round(quantile(wall, 0.99), 4),
        "texts_per_core_second": round(len(given) / total, 1),
        "megabytes_per_core_second": round(sum(len(t.encode()) for t in given) / total / 1e6, 3),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the value that the share `share` of all stays at or below."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(chain: Chain, count: int) -> list[dict[str, Any]]:
    """Time the whole chain, each filter alone, and an answer in small pieces."""
    rows = []
    for language in SENTENCES:
        given = texts(language, count)
        for direction in DIRECTIONS:
            name = f"whole chain, {direction}, {language}"
            context = Context(direction, (SYSTEM_PROMPT,), (given[0],))
            rows.append(timed(name, partial(whole, chain, context), given))
        for link in chain.links:
            context = Context(link.directions[0], (SYSTEM_PROMPT,), (given[0],))
            call = partial(run_filter, link, "user", context=context)
            rows.append(timed(f"{link.filter.name}, {language}", call, given))
        rows.append(timed(f"streamed answer, {language}", lambda text: stream(chain, text), given))
    return rows


def whole(chain: Chain, context: Context, text: str) -> Checked:
    """Check a text as the predictor does."""
    return chain.check("user" if context.direction == "input" else "assistant", text, context)


def stream(chain: Chain, text: str) -> str:
    """Guard an answer that comes in small pieces."""
    guard = OutputGuard(chain, Context("output"))
    size = STREAM_PIECE_CHARACTERS
    starts = range(0, len(text), size)
    return "".join(guard.feed(text[at : at + size], at + size >= len(text)).text for at in starts)


def judge(chain: Chain, folder: Path) -> list[dict[str, Any]]:
    """Count what the whole chain holds back of benign queries and of labelled comments."""
    rows = []
    for name in ("eval", "out_of_scope"):
        lines = (folder / "clinc150" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        blocked = sum(chain.check("user", json.loads(line)["text"]).blocked for line in lines)
        rows.append(
            {
                "name": f"clinc150 {name}, benign",
                "texts": len(lines),
                "blocked": blocked,
                "blocked_share": round(blocked / len(lines), 5),
            }
        )
    with (folder / "cold" / "dev.csv").open(encoding="utf-8-sig", newline="") as file:
        comments = [(row["TEXT"], row["label"] == "1") for row in csv.DictReader(file)]
    for offensive in (True, False):
        chosen = [text for text, label in comments if label is offensive]
        blocked = sum(chain.check("user", text).blocked for text in chosen)
        rows.append(
            {
                "name": f"cold dev, {'offensive' if offensive else 'not offensive'}",
                "texts": len(chosen),
                "blocked": blocked,
                "blocked_share": round(blocked / len(chosen), 5),
            }
        )
    return rows


def goals(rows: Sequence[dict[str, Any]], judged: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Compare the worst of the whole chain's rows with the goals; a missing figure is not met."""
    whole = [row for row in rows if row["name"].startswith("whole chain")]
    benign = next((row["blocked_share"] for row in judged if "eval" in row["name"]), None)
    median = max(row["median_milliseconds"] for row in whole)
    p99 = max(row["p99_milliseconds"] for row in whole)
    wanted: tuple[tuple[str, float | None, float], ...] = (
        (f"whole chain, {CHARACTERS} characters, median ms", median, MEDIAN_MILLISECONDS_GOAL),
        (f"whole chain, {CHARACTERS} characters, p99 ms", p99, P99_MILLISECONDS_GOAL),
        ("share of CLINC150's 4,500 benign queries blocked", benign, FALSE_POSITIVES_GOAL),
    )
    return [
        {"name": name, "value": value, "goal": goal, "met": value is not None and value <= goal}
        for name, value, goal in wanted
    ]


def run(count: int, folder: Path) -> dict[str, Any]:
    """Measure everything; return the report."""
    began = time.monotonic()
    policy = read_policy(SHIPPED_POLICY)
    chain = build_chain(policy)
    rows = measure(chain, count)
    judged = judge(chain, folder) if (folder / "cold").is_dir() else []
    return {
        "benchmark": "safety",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "policy": policy.digest,
        "time": "CPU milliseconds of the one thread that checks; wall beside it",
        "measured": [*rows, *judged],
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals(rows, judged),
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the median of each filter and of the whole chain."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = [row for row in report["measured"] if "median_milliseconds" in row][::-1]
    names = [row["name"] for row in rows]
    figure, axes = pyplot.subplots(figsize=(8, 6))
    axes.barh(names, [row["p99_milliseconds"] for row in rows], color="lightgrey", label="p99")
    axes.barh(names, [row["median_milliseconds"] for row in rows], label="median")
    axes.axvline(MEDIAN_MILLISECONDS_GOAL, linestyle=":", color="grey")
    axes.set(xlabel=f"CPU milliseconds for {CHARACTERS} characters")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer texts")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data sets")
    options = parser.parse_args()
    report = run(TEXTS_QUICK if options.quick else TEXTS, options.data)
    if not options.quick:
        (RESULTS / "safety.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "safety.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
