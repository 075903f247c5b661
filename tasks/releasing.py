"""One candidate's way to stable: every step goes through the conductor, the only writer."""

import functools
import getpass
import os
import socket
import time
from dataclasses import dataclass

from prefect import runtime, task
from prefect.cache_policies import NO_CACHE

from core.contracts import Candidate, Figure, ReleaseState
from core.settings import Settings
from rollout.answers import check_policy
from rollout.approvers import Approvers
from rollout.conductor import Conductor
from rollout.identities import from_routes
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import HELD_STATES, Release
from rollout.times import to_seconds
from tasks.looking import look
from tasks.stages import LOG, DayRun, stage
from tasks.traces import trace_release
from validation.canary import CanaryConfig

__all__ = ["HELD_STATES"]
TURN_SECONDS_MAX = 10.0
LEASE_PARTS = 4
"""A lease is renewed this many times before it would run out."""
ROLLBACK_TURN_SECONDS = 0.2
RETRY_SECONDS = [1, 2, 4, 8, 8, 8]


@dataclass(frozen=True, slots=True)
class Proposed:
    """A candidate in the ledger; `waiting` while another release of the service is active."""

    release_id: str
    waiting: bool

    @property
    def figures(self) -> dict[str, Figure]:
        """The release's id, and whether it waits."""
        return {"release": self.release_id, "waiting": self.waiting}


@functools.cache
def open_conductor() -> Conductor:
    """Connect to the ledger and the cluster's API once a process: it holds its releases' epochs."""
    settings = Settings.read()
    holder = f"{socket.gethostname()}-{os.getpid()}"
    identities = from_routes(settings)
    client = KubernetesClient(settings.kube_url)
    ledger = Ledger(settings.ledger_url)
    return Conductor(ledger, client, holder, settings.namespace, identities)


@stage("propose", retries=3)
def propose_release(run: DayRun, candidate: Candidate, plan: ReleasePlan) -> Proposed:
    """Write the candidate into the ledger; the newest waiting one supersedes older ones."""
    settings, conductor = Settings.read(), open_conductor()
    check_policy(plan, Approvers(settings.approvers_file))
    release = conductor.propose(candidate, plan, settings.requested_by or _operator())
    active = conductor.ledger.active(release.service, release.namespace)
    waiting = active is not None and active.release_id != release.release_id
    return Proposed(release.release_id, waiting)


@stage("begin release", retries=3)
def begin_release(run: DayRun, release_id: str) -> Release:
    """Start the release; a candidate judged against another stable version is judged again."""
    from tasks.judging import judge_again

    conductor = open_conductor()
    release = conductor.ledger.release(release_id)
    if release.state is ReleaseState.PROPOSED:
        check_policy(release.plan, Approvers(Settings.read().approvers_file))
    if release.state is ReleaseState.PROPOSED and conductor.needs_new_verdict(release_id):
        verdict = judge_again(release.candidate.bundle_digest)
        if verdict.outcome != "pass":
            reasons = "; ".join(verdict.reasons)
            return conductor.reject(release_id, "gates", f"judged again: {reasons}")
        conductor.propose(_with_verdict(release.candidate, verdict.digest), release.plan)
    return conductor.start(release_id)


@task(
    name="canary turn",
    retries=len(RETRY_SECONDS),
    retry_delay_seconds=RETRY_SECONDS,
    cache_policy=NO_CACHE,
    persist_result=False,
)
def turn_release(release_id: str, canary: CanaryConfig) -> Release:
    """Look at the live metrics once, judge, and let the conductor do the one step that follows."""
    conductor = open_conductor()
    release = conductor.ledger.release(release_id)
    decision = look(conductor.ledger, release, canary)
    moved = conductor.advance(release_id, decision)
    if (moved.state, moved.share) != (release.state, release.share):
        LOG.info("%s  %s  share %d %%  %s", release_id, moved.state, moved.percent, moved.reason)
    if moved.state is ReleaseState.ROLLING_BACK:
        time.sleep(ROLLBACK_TURN_SECONDS)
    elif not moved.final:
        lease = moved.plan.lease_seconds / LEASE_PARTS
        time.sleep(min(canary.evaluate_seconds, lease, TURN_SECONDS_MAX))
    return moved


@task(name="begin rollback", retries=3, retry_delay_seconds=1, cache_policy=NO_CACHE)
def begin_rollback(reason: str, to_version: str | None) -> Release:
    """Take back the active release, or return to an earlier version: traffic moves at once."""
    settings = Settings.read()
    conductor = open_conductor()
    return conductor.roll_back_service(settings.service, "operator", reason, to_version)


@task(name="rollback turn", retries=3, retry_delay_seconds=1, cache_policy=NO_CACHE)
def turn_rollback(release_id: str) -> Release:
    """Let the conductor do the next step of a rollback that is still under way."""
    moved = open_conductor().advance(release_id)
    if not moved.final:
        time.sleep(ROLLBACK_TURN_SECONDS)
    return moved


@stage("settle", retries=3)
def settle_release(run: DayRun, release_id: str) -> Release:
    """Point the registry's aliases at what the ledger says; may be repeated."""
    from tasks.stable import open_registry

    release = open_conductor().ledger.release(release_id)
    if not release.final:
        return release
    registry, version = open_registry(), release.candidate.model_version
    if release.state is ReleaseState.PROMOTED:
        registry.promote(version)
    elif release.kind == "rollback" and release.state is ReleaseState.ROLLED_BACK:
        left = registry.find("stable")
        if left is not None and left.version != version:
            registry.roll_back(left.version, release.reason, version)
    elif release.kind != "rollback":
        registry.withdraw(version, release.reason)
    if release.started_at and release.finished_at:
        seconds = to_seconds(release.finished_at) - to_seconds(release.started_at)
        LOG.info("%s  %s after %.1f s", release_id, release.state, seconds)
    trace_release(open_conductor().ledger, release, run)
    return release


def _operator() -> str:
    """Who runs this, where a person does: a deployment's run does not say who started it."""
    if runtime.deployment.id:
        return ""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return ""


def _with_verdict(candidate: Candidate, verdict_digest: str) -> Candidate:
    from dataclasses import replace

    from tasks.stable import stable_version

    stable = stable_version()
    version = stable.version if stable else None
    return replace(candidate, verdict_digest=verdict_digest, stable_version=version)
