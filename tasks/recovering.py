"""What the watch of each minute sees and does: light, and only through the conductor."""

from dataclasses import dataclass
from pathlib import Path

from prefect import task
from prefect.cache_policies import NO_CACHE

from core.contracts import CanaryDecision, ReleaseState
from core.errors import SerinError, UnavailableError
from core.settings import Settings
from observability.metrics import scrape
from rollout.conductor import Conductor
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.release import Release
from rollout.times import to_seconds
from tasks.approving import continue_release, resume_runs
from tasks.looking import look
from tasks.releasing import open_conductor, settle_release
from tasks.reporting import open_release
from tasks.stages import LOG
from validation.bake import bake_problem
from validation.canary import CanaryConfig

SETTLED_NAME = "settled"


@dataclass(frozen=True, slots=True)
class Seen:
    """What the watch found; None where there is nothing to do. `summary` is for people."""

    bad_release: str | None
    decision: CanaryDecision | None
    bad_stable: str
    startable: str | None
    unsettled: str | None
    summary: str


@task(name="look around", retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def look_around(canary: CanaryConfig) -> Seen:
    """Read the ledger, the service's conditions and the gateway's counters, and judge them."""
    conductor = open_conductor()
    settings, ledger = Settings.read(), conductor.ledger
    active = ledger.active(settings.service, settings.namespace)
    decision = look(ledger, active, canary) if active else None
    bad = active if decision is not None and decision.decision == "rollback" else None
    parts = [
        f"service {_conditions(settings)}",
        f"gateway {_gateway(settings)}",
        f"release {active.release_id} {active.state} {active.percent} %"
        if active
        else "no release",
    ]
    if decision is not None:
        parts.append(f"judge {decision.decision}: {decision.reason}")
    problem = _bake_problem(ledger, settings, canary) if active is None else ""
    if problem:
        parts.append(problem)
    return Seen(
        bad_release=bad.release_id if bad else None,
        decision=decision,
        bad_stable=problem,
        startable=_startable(conductor, active, settings.service),
        unsettled=_unsettled(ledger, settings),
        summary="; ".join(parts),
    )


@task(name="take back", retries=3, retry_delay_seconds=1, cache_policy=NO_CACHE)
def take_back(release_id: str, decision: CanaryDecision) -> None:
    """Roll a bad canary back, whoever was advancing it."""
    open_conductor().roll_back(release_id, decision.reason, "watch", decision=decision)


@task(name="take back stable", retries=3, retry_delay_seconds=1, cache_policy=NO_CACHE)
def take_back_stable(reason: str) -> None:
    """Return to the version before one that fails after its promotion."""
    open_conductor().roll_back_service(Settings.read().service, "watch", reason)


@task(name="start next", retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def start_next(release_id: str) -> None:
    """Let a run go on with a waiting release: ask for its approval, or start it once approved."""
    continue_release(open_conductor().ledger.release(release_id))


@task(name="settle what is left", retries=1, retry_delay_seconds=2, cache_policy=NO_CACHE)
def settle_left(release_id: str) -> None:
    """Point the registry's aliases at a release that somebody else ended, such as the keeper."""
    settle_release(open_release(release_id), release_id)
    try:
        resume_runs(release_id)  # one that still waits for an answer ends now
    except UnavailableError as error:
        LOG.warning("%s  its run is not resumed: %s", release_id, error)
    _settled_path(Settings.read()).write_text(release_id)


def _bake_problem(ledger: Ledger, settings: Settings, canary: CanaryConfig) -> str:
    """Which limit a version breaks that a canary has lately made stable; "" where unknown."""
    last = ledger.stable(settings.service, settings.namespace)
    if last is None or last.kind != "canary" or last.finished_at is None:
        return ""
    if to_seconds(ledger.now) - to_seconds(last.finished_at) > canary.bake.seconds:
        return ""
    try:
        stable = scrape(settings.gateway_url, settings.service).stable
    except SerinError:
        return ""
    if stable is None or stable.revision != last.revision:
        return ""
    return bake_problem(canary.bake, stable)


def _startable(conductor: Conductor, active: Release | None, service: str) -> str | None:
    if active is not None:
        return active.release_id if active.state is ReleaseState.AWAITING_APPROVAL else None
    waiting = conductor.next_waiting(service)
    return waiting.release_id if waiting else None


def _unsettled(ledger: Ledger, settings: Settings) -> str | None:
    ended = [release for release in ledger.releases(settings.service) if release.finished_at]
    if not ended:
        return None
    last = max(ended, key=lambda release: release.finished_at or "")
    path = _settled_path(settings)
    known = path.read_text() if path.exists() else ""
    return last.release_id if last.release_id != known else None


def _settled_path(settings: Settings) -> Path:
    return settings.home / SETTLED_NAME


def _conditions(settings: Settings) -> str:
    try:
        body = KubernetesClient(settings.kube_url).get(settings.namespace, settings.service)
    except SerinError as error:
        return f"unknown ({error})"
    if body is None:
        return "absent"
    conditions = body.get("status", {}).get("conditions", [])
    ready = [item["status"] for item in conditions if item.get("type") == "Ready"]
    return f"ready {ready[0]}" if ready else "ready Unknown"


def _gateway(settings: Settings) -> str:
    try:
        sample = scrape(settings.gateway_url, settings.service)
    except SerinError as error:
        return f"unknown ({error})"
    arms = {"stable": sample.stable, "canary": sample.canary}
    shown = [
        f"{name} {arm.requests} requests {arm.errors} errors" for name, arm in arms.items() if arm
    ]
    return ", ".join(shown) or "no routes"
