"""Each action that touches traffic, as data: the write it makes, and what is true once done."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from core.contracts import CanaryDecision
from core.errors import RefusedError
from rollout.inference_service import (
    Body,
    InferenceServices,
    ServiceFacts,
    patch_body,
    service_body,
    spec_with_candidate,
)
from rollout.release import Expected, Pending, Release
from rollout.steps import (
    ClearPercent,
    CreateService,
    DeleteService,
    Fence,
    Promote,
    RaiseShare,
    RestoreStable,
    RollBackSafe,
    StartCanary,
)

MoveAction = (
    CreateService
    | StartCanary
    | RaiseShare
    | Promote
    | RollBackSafe
    | RestoreStable
    | ClearPercent
    | Fence
    | DeleteService
)


@dataclass(frozen=True, slots=True)
class Move:
    """One write to the control plane. `changes` are the release's fields as of the intent."""

    pending: Pending
    body: Body | None
    changes: Mapping[str, Any] = field(default_factory=dict)


def plan_move(
    action: MoveAction, release: Release, facts: ServiceFacts, decision: CanaryDecision | None
) -> Move:
    """Return the write for `action` on the service as it is in `facts`."""
    match action:
        case CreateService():
            body = service_body(release.namespace, release.candidate)
            expected = _expected(release, "")
            pending = Pending("CreateService", None, *_candidate(release))
            return Move(pending, body, {"share": 100, "expected": expected})
        case StartCanary(share):
            wanted = spec_with_candidate(facts.spec, release.candidate)
            pending = Pending("StartCanary", share, *_candidate(release))
            expected = _expected(release, facts.latest_created)
            changes = {"share": share, "expected": expected}
            return Move(pending, patch_body(facts, wanted, share), changes)
        case RaiseShare(share):
            changes = {
                "share": share,
                "step_started_at": None,
                "step_requests_start": _requests(release, share, decision),
            }
            return _percent("RaiseShare", facts, share, changes)
        case Promote():
            return _percent("Promote", facts, None, {"share": 100, "step_started_at": None})
        case RollBackSafe():
            return _percent("RollBackSafe", facts, 0, {})
        case ClearPercent():
            return _percent("ClearPercent", facts, None, {})
        case Fence():
            return _percent("Fence", facts, 100, {})
        case RestoreStable():
            return _restore(release, facts)
        case DeleteService():
            return Move(Pending("DeleteService", None, "", ""), None)


def is_applied(pending: Pending, facts: ServiceFacts) -> bool:
    """Whether the service looks as it does once the pending write was accepted."""
    if not pending.bundle_digest:
        return not facts.exists
    same = (facts.bundle_digest, facts.percent) == (pending.bundle_digest, pending.percent)
    return facts.exists and same


def send(client: InferenceServices, release: Release, facts: ServiceFacts, move: Move) -> Body:
    """Make the write. Raises as InferenceServices."""
    if move.pending.action == "CreateService" and move.body is not None:
        return client.create(release.namespace, move.body)
    if move.body is None:
        client.delete(release.namespace, release.service, facts.uid)
        return {}
    return client.patch(release.namespace, release.service, move.body)


def _restore(release: Release, facts: ServiceFacts) -> Move:
    goal = release.goal
    if goal is None:
        raise RefusedError(f"release {release.release_id} has no service to restore")
    pending = Pending("RestoreStable", 0, goal.bundle_digest, goal.model_version)
    expected = Expected(facts.latest_created, goal.bundle_digest, goal.model_version)
    return Move(pending, patch_body(facts, goal.spec, 0), {"expected": expected})


def _percent(
    action: str, facts: ServiceFacts, percent: int | None, changes: Mapping[str, Any]
) -> Move:
    pending = Pending(action, percent, facts.bundle_digest, facts.model_version)
    return Move(pending, patch_body(facts, facts.spec, percent), changes)


def _requests(release: Release, share: int, decision: CanaryDecision | None) -> int:
    """Requests counted when the step began; a share sent again keeps its own count."""
    if share == release.share or decision is None:
        return release.step_requests_start
    return decision.canary_requests


def _candidate(release: Release) -> tuple[str, str]:
    return release.candidate.bundle_digest, release.candidate.model_version


def _expected(release: Release, after_revision: str) -> Expected:
    return Expected(after_revision, *_candidate(release))
