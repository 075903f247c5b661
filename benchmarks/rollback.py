"""From the decision to roll back to all traffic on stable, at the gateway, under load.

`python benchmarks/rollback.py [--quick] [--json] [--model]`. Real control plane, gateway and
predictor processes; the predictors answer without a model unless `--model`, which loads a real
bundle each time. The full run does 100 rollbacks and writes results/rollback.json and a plot.
"""

import argparse
import contextlib
import json
import os
import platform
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from core.contracts import CanaryDecision, ReleaseState
from observability.load import LoadGenerator
from rollout.conductor import Conductor
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from rollout.times import to_seconds
from tests.one_machine import ANSWERING, SERVICE, OneMachine, until

RESULTS = Path(__file__).resolve().parent / "results"
ROLLBACKS, ROLLBACKS_QUICK = 100, 10
SAFE_SECONDS_GOAL = 1.0
RPS = 20.0
CANARY_PERCENT = 50
READY_SECONDS_MAX = 180
POLL_SECONDS = 0.005
PROMOTE = CanaryDecision("promote", "to begin with", canary_requests=1000)
HOLD = CanaryDecision("continue", "held until the decision", canary_requests=1000)
PLAN = ReleasePlan(
    shares=(CANARY_PERCENT, 100),
    step_seconds_min=0,
    step_requests_min=0,
    ready_seconds_max=READY_SECONDS_MAX,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """Seconds from the decision: the gateway sends all to stable; the ledger says so; restored."""

    gateway_seconds: float
    ledger_seconds: float
    restored_seconds: float


class GatewayWatch:
    """Notes when the gateway itself has applied routes that give a bundle everything."""

    def __init__(self, machine: OneMachine, bundle_digest: str) -> None:
        self._machine, self._wanted = machine, {bundle_digest: 100}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.seen_at: float | None = None

    def __enter__(self) -> "GatewayWatch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stop.is_set() and self.seen_at is None:
            if self._machine.routed() == self._wanted and self._machine.gateway_followed():
                self.seen_at = time.monotonic()
            self._stop.wait(POLL_SECONDS)


Serving = tuple[OneMachine, Ledger, Path | None]
"""A machine with its ledger, and the bundle of version 1 when it has a model."""


@contextlib.contextmanager
def machine_with_stable(home: Path, model: bool) -> Iterator[Serving]:
    """A machine that serves version 1."""
    bundle = None
    if model:
        from tests.bundles import scripted_bundle

        bundle = scripted_bundle(home)
    machine = OneMachine(home, () if model else ANSWERING, config={})
    machine.start()
    ledger = Ledger(machine.ledger_url)
    try:
        conductor = machine.conductor(ledger, "first")
        candidate = machine.candidate("1", None, edition(bundle, 1))
        proposed = conductor.propose(candidate, PLAN)
        conductor.start(proposed.release_id)
        until(
            lambda: conductor.advance(proposed.release_id, PROMOTE).final,
            "version 1",
            READY_SECONDS_MAX,
        )
        yield machine, ledger, bundle
    finally:
        machine.stop()
        ledger.close()


def edition(bundle: Path | None, number: int) -> Path | None:
    """Copy the bundle under another digest, so that it is another version."""
    if bundle is None or number == 1:
        return bundle
    import shutil
    from dataclasses import replace

    from core.manifests import read_manifest, write_manifest

    manifest = read_manifest(bundle)
    changed = replace(manifest, settings={**manifest.settings, "edition": number})
    final = bundle.parent / changed.digest
    if not final.exists():
        draft = bundle.parent / f".edition-{number}"
        shutil.copytree(bundle, draft)
        write_manifest(draft, changed)
        draft.rename(final)
    return final


def measure(machine: OneMachine, ledger: Ledger, version: int, bundle: Path | None) -> Measured:
    """Bring one canary to its share, decide, and time the way back."""
    stable = ledger.stable(SERVICE)
    assert stable is not None
    conductor = machine.conductor(ledger, f"engine-{version}")
    candidate = machine.candidate(str(version), "1", edition(bundle, 2) if bundle else None)
    release = conductor.start(conductor.propose(candidate, PLAN).release_id)
    until(lambda: live(conductor, release), "the canary", READY_SECONDS_MAX)
    with GatewayWatch(machine, stable.candidate.bundle_digest) as watch:
        decided = time.monotonic()
        ended = conductor.roll_back(release.release_id, "measured", "benchmark", READY_SECONDS_MAX)
        restored = time.monotonic() - decided
        until(lambda: watch.seen_at is not None, "the gateway")
    assert ended.state is ReleaseState.ROLLED_BACK, ended
    assert ended.safe_at is not None
    assert ended.rolling_back_at is not None
    assert watch.seen_at is not None
    in_ledger = to_seconds(ended.safe_at) - to_seconds(ended.rolling_back_at)
    return Measured(watch.seen_at - decided, in_ledger, restored)


def live(conductor: Conductor, release: Release) -> bool:
    """Whether the canary has its share."""
    return conductor.advance(release.release_id, HOLD).step_started_at is not None


def run(rollbacks: int, model: bool) -> dict[str, Any]:
    """Do all rollbacks under one load; return the report."""
    began, cpu = time.monotonic(), time.process_time()
    with (
        tempfile.TemporaryDirectory() as name,
        machine_with_stable(Path(name), model) as (machine, ledger, bundle),
    ):
        load: LoadGenerator = machine.load(RPS)
        load.start()
        found = []
        for number in range(rollbacks):
            found.append(measure(machine, ledger, number + 2, bundle))
            print(f"{number + 1}: {found[-1]}", file=sys.stderr)
        traffic = load.stop()
        problems = ledger.verify()
    rows = [
        row("decision to all traffic on stable, gateway", [m.gateway_seconds for m in found]),
        row("decision to safe, as the ledger saw it", [m.ledger_seconds for m in found]),
        row("decision to restored and checked", [m.restored_seconds for m in found]),
    ]
    return {
        "benchmark": "rollback",
        "quick": rollbacks != ROLLBACKS,
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "repeats": rollbacks,
        "predictors": "scripted model on OpenVINO" if model else "processes without a model",
        "measured": rows,
        "traffic": {"sent": traffic.sent, "failed": traffic.failed, "rps": RPS},
        "wall_seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "goals": goals(rows[0], traffic.failed, len(problems)),
    }


def row(name: str, values: list[float]) -> dict[str, Any]:
    """Return a measured row, in seconds."""
    ordered = sorted(values)
    return {
        "name": name,
        "median_seconds": round(statistics.median(ordered), 4),
        "p99_seconds": round(ordered[min(int(0.99 * len(ordered)), len(ordered) - 1)], 4),
        "max_seconds": round(ordered[-1], 4),
        "values_seconds": [round(value, 4) for value in values],
    }


def goals(gateway: dict[str, Any], failed: int, problems: int) -> list[dict[str, Any]]:
    """Return the goals: under a second in median and p99, no failed request, a valid chain."""
    wanted = [
        ("median seconds to all traffic on stable", gateway["median_seconds"], SAFE_SECONDS_GOAL),
        ("p99 seconds to all traffic on stable", gateway["p99_seconds"], SAFE_SECONDS_GOAL),
        ("failed client requests", failed, 0),
        ("problems in the ledger's chain", problems, 0),
    ]
    return [
        {"name": name, "value": value, "goal": goal, "met": value <= goal}
        for name, value, goal in wanted
    ]


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the distribution of each measured row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4))
    for found in report["measured"]:
        values = sorted(found["values_seconds"])
        shares = [(index + 1) / len(values) for index in range(len(values))]
        axes.step(values, shares, where="post", label=found["name"])
    axes.axvline(SAFE_SECONDS_GOAL, linestyle=":", color="grey")
    axes.set(xlabel="seconds after the decision", ylabel="share of rollbacks", xlim=(0, None))
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run, then print or write the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help=f"{ROLLBACKS_QUICK} rollbacks only")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", action="store_true", help="predictors with a real model")
    options = parser.parse_args()
    report = run(ROLLBACKS_QUICK if options.quick else ROLLBACKS, options.model)
    if not options.quick:
        name = "rollback_model" if options.model else "rollback"
        (RESULTS / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
        plot(report, RESULTS / f"{name}.png")
    print(json.dumps(report) if options.json else json.dumps(report["goals"], indent=1))


if __name__ == "__main__":
    main()
