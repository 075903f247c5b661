"""How long the ledger takes to tell its history, on 100,000 events.

`python benchmarks/history.py [--quick] [--json] [--ledger-url URL]`. Times the queries behind
`serin history` inside one process, without the interpreter's start. The full run writes
results/history.json and a plot.
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from sqlalchemy import insert

from core.contracts import Candidate, ReleaseState
from rollout.events import ServingShare, chain, serving_text
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.schema import EVENTS, META, RELEASES
from rollout.times import to_iso
from rollout.writer import Writer, read_head

RESULTS = Path(__file__).resolve().parent / "results"
EVENTS_COUNT = 100_000
EVENTS_EACH = 20
REPEATS, REPEATS_QUICK = 50, 10
MILLISECONDS_GOAL = 100.0
SERVICE = "assistant"


def fill(ledger: Ledger, events: int, start: float) -> None:
    """Write releases of 20 events each, a second apart, every second of which changes shares."""

    def work(writer: Writer) -> None:
        release = writer.create("default", candidate(), ReleasePlan(), "proposed", {})
        connection = writer._connection
        template = dict(connection.execute(RELEASES.select()).mappings().one())
        _, previous = read_head(connection)
        rows, releases = [], []
        for seq in range(2, events + 1):
            number, last = divmod(seq - 1, EVENTS_EACH)
            name = f"r-20200101-{number:05d}"
            ends = last == EVENTS_EACH - 1
            shares = [ServingShare(str(number), "b" * 64, 100)] if seq % 2 else []
            row = {
                "seq": seq,
                "time": to_iso(start + seq),
                "release_id": name,
                "namespace": "default",
                "service": SERVICE,
                "kind": "promoted" if ends else "applied",
                "state": "PROMOTED" if ends else "CANARY",
                "epoch": 1,
                "holder": "flow",
                "body": '{"action":"RaiseShare","resource_version":"12345"}',
                "serving": serving_text(shares),
            }
            rows.append(chain(row, previous))
            previous = rows[-1]["hash"]
            if ends:
                state = str(ReleaseState.PROMOTED)
                releases.append({**template, "release_id": name, "state": state, "final_seq": seq})
        connection.execute(insert(EVENTS), rows)
        connection.execute(insert(RELEASES), releases)
        head = META.update().where(META.c.name == "head")
        connection.execute(head.values(value=f"{events}:{previous}"))
        assert release.release_id

    ledger.write(work)


def candidate() -> Candidate:
    """Any candidate."""
    return Candidate(
        service=SERVICE,
        model_version="1",
        bundle_digest="b" * 64,
        bundle_uri="file:///bundles/" + "b" * 64,
        adapter_digest="a" * 64,
        snapshot_id="5" * 64,
        verdict_digest="d" * 64,
        stable_version=None,
    )


def timed(name: str, repeats: int, call: Callable[[], object]) -> dict[str, Any]:
    """Return a row: what `call` takes, in milliseconds."""
    call()
    cpu, values = time.process_time(), []
    for _ in range(repeats):
        began = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()):
            call()
        values.append(1000 * (time.perf_counter() - began))
    return {
        "name": name,
        "median_milliseconds": round(statistics.median(values), 2),
        "max_milliseconds": round(max(values), 2),
        "cpu_milliseconds": round(1000 * (time.process_time() - cpu) / repeats, 2),
        "repeats": repeats,
    }


def run(events: int, repeats: int, ledger_url: str) -> dict[str, Any]:
    """Fill a ledger and time every question; return the report."""
    from cli.history import history

    began, start = time.monotonic(), time.time() - events - 60
    with tempfile.TemporaryDirectory() as home:
        os.environ["SERIN_HOME"] = home
        os.environ["SERIN_LEDGER_URL"] = ledger_url or f"sqlite:///{home}/ledger.db"
        ledger = Ledger(os.environ["SERIN_LEDGER_URL"])
        fill(ledger, events, start)
        given: dict[str, Any] = {"json_output": True, "at": None, "release": None}
        given |= {"limit": None, "verify": False}
        middle = f"r-20200101-{events // EVENTS_EACH // 2:05d}"
        asked = {
            "--at the first hour": {"at": to_iso(start + 3600)},
            "--at the middle": {"at": to_iso(start + events / 2)},
            "--at now": {"at": "now"},
            "the newest 50 events": {},
            "--release ID": {"release": middle},
        }
        rows = [
            timed(name, repeats, partial(history, **{**given, **more}))
            for name, more in asked.items()
        ]
        whole = timed("--verify, the whole chain", 1, ledger.verify)
        problems = ledger.verify()
        ledger.close()
    goals = [
        {
            "name": f"median milliseconds of {row['name']} on {events} events",
            "value": row["median_milliseconds"],
            "goal": MILLISECONDS_GOAL,
            "met": row["median_milliseconds"] < MILLISECONDS_GOAL,
        }
        for row in rows
    ]
    goals.append({"name": "problems found", "value": len(problems), "goal": 0, "met": not problems})
    return {
        "benchmark": "history",
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "database": "postgresql" if ledger_url.startswith("postgresql") else "sqlite",
        "events": events,
        "measured": [*rows, whole],
        "wall_seconds": round(time.monotonic() - began, 1),
        "goals": goals,
    }


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the medians against the goal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = report["measured"][:-1]
    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.barh([row["name"] for row in rows], [row["median_milliseconds"] for row in rows])
    axes.axvline(MILLISECONDS_GOAL, linestyle=":", color="grey")
    axes.set(xlabel=f"milliseconds on {report['events']} events")
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer repeats")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--ledger-url", default="", help="an empty database; default SQLite")
    options = parser.parse_args()
    repeats = REPEATS_QUICK if options.quick else REPEATS
    report = run(EVENTS_COUNT, repeats, options.ledger_url)
    if not options.quick:
        (RESULTS / "history.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "history.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
