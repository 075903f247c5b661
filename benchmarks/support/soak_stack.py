"""The soak's stack and what is done to it under load: releases, a policy, a kill, a recovery.

Real processes and a real bundle, whose model is scripted; only the releases are decided here.
"""

import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from cli.stack_file import read_stack
from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.manifests import read_manifest, write_manifest
from core.settings import Settings
from observability.load import CHAT_PATH
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release
from serving.safety.active import policy_folder
from serving.safety.policy import POLICY_NAME, SHIPPED_POLICY, read_policy
from tests.bundles import scripted_bundle
from tests.one_machine import until
from tests.running_stack import isolated_environment, running, serin

PROMOTE = CanaryDecision("promote", "the soak says so", canary_requests=1000)
HOLD = CanaryDecision("continue", "held under load", canary_requests=1000)
PLAN = ReleasePlan(shares=(50, 100), step_seconds_min=0, step_requests_min=0)
CHANGE_SECONDS_MAX = 240.0
POLL_SECONDS = 0.5
CACHE_GIGABYTES = 0.005
"""Of keys and values in a predictor: answers of a minute fill it, and then it grows no more."""
NEW_POLICY = ("threshold: 0.7", "threshold: 0.8")


@dataclass
class SoakStack:
    """A running stack that serves version 1 of a scripted model."""

    settings: Settings
    environment: dict[str, str]
    bundle: Path
    ledger: Ledger
    http: httpx.Client

    def __post_init__(self) -> None:
        client = KubernetesClient(self.settings.kube_url)
        self.conductor = Conductor(self.ledger, client, "soak")

    def begin(self, version: int) -> Release:
        """Start the release of a version whose bundle differs by its number only."""
        path = edition(self.bundle, self.settings.folder("bundles"), version)
        stable = self.ledger.stable(self.settings.service)
        candidate = Candidate(
            service=self.settings.service,
            model_version=str(version),
            bundle_digest=path.name,
            bundle_uri=f"file://{path}",
            adapter_digest="a" * 64,
            snapshot_id="5" * 64,
            verdict_digest="d" * 64,
            stable_version=stable.candidate.model_version if stable else None,
        )
        return self.conductor.start(self.conductor.propose(candidate, PLAN).release_id)

    def hold(self, release: Release, seconds: float) -> None:
        """Keep a canary at its share for a while once it has it."""
        until(
            lambda: self.conductor.advance(release.release_id, HOLD).step_started_at is not None,
            "the canary",
            CHANGE_SECONDS_MAX,
        )
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.conductor.advance(release.release_id, HOLD)
            time.sleep(POLL_SECONDS)

    def promote(self, version: int, hold_seconds: float) -> None:
        """Bring a version through its canary to stable."""
        release = self.begin(version)
        if version > 1:
            self.hold(release, hold_seconds)
        until(
            lambda: self.conductor.advance(release.release_id, PROMOTE).final,
            f"version {version}",
            CHANGE_SECONDS_MAX,
        )
        ended = self.ledger.stable(self.settings.service)
        assert ended is not None
        assert ended.candidate.model_version == str(version)

    def roll_back(self, version: int, hold_seconds: float) -> None:
        """Bring a canary to its share and take it back."""
        release = self.begin(version)
        self.hold(release, hold_seconds)
        ended = self.conductor.roll_back(
            release.release_id, "the soak says so", "soak", CHANGE_SECONDS_MAX
        )
        assert ended.state is ReleaseState.ROLLED_BACK, ended

    def reload_policy(self) -> None:
        """Put another safety policy into force and wait until answers come under it."""
        draft = policy_folder(self.settings.home) / ".draft.yaml"
        draft.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text(SHIPPED_POLICY.read_text().replace(*NEW_POLICY))
        draft.rename(draft.with_name(POLICY_NAME))
        wanted = read_policy(draft.with_name(POLICY_NAME)).digest
        assert wanted != read_policy(SHIPPED_POLICY).digest
        self._until(lambda: self.ask().headers.get("x-serin-policy") == wanted, "the policy")

    def kill_predictor(self) -> None:
        """Kill -9 the predictor that has all traffic; wait until its successor answers."""
        (before,) = self.asked_predictors()
        os.kill(before, signal.SIGKILL)
        self._until(lambda: self.asked_predictors() - {before}, "its successor")
        self._until(lambda: self.ask().status_code == 200, "an answer")

    def degrade(self, hold_seconds: float) -> None:
        """Degrade the gateway for a while, as the recovery from slow answers does, and undo it."""
        for switch, seconds in (("on", hold_seconds), ("off", 0.0)):
            serin("gateway", "degrade", switch, environment=self.environment, seconds=120)
            wanted = switch == "on"
            self._until(lambda wanted=wanted: self.degraded() is wanted, f"degraded {switch}")
            time.sleep(seconds)

    def degraded(self) -> bool:
        """What the gateway itself says of its mode."""
        lines = self.http.get(f"{self.settings.gateway_url}/metrics").text.splitlines()
        return "serin_gateway_degraded 1" in lines

    def ask(self) -> httpx.Response:
        """Send one request of our own."""
        turns = [{"role": "user", "content": "Where is my parcel?"}]
        body: dict[str, Any] = {"model": self.settings.service, "messages": turns, "max_tokens": 4}
        url, headers = self.settings.gateway_url + CHAT_PATH, {"x-serin-cache": "bypass"}
        return self.http.post(url, json=body, headers=headers)

    def asked_predictors(self) -> set[int]:
        """Predictors that are ready and have traffic; the version before waits beside them."""
        routes = self._control("routes.json")["services"][self.settings.service]
        asked = {arm["revision"] for arm in routes["arms"] if arm["percent"]}
        return {int(i["pid"]) for i in self._predictors() if i["ready"] and i["revision"] in asked}

    def names(self) -> dict[int, str]:
        """Names of processes by pid."""
        file = read_stack(self.settings.home)
        named = {identity.pid: name for name, identity in file.living.items()}
        if file.supervisor is not None:
            named[file.supervisor.pid] = "supervisor"
        return named | {int(i["pid"]): f"predictor {i['revision']}" for i in self._predictors()}

    def ports(self) -> set[int]:
        """Ports that predictors listen on."""
        return {int(i["port"]) for i in self._predictors() if i["port"]}

    def _predictors(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._control("processes.json")["processes"]
        return found

    def _control(self, name: str) -> Any:
        return json.loads((self.settings.home / "control" / name).read_text())

    @staticmethod
    def _until(look: Any, what: str) -> None:
        until(look, what, CHANGE_SECONDS_MAX)


@contextmanager
def soak_stack(home: Path) -> Iterator[SoakStack]:
    """The stack, without the worker, while version 1 is stable; stopped at the end."""
    environment = isolated_environment(home)
    bundle = scripted_bundle(home / "scripted")
    with running(home, environment, "--no-worker") as (settings, bound):
        ledger = Ledger(settings.ledger_url)
        with httpx.Client(trust_env=False, timeout=90) as http:
            stack = SoakStack(settings, bound, bundle, ledger, http)
            stack.promote(1, 0)
            yield stack
        ledger.close()


def edition(bundle: Path, folder: Path, number: int) -> Path:
    """Copy the bundle under another digest, so that it is another version, with a small cache."""
    manifest = read_manifest(bundle)
    settings = {**manifest.settings, "edition": number, "cache_gigabytes": CACHE_GIGABYTES}
    changed = replace(manifest, settings=settings)
    draft = folder / f".edition-{number}"
    shutil.copytree(bundle, draft)
    write_manifest(draft, changed)
    return draft.rename(folder / changed.digest)
