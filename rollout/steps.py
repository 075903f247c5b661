"""The release state machine, pure: what a release, the facts and a decision ask for next.

Knows no database, clock or connection; the conductor carries out what this says.
"""

from dataclasses import dataclass

from core.contracts import CanaryDecision, ReleaseState
from core.errors import RefusedError
from rollout.inference_service import ServiceFacts
from rollout.plan import ReleasePlan
from rollout.release import Release, ServiceState
from rollout.times import to_seconds

__all__ = ["Action", "ReleasePlan", "next_action"]


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing to do now. With `alarm` it has lasted longer than it should."""

    reason: str
    alarm: bool = False


@dataclass(frozen=True, slots=True)
class AskApproval:
    """A person must agree before anything is touched."""


@dataclass(frozen=True, slots=True)
class Begin:
    """Record the state before, take the lease, become active."""


@dataclass(frozen=True, slots=True)
class Reject:
    """End without having moved anything (or with everything as it was before)."""

    reason: str


@dataclass(frozen=True, slots=True)
class CreateService:
    """The first release of a service: create it with the candidate."""


@dataclass(frozen=True, slots=True)
class StartCanary:
    """Candidate's model and first percent, in one patch."""

    share: int


@dataclass(frozen=True, slots=True)
class RaiseShare:
    """Percent only."""

    share: int


@dataclass(frozen=True, slots=True)
class Promote:
    """Remove the percent: all traffic to the candidate."""


@dataclass(frozen=True, slots=True)
class RollBack:
    """From now on the release goes back to what was before, for this reason."""

    reason: str


@dataclass(frozen=True, slots=True)
class RollBackSafe:
    """Safe phase: percent 0, which sends all traffic to the revision rolled out before."""


@dataclass(frozen=True, slots=True)
class RestoreStable:
    """Restored phase: the goal's model with percent 0, in one patch; traffic stays where it is."""


@dataclass(frozen=True, slots=True)
class ClearPercent:
    """The goal's revision is the newest ready one: all traffic to it, as before the release."""


@dataclass(frozen=True, slots=True)
class Fence:
    """Write the service without moving traffic (percent 100 where all traffic is on the newest
    revision), so that a patch sent earlier and not answered can no longer be accepted."""


@dataclass(frozen=True, slots=True)
class DeleteService:
    """A first release goes back to no service."""


@dataclass(frozen=True, slots=True)
class Return:
    """An operator's rollback cannot reach its goal: go back to what serves now."""

    reason: str


@dataclass(frozen=True, slots=True)
class FinishPromoted:
    """The candidate is stable."""


@dataclass(frozen=True, slots=True)
class FinishRolledBack:
    """The goal serves; compare it with what was recorded."""


Action = (
    Wait
    | AskApproval
    | Begin
    | Reject
    | CreateService
    | StartCanary
    | RaiseShare
    | Promote
    | RollBack
    | RollBackSafe
    | RestoreStable
    | ClearPercent
    | Fence
    | DeleteService
    | Return
    | FinishPromoted
    | FinishRolledBack
)


def next_action(
    release: Release,
    facts: ServiceFacts,
    decision: CanaryDecision | None,
    now: float,
    plan: ReleasePlan,
) -> Action:
    """Return the one next action. `now` is in seconds since the epoch; no decision only waits.

    Calling it again after the action was done, half done or not done gives the action that
    completes it. Raises RefusedError for a release that has ended.
    """
    match release.state:
        case ReleaseState.PROPOSED:
            return AskApproval() if plan.approval == "required" else Begin()
        case ReleaseState.AWAITING_APPROVAL:
            return _awaiting(release, now, plan)
        case ReleaseState.CANARY if release.kind == "first":
            return _first(release, facts, now, plan)
        case ReleaseState.CANARY:
            return _canary(release, facts, decision, now, plan)
        case ReleaseState.ROLLING_BACK:
            return _rolling_back(release, facts, now, plan)
    raise RefusedError(f"release {release.release_id} has ended: {release.state}")


def share_is_live(release: Release, facts: ServiceFacts) -> bool:
    """Whether the candidate's revision is ready and has the share that the release intends."""
    return (
        release.share is not None
        and release.share == release.applied_share
        and facts.percent == release.share
        and facts.newest_ready
        and facts.bundle_of(facts.latest_created) == release.candidate.bundle_digest
        and facts.newest_percent == release.share
    )


def percent_leads_to(goal: ServiceState, facts: ServiceFacts) -> bool:
    """Whether percent 0 would send all traffic to the goal's bundle.

    It sends it to the revision last rolled out; on a service whose newest revision is itself
    rolled out, to the one rolled out before that.
    """
    rolled_out = facts.bundle_of(facts.latest_rolledout)
    if rolled_out == goal.bundle_digest:
        return True
    promoted = facts.newest_ready and facts.latest_rolledout == facts.latest_ready
    return promoted and facts.bundle_of(facts.previous_rolledout) == goal.bundle_digest


def _awaiting(release: Release, now: float, plan: ReleasePlan) -> Action:
    bound = (release.candidate_digest, release.candidate.verdict_digest)
    if any(bound != (one.candidate_digest, one.verdict_digest) for one in release.approvals):
        return AskApproval()
    if len(release.approvals) >= plan.approvals_required:
        if _over(release.approvals[-1].time, now, plan.approval_timeout_seconds):
            return Reject("approved, but nobody started it in time")
        return Begin()
    if _over(release.asked_at, now, plan.approval_timeout_seconds):
        return Reject(f"no approval within {plan.approval_timeout_seconds:g} s")
    return Wait("awaits approval")


def _first(release: Release, facts: ServiceFacts, now: float, plan: ReleasePlan) -> Action:
    if not facts.exists:
        if release.applied_share:
            return RollBack("the service was deleted by somebody else")
        return CreateService()
    if facts.bundle_digest != release.candidate.bundle_digest:
        return RollBack("the service was changed by somebody else")
    if facts.settled_on(release.candidate.bundle_digest):
        return FinishPromoted()
    return _not_ready(release, facts, now, plan) or Wait("the first revision is loading")


def _canary(
    release: Release,
    facts: ServiceFacts,
    decision: CanaryDecision | None,
    now: float,
    plan: ReleasePlan,
) -> Action:
    if not facts.exists or facts.deleting:
        return RollBack("the service was deleted by somebody else")
    if decision is not None and decision.decision == "rollback" and release.share is not None:
        return RollBack(f"the judge: {decision.reason}")
    if not _is_applied(release, facts):
        return _apply(release, facts, plan)
    if release.share == 100:
        if facts.settled_on(release.candidate.bundle_digest):
            return FinishPromoted()
        return _not_ready(release, facts, now, plan) or Wait("all traffic moves to the candidate")
    if release.step_started_at is None:
        return _not_ready(release, facts, now, plan) or Wait("the canary is loading")
    if decision is not None and decision.decision == "inconclusive":
        return RollBack(f"inconclusive: {decision.reason}")
    if _over(release.started_at, now, plan.seconds_max):
        return RollBack(f"no decision within {plan.seconds_max:g} s")
    return _next_share(release, decision, now, plan)


def _is_applied(release: Release, facts: ServiceFacts) -> bool:
    percent = None if release.share == 100 else release.share
    at_candidate = facts.bundle_digest == release.candidate.bundle_digest
    return release.share is not None and at_candidate and facts.percent == percent


def _apply(release: Release, facts: ServiceFacts, plan: ReleasePlan) -> Action:
    """Send what is intended; a service in neither the old nor the intended state is not ours."""
    if release.share is None or release.applied_share is None:
        before = release.before
        if before and facts.spec == before.spec and facts.percent in (None, 100):
            return StartCanary(plan.shares[0] if release.share is None else release.share)
    else:
        at_candidate = facts.bundle_digest == release.candidate.bundle_digest
        if at_candidate and facts.percent == release.applied_share != release.share:
            return Promote() if release.share == 100 else RaiseShare(release.share)
    return RollBack(f"somebody else changed the service (canary percent is {facts.percent})")


def _next_share(
    release: Release, decision: CanaryDecision | None, now: float, plan: ReleasePlan
) -> Action:
    if decision is None:
        return Wait("no decision yet")
    if not _over(release.step_started_at, now, plan.step_seconds_min):
        return Wait(f"share {release.percent} % is held for {plan.step_seconds_min:g} s")
    requests = decision.canary_requests - release.step_requests_start
    if release.percent and requests < plan.step_requests_min:
        return Wait(f"{requests} of {plan.step_requests_min} canary requests at this share")
    share = next(share for share in plan.shares if share > release.percent)
    if share < 100:
        return RaiseShare(share)
    if decision.decision == "promote":
        return Promote()
    return Wait(f"100 % needs `promote`; the judge says {decision.decision}: {decision.reason}")


def _not_ready(
    release: Release, facts: ServiceFacts, now: float, plan: ReleasePlan
) -> RollBack | None:
    ours = facts.bundle_of(facts.latest_created) == release.candidate.bundle_digest
    if ours and not facts.newest_ready and facts.failure:
        return RollBack(f"the candidate cannot start: {facts.failure}")
    if _over(release.patched_at, now, plan.ready_seconds_max):
        return RollBack(f"the candidate was not ready within {plan.ready_seconds_max:g} s")
    return None


def _rolling_back(release: Release, facts: ServiceFacts, now: float, plan: ReleasePlan) -> Action:
    goal = release.goal
    late = _over(release.patched_at, now, plan.ready_seconds_max)
    if facts.deleting:
        return Wait("the service is being deleted", alarm=late)
    if goal is None:
        ours = facts.exists and facts.bundle_digest == release.candidate.bundle_digest
        return DeleteService() if ours else FinishRolledBack()
    if not facts.exists:
        return FinishRolledBack()
    if facts.bundle_digest == goal.bundle_digest:
        return _at_goal(release, goal, facts, late)
    if percent_leads_to(goal, facts):
        if facts.percent != 0:
            return RollBackSafe()
        if facts.weights != {goal.bundle_digest: 100}:
            return Wait("traffic goes back", alarm=late)
    expected = release.expected
    if expected is not None and expected.bundle_digest == facts.bundle_digest:
        # Its name must be known first: the next new revision could be taken for it.
        return Wait("the control plane has not made the candidate's revision yet", alarm=late)
    return RestoreStable()


def _at_goal(release: Release, goal: ServiceState, facts: ServiceFacts, late: bool) -> Action:
    """The spec holds the goal's model: never null before its revision is the newest ready one."""
    newest_is_goal = facts.bundle_of(facts.latest_created) == goal.bundle_digest
    if facts.percent is None:
        if not facts.settled_on(goal.bundle_digest):
            ready = facts.bundle_of(facts.latest_ready)
            if ready not in ("", goal.bundle_digest) and percent_leads_to(goal, facts):
                return RollBackSafe()
            return Wait("all traffic moves to the restored revision", alarm=late)
        if release.fence_version and facts.resource_version == release.fence_version:
            return Fence()
        if release.kind == "rollback" and goal == release.before:
            return Reject(release.reason)
        return FinishRolledBack()
    if facts.newest_ready and newest_is_goal:
        return ClearPercent()
    if facts.percent != 0:
        return RollBackSafe()
    failed = facts.failure if newest_is_goal and not facts.newest_ready else ""
    returnable = release.kind == "rollback" and goal != release.before and release.safe_at is None
    if returnable and (failed or late):
        return Return(failed or "the earlier version was not ready in time")
    return Wait(f"the restored revision is loading {failed}".strip(), alarm=late or bool(failed))


def _over(since: str | None, now: float, seconds: float) -> bool:
    return since is not None and now - to_seconds(since) >= seconds
