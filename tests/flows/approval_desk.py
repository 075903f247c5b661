"""A service of its own on the real stack whose releases need approval, and a worker beside it.

Candidates are registered with evidence but not trained: their bundles are the scripted one.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from cli.children import WORKER_READY_FILE
from core.contracts import Candidate, Evidence, ReleaseState, SnapshotRef, Verdict
from core.digests import digest_folder
from core.manifests import read_manifest, write_manifest
from core.settings import Settings
from registry.connection import Connection
from registry.runs import start_run
from registry.versions import Lineage, Registry
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from tests.running_stack import ROOT, Stack

SERVICE = "approvals"
CODES = {"Ada": "correct-horse-battery-77", "Grace": "staple-of-nanoseconds-88"}
PLAN: dict[str, Any] = {
    "shares": [50, 100], "step_seconds_min": 1, "step_requests_min": 5, "lease_seconds": 30,
}  # fmt: skip
CANARY: dict[str, Any] = {
    "p95_ratio_max": 20.0, "window_seconds": 5, "evaluate_seconds": 1, "for_seconds": 5,
    "requests_min": 10, "seconds_min": 2, "seconds_max": 120, "latency_requests_min": 5,
    "error_requests_min": 10, "betting": None,
}  # fmt: skip
SECONDS_MAX = 120.0


@dataclass
class Desk:
    """The service's ledger, conductor and registry, and the environment of its processes."""

    settings: Settings
    environment: dict[str, str]
    bundles: tuple[Path, Path]
    conductor: Conductor
    registry: Registry
    versions: list[str] = field(default_factory=list)
    worker: "subprocess.Popen[bytes] | None" = None

    @property
    def ledger(self) -> Ledger:
        return self.conductor.ledger

    def candidate(self, quality: float) -> Candidate:
        """Register another version; its evidence says `quality`."""
        number = len(self.versions) + 1
        stable = self.ledger.stable(SERVICE)
        served = Path(stable.candidate.bundle_uri).name if stable else ""
        bundle = next(path for path in self.bundles if path.name != served)
        folder = self.settings.home / "desk" / str(number)
        adapter = folder / "adapter"
        _make_adapter(adapter, number)
        drift = folder / "drift.html"
        drift.write_text("<p>no drift at all</p>")
        verdict = _verdict(quality, drift)
        snapshot = SnapshotRef("ab" * 32, "/lake/ab", 1234, 160, number, number, (f"day-{number}",))
        digest = read_manifest(bundle).digest
        with start_run(self.registry.connection, f"day-{number}") as run:
            run.log_verdict(verdict, "# page")
        lineage = Lineage(
            snapshot=snapshot,
            records_uri="/lake/records",
            base_digest="b" * 64,
            adapter_digest=digest_folder(adapter),
            bundle_digest=digest,
            bundle_uri=f"file://{bundle}",
            run_id=run.run_id,
            slices=("orders", "billing"),
        )
        version = self.registry.register(adapter, lineage, verdict).version
        self.versions.append(version)
        return Candidate(
            service=SERVICE,
            model_version=version,
            bundle_digest=digest,
            bundle_uri=f"file://{bundle}",
            adapter_digest=lineage.adapter_digest,
            snapshot_id=snapshot.snapshot_id,
            verdict_digest=verdict.digest,
            stable_version=stable.candidate.model_version if stable else None,
        )

    def propose(self, quality: float, **plan: Any) -> Release:
        return self.conductor.propose(
            self.candidate(quality), ReleasePlan(**{**PLAN, **plan}), "Linus"
        )

    def run_flow(self, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
        """Run a flow as its own process, as `serin run` does; return its final state."""
        command = [sys.executable, str(ROOT / "tests/flows/loop_process.py"), name]
        done = subprocess.run(
            [*command, json.dumps(parameters)],
            cwd=ROOT, env=self.environment, capture_output=True, text=True,
            timeout=SECONDS_MAX, check=False,
        )  # fmt: skip
        lines = [line for line in done.stdout.splitlines() if line.startswith("STATE ")]
        assert lines, done.stdout[-2000:] + done.stderr[-6000:]
        found: dict[str, Any] = json.loads(lines[-1].removeprefix("STATE "))
        return found

    def state(self, release_id: str) -> ReleaseState:
        return self.ledger.release(release_id).state

    def kinds(self, release_id: str) -> list[str]:
        return [event.kind for event in self.ledger.events(release_id=release_id)]

    def runs(self, release_id: str) -> list[dict[str, Any]]:
        """The release's runs from its deployment, as Prefect tells them."""
        body = {"deployments": {"name": {"any_": ["release"]}}}
        url = f"{self.settings.prefect_url}/flow_runs/filter"
        found = httpx.post(url, json=body, timeout=30).raise_for_status().json()
        return [run for run in found if run["parameters"].get("release_id") == release_id]

    def suspended(self, release_id: str) -> str | None:
        """The id of the release's run that waits for an answer, if one does."""
        runs = [run for run in self.runs(release_id) if run["state_name"] == "Suspended"]
        return str(runs[0]["id"]) if runs else None

    def wait(self, condition: Callable[[], Any], what: str, seconds: float = SECONDS_MAX) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := condition()):
            log = (self.settings.home / "desk-worker.log").read_text()[-6000:]
            assert time.monotonic() < deadline, f"waited {seconds} s for {what}\n{log}"
            time.sleep(0.2)
        return found

    def start_run(self, release: Release) -> str:
        """Start the release's deployment as one does in the UI; return its run."""
        api = self.settings.prefect_url
        found = httpx.get(f"{api}/deployments/name/release/release").raise_for_status().json()
        body = {"parameters": {"release_id": release.release_id}}
        made = httpx.post(f"{api}/deployments/{found['id']}/create_flow_run", json=body)
        return str(made.raise_for_status().json()["id"])

    def ask(self, release: Release) -> str:
        """Start the release's deployment; return the run, which then waits for an answer."""
        self.start_run(release)
        return self.wait_asked(release)

    def wait_asked(self, release: Release) -> str:
        self.wait(lambda: self.suspended(release.release_id), "the run to ask for approval")
        return str(self.suspended(release.release_id))

    def start_worker(self) -> None:
        """Start the worker; `await_worker` says when it works."""
        self._ready.unlink(missing_ok=True)
        with (self.settings.home / "desk-worker.log").open("ab") as file:
            self.worker = subprocess.Popen(
                [sys.executable, "-m", "cli.worker", "--home", str(self.settings.home)],
                cwd=ROOT, env=self.environment, stdout=file, stderr=file, start_new_session=True,
            )  # fmt: skip

    def await_worker(self) -> None:
        """Wait until the worker has applied prefect.yaml; then make its canaries short."""
        self.wait(self._ready.exists, "the worker to apply prefect.yaml")
        _shorten_canaries(self.settings.prefect_url)

    @property
    def _ready(self) -> Path:
        return self.settings.home / "control" / WORKER_READY_FILE


@contextmanager
def open_desk(stack: Stack, bundle: Path) -> Iterator[Desk]:
    """A desk with version 1 served and its worker running; both gone at the end."""
    settings = stack.settings.model_copy(update={"service": SERVICE})
    ledger, client = Ledger(settings.ledger_url), KubernetesClient(settings.kube_url)
    desk = Desk(
        settings,
        {**stack.environment, "SERIN_SERVICE": SERVICE, "SERIN_REQUESTED_BY": "Linus"},
        _two_bundles(settings.folder("bundles"), bundle),
        Conductor(ledger, client, "desk"),
        Registry(Connection(settings.mlflow_url), SERVICE),
    )
    desk.start_worker()
    try:
        first = desk.conductor.start(desk.propose(0.5).release_id)
        desk.wait(lambda: desk.conductor.advance(first.release_id).final, "the first version")
        desk.await_worker()
        yield desk
    finally:
        _end(desk)
        body = client.get(settings.namespace, SERVICE)
        if body is not None:
            client.delete(settings.namespace, SERVICE, body["metadata"]["uid"])
        ledger.close()


def _make_adapter(folder: Path, number: int) -> None:
    (folder / "tokenizer").mkdir(parents=True)
    (folder / "adapter_model.safetensors").write_text(f"weights {number}")
    (folder / "adapter_config.json").write_text('{"r": 16}')
    (folder / "tokenizer" / "tokenizer.json").write_text("{}")


def _verdict(quality: float, drift: Path) -> Verdict:
    slices = {"orders": {"stable": 0.5, "candidate": quality}, "billing": {"candidate": 0.75}}
    return Verdict(
        "pass",
        (
            Evidence(
                "quality", "pass", "better than stable",
                figures={"score": quality}, tables={"slices": slices},
            ),
            Evidence("drift", "pass", "none", figures={"rows": 1234}, report=str(drift)),
        ),
    )  # fmt: skip


def _two_bundles(folder: Path, bundle: Path) -> tuple[Path, Path]:
    """The scripted bundle in two editions, each in a folder named by its digest."""
    made = []
    for edition in ("desk-1", "desk-2"):
        scratch = folder / f".{edition}"
        shutil.copytree(bundle, scratch)
        manifest = read_manifest(scratch)
        changed = replace(manifest, settings={**manifest.settings, "edition": edition})
        write_manifest(scratch, changed)
        made.append(scratch.rename(folder / changed.digest))
    return made[0], made[1]


def _shorten_canaries(api: str) -> None:
    """Give the release deployment a short canary, as one does in the UI; let no watch interfere."""
    changes: dict[str, dict[str, Any]] = {
        "release/release": {"parameters": {"canary": CANARY}},
        "watch/watch": {"paused": True},
    }
    for name, body in changes.items():
        found = _asked("GET", f"{api}/deployments/name/{name}").json()
        _asked("PATCH", f"{api}/deployments/{found['id']}", json=body)


def _asked(method: str, url: str, **more: Any) -> httpx.Response:
    """Ask Prefect's server until it answers anything but 503: so it says that it is busy."""
    end = time.monotonic() + 60
    while True:
        answer = httpx.request(method, url, timeout=30, **more)
        if answer.status_code != 503 or time.monotonic() > end:
            return answer.raise_for_status()
        time.sleep(0.5)


def _end(desk: Desk) -> None:
    """End the worker and the flow runs that it started."""
    worker = desk.worker
    if worker is None or worker.poll() is not None:
        return
    processes = psutil.Process(worker.pid).children(recursive=True)
    os.killpg(worker.pid, signal.SIGTERM)
    _, left = psutil.wait_procs([psutil.Process(worker.pid), *processes], 10)
    for process in left:
        process.kill()
    worker.wait(20)
