"""From the loss of a machine to the right answers again, and what the ledger lost.

`python benchmarks/recovery.py [--quick] [--json]`. A home with the built-in model serves version 1,
a canary of version 2 is under way, the keeper copies the ledger. Then every process is killed and
the home deleted. The full run does it three times and writes results/recovery.json and a plot.
"""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.rollback import HOLD, PLAN, PROMOTE, edition
from core.backup_place import BackupPlace
from core.contracts import ReleaseState
from core.settings import Settings
from rollout.ledger import Ledger
from tasks.backups import back_up
from tasks.restoring import drill, restore
from tests.one_machine import SERVICE, OneMachine, until

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
REPEATS = 3
SECONDS_MAX = 600.0
RTO_SECONDS_GOAL, RTO_SECONDS_LIMIT = 180.0, 900.0
RPO_EVENTS_GOAL = 1
COPY_SECONDS = 1.0
"""The keeper looks ten times a second here; a loss within the last second may cost an event."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """One loss. `answer_seconds`: from the empty folder to stable's answer at the gateway."""

    first_backup_seconds: float
    next_backup_seconds: float
    restore_seconds: float
    answer_seconds: float
    safe_seconds: float
    drill_seconds: float
    events_lost: int
    prompts_differing: int
    chain_problems: int
    rolled_back: bool


def builtin_bundle(folder: Path) -> Path:
    """Build a bundle of the built-in shape in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.support.serving_models", "builtin", str(folder)]
    done = subprocess.run(
        [*command, "one={}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    return Path(json.loads(done.stdout.strip().splitlines()[-1])["one"]["path"])


@contextlib.contextmanager
def machine_in(home: Path) -> Iterator[OneMachine]:
    """A control plane, gateway and keeper on a home."""
    machine = OneMachine(home, config={})
    try:
        machine.start()
        machine.start_keeper()
        yield machine
    finally:
        machine.stop()


def settings_of(home: Path) -> Settings:
    """The settings of a home alone."""
    return Settings.read({"SERIN_HOME": str(home)})


def live(home: Path, bundle: Path, place: BackupPlace) -> tuple[float, float, int]:
    """Serve version 1, back up twice, begin version 2, lose all: (seconds, seconds, events)."""
    (home / "bundles").mkdir(parents=True)
    first = shutil.copytree(bundle, home / "bundles" / bundle.name)
    second = edition(first, 2)
    with machine_in(home) as machine:
        ledger = Ledger(machine.ledger_url)
        conductor = machine.conductor(ledger, "first")
        proposed = conductor.propose(machine.candidate("1", None, first), PLAN)
        conductor.start(proposed.release_id)
        until(
            lambda: conductor.advance(proposed.release_id, PROMOTE).final, "version 1", SECONDS_MAX
        )
        made = [back_up(settings_of(home), place) for _ in range(2)]
        release = conductor.start(
            conductor.propose(machine.candidate("2", "1", second), PLAN).release_id
        )
        until(
            lambda: conductor.advance(release.release_id, HOLD).step_started_at is not None,
            "the canary",
            SECONDS_MAX,
        )
        written = ledger.last_events(1)[0].seq
        time.sleep(COPY_SECONDS)
        ledger.close()
    shutil.rmtree(home)
    return made[0].seconds, made[1].seconds, written


def recover(folder: Path, bundle: Path) -> Recovery:
    """Lose a machine and bring it back; time each part."""
    place = BackupPlace(str(folder / "place"))
    os.environ["SERIN_BACKUP_URI"] = place.address
    first, following, written = live(folder / "old", bundle, place)
    del os.environ["SERIN_BACKUP_URI"]
    home, began = folder / "new", time.monotonic()
    found = restore(place, home)
    with machine_in(home) as machine:
        until(lambda: answers(machine), "an answer of stable", SECONDS_MAX)
        answered = time.monotonic() - began
        ledger = Ledger(machine.ledger_url)
        until(lambda: ledger.active(SERVICE) is None, "a safe state", SECONDS_MAX)
        safe = time.monotonic() - began
        release = ledger.releases(SERVICE, limit=1)[0]
        problems = len(ledger.verify())
        ledger.close()
    (folder / "papers").mkdir()
    drilled = drill(settings_of(home), place, folder / "papers")
    return Recovery(
        first_backup_seconds=first,
        next_backup_seconds=following,
        restore_seconds=found.seconds,
        answer_seconds=answered,
        safe_seconds=safe,
        drill_seconds=drilled.rto_seconds,
        events_lost=max(written - found.ledger_seq, 0),
        prompts_differing=len(drilled.differing) if not drilled.problem else drilled.prompts,
        chain_problems=problems,
        rolled_back=release.state is ReleaseState.ROLLED_BACK,
    )


def answers(machine: OneMachine) -> bool:
    """Whether version 1 answers a request at the gateway."""
    try:
        return machine.ask() == (200, "1")
    except httpx.TransportError:
        return False


def run(repeats: int) -> dict[str, Any]:
    """Measure `repeats` losses; return the report."""
    began, cpu = time.monotonic(), os.times()
    with tempfile.TemporaryDirectory() as name:
        bundle = builtin_bundle(Path(name) / "model")
        built = time.monotonic() - began
        found = []
        for number in range(repeats):
            folder = Path(name) / str(number)
            folder.mkdir()
            found.append(recover(folder, bundle))
            print(f"{number + 1}: {found[-1]}", file=sys.stderr)
    used = [after - before for before, after in zip(cpu[:4], os.times()[:4], strict=True)]
    return {
        "benchmark": "recovery",
        "quick": repeats != REPEATS,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "repeats": repeats,
        "model": "built-in shape, OpenVINO",
        "build_seconds": round(built, 1),
        "measured": rows(found),
        "wall_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(sum(used), 1),
        "goals": goals(found),
    }


def rows(found: list[Recovery]) -> list[dict[str, Any]]:
    """Return each timed part with its median, in seconds."""
    names = {
        "first_backup_seconds": "first backup",
        "next_backup_seconds": "next backup, nothing new",
        "restore_seconds": "restore into an empty folder",
        "answer_seconds": "empty folder to stable's answer at the gateway",
        "safe_seconds": "empty folder to the canary rolled back",
        "drill_seconds": "drill: restored, served, compared",
    }
    values = {name: [asdict(item)[name] for item in found] for name in names}
    return [
        {
            "name": said,
            "median_seconds": round(statistics.median(values[name]), 3),
            "max_seconds": round(max(values[name]), 3),
            "values_seconds": [round(value, 3) for value in values[name]],
        }
        for name, said in names.items()
    ]


def goals(found: list[Recovery]) -> list[dict[str, Any]]:
    """Return the goals, by the worst of the losses."""
    rto = round(max(item.answer_seconds for item in found), 1)
    wanted = [
        ("seconds from an empty folder to stable's answers", rto, RTO_SECONDS_GOAL),
        ("the same against the limit", rto, RTO_SECONDS_LIMIT),
        ("ledger events lost", max(item.events_lost for item in found), RPO_EVENTS_GOAL),
        ("recorded answers that differ", sum(item.prompts_differing for item in found), 0),
        ("problems in the ledger's chain", sum(item.chain_problems for item in found), 0),
        ("releases not rolled back", sum(not item.rolled_back for item in found), 0),
    ]
    return [
        {"name": name, "value": value, "goal": goal, "met": value <= goal}
        for name, value, goal in wanted
    ]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the median of each part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [row["name"] for row in report["measured"]]
    figure, axes = pyplot.subplots(figsize=(8, 3.5))
    axes.barh(names, [row["median_seconds"] for row in report["measured"]])
    axes.set(xlabel="seconds (median)")
    axes.invert_yaxis()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one loss only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that no process is left behind
    report = run(1 if options.quick else REPEATS)
    if not options.quick:
        (RESULTS / "recovery.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / "recovery.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
