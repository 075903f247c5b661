"""Deployments as `serin up` offers them, each run by its worker: backup, drill, watch, retrain."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.backup_place import BackupPlace
from core.contracts import CanaryDecision, Candidate
from core.settings import Settings
from core.words import features
from observability.load import CHAT_PATH
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from tests.one_machine import until
from tests.running_stack import isolated_environment, running, serin

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
SNAPSHOT = "5" * 64
PROMOTE = CanaryDecision("promote", "the test says so", canary_requests=1000)
RUN_SECONDS_MAX = 240.0
DRIFTS = {
    "recovery": "retrain",
    "conditions": [{"metric": "prompt_drift", "above": 0.4, "clear": 0.35}],
}
PROMPTS = 20


@dataclass
class Deployed:
    """A stack with its worker that serves version 1, and how its deployments are asked."""

    settings: Settings
    environment: dict[str, str]
    ledger: Ledger
    place: BackupPlace

    def deployment(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.api("GET", f"deployments/name/{name}")
        return found

    def change(self, name: str, **parameters: Any) -> None:
        """Change a deployment's parameters, as one does in the UI."""
        found = self.deployment(name)
        merged = {**found["parameters"], **parameters}
        self.api("PATCH", f"deployments/{found['id']}", {"parameters": merged})

    def run(self, name: str) -> dict[str, Any]:
        """Run a deployment, as the UI's button does; return its run at the end."""
        found = self.deployment(name)
        started = self.api("POST", f"deployments/{found['id']}/create_flow_run", {})
        return self.ended(started["id"])

    def ended(self, run_id: str) -> dict[str, Any]:
        """Wait for the end of a run."""

        def look() -> dict[str, Any] | None:
            run: dict[str, Any] = self.api("GET", f"flow_runs/{run_id}")
            return run if run["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED") else None

        found: dict[str, Any] = wait(look, f"the end of run {run_id}")
        return found

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask Prefect's server."""
        url = f"{self.settings.prefect_url}/{path}"
        answer = httpx.request(method, url, json=body, timeout=30).raise_for_status()
        return answer.json() if answer.content else None


def wait(look: Callable[[], Any], what: str) -> Any:
    found = until(look, what, RUN_SECONDS_MAX)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("deployed")
    home, place = folder / "home", BackupPlace(str(folder / "place"))
    home.mkdir()
    (home / "gateway.yaml").write_text(json.dumps({"prompt_share": 1.0}))
    environment = {**isolated_environment(home), "SERIN_BACKUP_URI": place.address}
    with running(home, environment) as (settings, bound):
        ledger = Ledger(settings.ledger_url)
        promote(settings, ledger, bundle)
        yield Deployed(settings, bound, ledger, place)
        ledger.close()


def promote(settings: Settings, ledger: Ledger, bundle: Path) -> None:
    """Make version 1 stable; it was trained on a snapshot of English prompts."""
    kept = settings.folder("bundles") / bundle.name
    shutil.copytree(bundle, kept)
    candidate = Candidate(
        service=settings.service, model_version="1", bundle_digest=kept.name,
        bundle_uri=f"file://{kept}", adapter_digest="a" * 64, snapshot_id=SNAPSHOT,
        verdict_digest="d" * 64, stable_version=None,
    )  # fmt: skip
    conductor = Conductor(ledger, KubernetesClient(settings.kube_url), "test")
    plan = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0)
    release = conductor.start(conductor.propose(candidate, plan).release_id)
    until(lambda: conductor.advance(release.release_id, PROMOTE).final, "version 1", 120)


def test_a_backup_is_made_and_its_drill_restores_serves_and_compares(deployed: Deployed) -> None:
    ran = deployed.run("backup/backup")
    assert ran["state"]["name"] == "Backed up", ran["state"]
    manifest = deployed.place.manifest()
    assert manifest.facts["stable_version"] == "1"
    assert manifest.facts["fingerprint"]
    assert deployed.place.problems(manifest) == []
    ran = deployed.run("restore/drill")
    assert ran["state"]["name"] == "Restorable", ran["state"]
    event = next(e for e in deployed.ledger.last_events(20) if e.kind == "restore drill")
    assert event.body["backup_id"] == manifest.backup_id
    assert event.body["passed"] is True
    assert event.body["rpo_events"] <= 1


def let_drift(deployed: Deployed, days: Path) -> None:
    """Train on English, ask in Chinese, and let that start a daily run, which finds no day."""
    trained: dict[str, Counter[str]] = {}
    for (feature, bucket), count in features("Where is my parcel?").items():
        trained.setdefault(feature, Counter())[bucket] += count * 500
    kept = deployed.settings.home / "snapshots" / "features" / f"{SNAPSHOT}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"rows": 500, "features": trained}))
    daily = deployed.deployment("retrain/daily")["parameters"]
    deployed.change("retrain/daily", ingest={**daily["ingest"], "data": str(days)})
    health = {"drift_seconds": 1, "prompts_min": 5, "rows": {"prompt_drift": DRIFTS}}
    deployed.change("watch/watch", health=health)
    turns = [{"role": "user", "content": "请问我的包裹现在到哪里了，什么时候可以送到？"}]
    body = {"model": deployed.settings.service, "messages": turns, "max_tokens": 4}
    for _ in range(PROMPTS):
        url = deployed.settings.gateway_url + CHAT_PATH
        httpx.post(url, json=body, timeout=60).raise_for_status()


def test_drifted_traffic_starts_a_daily_run_when_the_row_says_so(
    deployed: Deployed, tmp_path: Path
) -> None:
    """The signal reaches the watch, the watch's row acts, and the worker runs what it started.

    The registry does not know version 1, so that the watch cannot settle its release: it heals
    all the same, and its run says what it could not do.
    """
    nothing_new = tmp_path / "days"
    nothing_new.mkdir()
    let_drift(deployed, nothing_new)
    serin("health", "signal", "odd prompts", environment=deployed.environment, seconds=60)

    def started() -> Any:
        events = deployed.ledger.last_events(50)
        of_row = [e for e in events if e.body.get("row") == "prompt_drift"]
        return next((e for e in of_row if "flow_run_id" in e.body), None)

    done = wait(started, "the daily run's start")
    assert done.kind == "health_done"
    run = deployed.ended(done.body["flow_run_id"])
    assert run["deployment_id"] == deployed.deployment("retrain/daily")["id"]
    assert str(nothing_new) in run["state"]["message"], run["state"]["message"]
    seen = json.loads(serin("health", "--json", environment=deployed.environment, seconds=60))
    assert seen["rows"]["prompt_drift"]["stands"] == "acting"

    def told() -> bool:
        looks = deployed.api("POST", "flow_runs/filter", {"flows": {"name": {"any_": ["watch"]}}})
        return any("Model Version" in str(one["state"]["message"]) for one in looks)

    wait(told, "a watch that says what it could not do")
    runs = deployed.api("POST", "flow_runs/filter", {"deployments": {"name": {"any_": ["daily"]}}})
    assert len([one for one in runs if one["state_type"] != "SCHEDULED"]) == 1
