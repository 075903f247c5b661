"""What the recoveries of the health matrix do, each safe to repeat; what to do is decided before.

The service is changed only through rollout, the gateway only through its files.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from core.contracts import Figure
from core.errors import RefusedError, UnavailableError
from core.settings import Settings
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.scaling import read_replicas, scale
from tasks.gateway_files import ban, is_exempt, switch
from tasks.releasing import open_conductor
from tasks.remembering import Held
from validation.health import Reading, RowState
from validation.health_config import HealthConfig, Recovery, Row

ROOT = Path(__file__).resolve().parent.parent
CLEAN_UP_SECONDS_MAX = 300.0
RETRAIN_DEPLOYMENT = "retrain/daily"
SWITCH_OF: Mapping[str, str] = {
    "degrade": "degraded",
    "filter_inputs": "input_filter",
    "filter_requests": "request_filter",
}
MEMORY_MARGIN = 1.2
"""A further predictor is started only where this many times its memory is free."""


@dataclass(frozen=True, slots=True)
class Case:
    """One row that acts now: its name, configuration, state and the figures that led to it."""

    name: str
    row: Row
    state: RowState
    readings: Mapping[str, Reading]

    def detail(self, key: str) -> Figure:
        """A detail of the row's readings; None without it."""
        found = (self.readings.get(c.metric, Reading()).detail for c in self.row.conditions)
        return next((one[key] for one in found if key in one), None)


@dataclass(frozen=True, slots=True)
class Done:
    """What a recovery has changed, for the ledger, and what health holds from now on."""

    held: Held
    changed: dict[str, Any]


class Recoveries:
    """Carries recoveries out on one service and its gateway."""

    def __init__(self, settings: Settings, config: HealthConfig, ledger: Ledger) -> None:
        self._settings = settings
        self._config = config
        self._ledger = ledger
        self._client = KubernetesClient(settings.kube_url)
        self._one_time: dict[str, Callable[[Case], dict[str, Any]]] = {
            "roll_back": self._roll_back,
            "ban": self._ban,
            "retrain": self._retrain,
            "clean_up": self._clean_up,
        }

    def act(self, recovery: Recovery, case: Case, held: Held) -> Done:
        """Do what is done once. Switches are set by `switches`, from all rows together.

        Raises SerinError of what hindered it; the next look tries again.
        """
        if recovery == "scale_out":
            return self._scale_out(case, held)
        once = self._one_time.get(recovery)
        return Done(held, once(case) if once is not None else {})

    def undo(self, recovery: Recovery, held: Held) -> Done:
        """Take back what is not taken back by itself. Raises as `act`."""
        if recovery != "scale_out" or held.replicas is None:
            return Done(held, {})
        before, asked = held.replicas
        names = (self._settings.namespace, self._settings.service)
        found = scale(self._ledger, self._client, *names, before, only_from=asked)
        changed = {"replicas": [found.wanted, before]} if found.wanted == asked else {}
        return Done(replace(held, replicas=None), changed)

    def switches(self, cases: list[Case], held: Held) -> Done:
        """Bring the gateway's switches to what all active rows together want."""
        wanted: dict[str, str] = {}
        for case in cases:
            if not case.state.active or case.state.dry:
                continue
            escalated = case.row.escalation if case.state.escalated else ""
            for recovery in (case.row.recovery, escalated):
                if name := SWITCH_OF.get(recovery):
                    wanted.setdefault(name, case.name)
        if not wanted and not held.switches:
            return Done(held, {})
        switches, changed = switch(self._settings.home, wanted, held.switches)
        return Done(replace(held, switches=switches), changed)

    def _scale_out(self, case: Case, held: Held) -> Done:
        """One predictor more than there were before, for each attempt."""
        used = case.detail("bytes")
        if isinstance(used, int | float):
            self._check_room(float(used) / float(case.detail("predictors") or 1))
        names = (self._settings.namespace, self._settings.service)
        before = held.replicas[0] if held.replicas else None
        if before is None:
            body = self._client.get(*names)
            before = read_replicas(body).wanted if body else 1
        asked = min(max(1, before) + case.state.attempts, self._config.replicas_max)
        if asked <= before:
            raise RefusedError(f"{before} replicas are as many as replicas_max allows")
        found = scale(self._ledger, self._client, *names, asked)
        return Done(replace(held, replicas=(before, asked)), {"replicas": [found.wanted, asked]})

    def _check_room(self, predictor_bytes: float) -> None:
        import psutil

        free = psutil.virtual_memory().available
        if free < MEMORY_MARGIN * predictor_bytes:
            raise RefusedError(
                f"{free >> 20} MiB of memory are free, too few for another predictor of "
                f"{int(predictor_bytes) >> 20} MiB"
            )

    def _roll_back(self, case: Case) -> dict[str, Any]:
        """Return to the version before, unless the one that is to blame serves no more."""
        stable = self._ledger.stable(self._settings.service, self._settings.namespace)
        version = stable.candidate.model_version if stable else ""
        blamed = case.detail("version") or version
        acted_at = case.state.acted_at or 0.0
        if version != blamed or (stable is not None and _ended_after(stable.finished_at, acted_at)):
            return {}
        reason = f"health {case.name}"
        ended = open_conductor().roll_back_service(self._settings.service, "watch", reason)
        return {
            "release_id": ended.release_id,
            "from": version,
            "to": ended.candidate.model_version,
        }

    def _ban(self, case: Case) -> dict[str, Any]:
        """Shut the client out, unless the gateway has done so by itself: then only confirm it."""
        client = str(case.detail("client") or "")
        if is_exempt(client, self._config.ban_exempt):
            raise RefusedError(f"{client or 'the client'} is exempt from bans")
        seconds = self._config.ban_seconds
        by_us = ban(self._settings.home, client, seconds, f"health {case.name}")
        return {"client": client, "banned_by": "health" if by_us else "gateway"}

    def _retrain(self, case: Case) -> dict[str, Any]:
        import httpx
        from prefect.deployments import run_deployment
        from prefect.exceptions import ObjectNotFound

        key = f"health-{case.name}-{case.state.acted_at}"
        try:
            run = run_deployment(RETRAIN_DEPLOYMENT, timeout=0, idempotency_key=key)
        except (httpx.HTTPError, ObjectNotFound, OSError, RuntimeError, ValueError) as error:
            raise UnavailableError(f"{RETRAIN_DEPLOYMENT} was not started: {error}") from error
        return {"flow_run_id": str(run.id)}

    def _clean_up(self, case: Case) -> dict[str, Any]:
        """Apply retention in a process of its own: never what serves, see `serin gc`."""
        before = shutil.disk_usage(self._settings.home).free
        command = [sys.executable, "-m", "cli.main", "gc", "--delete"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, capture_output=True, text=True, timeout=CLEAN_UP_SECONDS_MAX,
                check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise UnavailableError("`serin gc --delete` did not end in time") from error
        if done.returncode:
            raise UnavailableError(f"`serin gc --delete` failed: {done.stderr.strip()[-300:]}")
        freed = shutil.disk_usage(self._settings.home).free - before
        return {"freed_bytes": max(0, freed)}


def _ended_after(finished_at: str | None, seconds: float) -> bool:
    from rollout.times import to_seconds

    return finished_at is not None and to_seconds(finished_at) > seconds
