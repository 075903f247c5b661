"""What happens to a release before any traffic moves: proposed, superseded, approved, rejected.

Rules on ledger transactions only; knows no control plane.
"""

from typing import Any

import msgspec

from core.addresses import BUNDLE_SCHEMES, check_address
from core.contracts import Candidate, ReleaseState
from core.errors import InputError, RefusedError
from rollout.inference_service import bundle_of_uri
from rollout.plan import ReleasePlan
from rollout.release import Approval, Release
from rollout.writer import Writer

UNSTARTED = (ReleaseState.PROPOSED, ReleaseState.AWAITING_APPROVAL)
OPEN = (*UNSTARTED, ReleaseState.CANARY)


def propose(
    writer: Writer, namespace: str, candidate: Candidate, plan: ReleasePlan, requested_by: str = ""
) -> Release:
    """Add a release for the candidate, or return the open one it already has.

    Proposed again before it started, a candidate takes its new verdict, and an approval of the
    old verdict is void. A new one supersedes older waiting ones and an unanswered approval; a
    running canary is left alone. `requested_by` is the person who asked for it, as far as that is
    known. Raises InputError when the bundle's URI does not name its digest, or is not allowed.
    """
    check_address(candidate.bundle_uri, BUNDLE_SCHEMES, "bundle URI")
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
        {"candidate": msgspec.to_builtins(candidate), "plan": plan.model_dump(mode="json")}
        | ({"requested_by": requested_by} if requested_by else {}),
        requested_by=requested_by,
    )
    for release in found:
        unanswered = release.state is ReleaseState.AWAITING_APPROVAL and not release.approved
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
        approvals=(),
    )


def approve(
    writer: Writer,
    release: Release,
    who: str,
    note: str,
    seen_digest: str | None,
    self_declared: bool = True,
) -> Release:
    """Keep who agreed to which candidate and verdict; the release starts when it is advanced.

    The first answer of a person counts: the same again changes nothing. Raises RefusedError when
    the release does not await approval, this person may not give it, or `seen_digest` is neither
    its candidate's nor its verdict's.
    """
    if any(_same_person(one.who, who) for one in release.approvals):
        return release
    if release.state is not ReleaseState.AWAITING_APPROVAL or release.approved:
        raise RefusedError(f"release {release.release_id} is {_state(release)}, not to be approved")
    if release.plan.needs_approvers and self_declared:
        raise RefusedError(
            f"release {release.release_id} needs approvers whose names are proven by a code: "
            "`serin approver add NAME`"
        )
    if release.plan.needs_approvers and _same_person(release.requested_by, who):
        raise RefusedError(
            f"release {release.release_id} was asked for by {who}: another person must approve it"
        )
    digests = _digests(release)
    if seen_digest is not None and seen_digest not in digests.values():
        raise RefusedError(
            f"release {release.release_id} changed since it was shown; look at its evidence again"
        )
    approval = Approval(who, writer.now, note, **digests, self_declared=self_declared)
    approvals = (*release.approvals, approval)
    required = release.plan.approvals_required
    body = {**msgspec.to_builtins(approval), "approvals": len(approvals), "required": required}
    return writer.change(release, "approved", body, approvals=approvals)


def reject(
    writer: Writer, release: Release, who: str, note: str, self_declared: bool = True
) -> Release:
    """End a release that has not started. Raises RefusedError when it has."""
    if release.state is ReleaseState.REJECTED:
        return release
    if release.state not in UNSTARTED:
        raise RefusedError(
            f"release {release.release_id} is {release.state}; a running one can be rolled back"
        )
    reason = f"rejected by {who}" + (f": {note}" if note else "")
    body = {"who": who, "note": note, **_digests(release), "self_declared": self_declared}
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
        changes |= {"approvals": (), "asked_at": writer.now}
        body["approval_void"] = bool(release.approvals)
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
    if release.approved and release.state is ReleaseState.AWAITING_APPROVAL:
        return "approved by " + ", ".join(one.who for one in release.approvals)
    return str(release.state)


def _same_person(one: str, other: str) -> bool:
    return one.strip().casefold() == other.strip().casefold()
