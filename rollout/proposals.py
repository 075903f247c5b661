"""What happens to a release before any traffic moves: proposed, superseded, approved, rejected.

Rules on ledger transactions only; knows no control plane.
"""

from typing import Any

import msgspec

from core.contracts import Candidate, ReleaseState
from core.errors import InputError, RefusedError
from rollout.inference_service import bundle_of_uri
from rollout.plan import ReleasePlan
from rollout.release import Approval, Release
from rollout.writer import Writer

UNSTARTED = (ReleaseState.PROPOSED, ReleaseState.AWAITING_APPROVAL)
OPEN = (*UNSTARTED, ReleaseState.CANARY)


def propose(writer: Writer, namespace: str, candidate: Candidate, plan: ReleasePlan) -> Release:
    """Add a release for the candidate, or return the open one it already has.

    Proposed again before it started, a candidate takes its new verdict, and an approval of the
    old verdict is void. A new one supersedes older waiting ones and an unanswered approval; a
    running canary is left alone. Raises InputError when the bundle's URI does not name its digest.
    """
    if bundle_of_uri(candidate.bundle_uri) != candidate.bundle_digest:
        raise InputError(
            f"bundle URI {candidate.bundle_uri} must end in the bundle's digest "
            f"{candidate.bundle_digest[:12]}..."
        )
    found = writer.releases(namespace, candidate.service, OPEN)
    for release in found:
        if _same(release.candidate, candidate):
            return _judged_again(writer, release, candidate)
    created = writer.create(
        namespace,
        candidate,
        plan,
        "proposed",
        {"candidate": msgspec.to_builtins(candidate), "plan": plan.model_dump(mode="json")},
    )
    for release in found:
        unanswered = release.state is ReleaseState.AWAITING_APPROVAL and release.approval is None
        if release.state is ReleaseState.PROPOSED or unanswered:
            supersede(writer, release, f"superseded by {created.release_id}")
    return created


def supersede(writer: Writer, release: Release, reason: str) -> Release:
    """End a release that has not started, because something newer takes its place."""
    return _end(writer, release, ReleaseState.SUPERSEDED, "superseded", reason, {})


def ask_approval(writer: Writer, release: Release) -> Release:
    """Make the release the service's active one and wait for a person.

    Raises ConflictError when another release of the service is active.
    """
    return writer.change(
        release,
        "approval_asked",
        _digests(release),
        state=ReleaseState.AWAITING_APPROVAL,
        asked_at=writer.now,
        approval=None,
    )


def approve(
    writer: Writer, release: Release, who: str, note: str, seen_digest: str | None
) -> Release:
    """Keep who agreed to which candidate and verdict; the release starts when it is advanced.

    The first answer counts: the same person again changes nothing. Raises RefusedError when the
    release does not await approval, or `seen_digest` is neither its candidate's nor verdict's.
    """
    if release.approval is not None and release.approval.who == who:
        return release
    if release.state is not ReleaseState.AWAITING_APPROVAL or release.approval is not None:
        raise RefusedError(f"release {release.release_id} is {_state(release)}, not to be approved")
    digests = _digests(release)
    if seen_digest is not None and seen_digest not in digests.values():
        raise RefusedError(
            f"release {release.release_id} changed since it was shown; look at its evidence again"
        )
    approval = Approval(who, writer.now, note, **digests)
    return writer.change(release, "approved", msgspec.to_builtins(approval), approval=approval)


def reject(writer: Writer, release: Release, who: str, note: str) -> Release:
    """End a release that has not started. Raises RefusedError when it has."""
    if release.state is ReleaseState.REJECTED:
        return release
    if release.state not in UNSTARTED:
        raise RefusedError(
            f"release {release.release_id} is {release.state}; a running one can be rolled back"
        )
    reason = f"rejected by {who}" + (f": {note}" if note else "")
    body = {"who": who, "note": note, **_digests(release)}
    return _end(writer, release, ReleaseState.REJECTED, "rejected", reason, body)


def expire(writer: Writer, release: Release, reason: str) -> Release:
    """End a release that cannot start: not approved in time, or nothing to do."""
    return _end(writer, release, ReleaseState.REJECTED, "rejected", reason, _digests(release))


def _judged_again(writer: Writer, release: Release, candidate: Candidate) -> Release:
    if release.state not in UNSTARTED or release.candidate == candidate:
        return release
    body = {"from": _digests(release), "candidate": msgspec.to_builtins(candidate)}
    changes: dict[str, Any] = {"candidate": candidate}
    if release.state is ReleaseState.AWAITING_APPROVAL:
        changes |= {"approval": None, "asked_at": writer.now}
        body["approval_void"] = release.approval is not None
    return writer.change(release, "judged_again", body, **changes)


def _end(
    writer: Writer,
    release: Release,
    state: ReleaseState,
    event: str,
    reason: str,
    body: dict[str, Any],
) -> Release:
    return writer.change(
        release,
        event,
        {**body, "reason": reason},
        state=state,
        reason=reason,
        finished_at=writer.now,
    )


def _same(one: Candidate, other: Candidate) -> bool:
    return (one.model_version, one.bundle_digest) == (other.model_version, other.bundle_digest)


def _digests(release: Release) -> dict[str, str]:
    return {
        "candidate_digest": release.candidate_digest,
        "verdict_digest": release.candidate.verdict_digest,
    }


def _state(release: Release) -> str:
    if release.approval is not None:
        return f"approved by {release.approval.who}"
    return str(release.state)
