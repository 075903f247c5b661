"""Releases and facts in every state that the step table needs, as plain values."""

from dataclasses import replace
from typing import Any

from release_scenarios import bundle, candidate, plan

from core.contracts import ReleaseState
from rollout.inference_service import (
    RevisionShare,
    ServiceFacts,
    service_body,
    spec_with_candidate,
)
from rollout.release import Expected, Release, ServiceState
from rollout.times import to_iso

NOW = 1_700_000_000.0
ONE, TWO = bundle("1"), bundle("2")
R1, R2, R3 = (f"assistant-predictor-0000{number}" for number in (1, 2, 3))
BUNDLES = {R1: (ONE, "1"), R2: (TWO, "2"), R3: (ONE, "1")}
STABLE_SPEC = service_body("default", candidate("1"))["spec"]
CANDIDATE_SPEC = spec_with_candidate(STABLE_SPEC, candidate("2"))
BEFORE = ServiceState(STABLE_SPEC, ONE, "1", {ONE: 100})
PLAN = plan(step_seconds_min=60, step_requests_min=100, ready_seconds_max=30, seconds_max=900)


def ago(seconds: float) -> str:
    return to_iso(NOW - seconds)


def a_release(**changes: Any) -> Release:
    release = Release(
        release_id="r-20261122-0001",
        namespace="default",
        service="assistant",
        kind="canary",
        state=ReleaseState.CANARY,
        candidate=candidate("2", "1"),
        plan=PLAN,
        created_at=ago(100),
        before=BEFORE,
        started_at=ago(90),
        patched_at=ago(10),
    )
    return replace(release, **changes)


def at_share(share: int, held_seconds: float | None = 61, **changes: Any) -> Release:
    since = None if held_seconds is None else ago(held_seconds)
    return a_release(share=share, applied_share=share, step_started_at=since, **changes)


def going_back(**changes: Any) -> Release:
    given = {"state": ReleaseState.ROLLING_BACK, "goal": BEFORE, "share": 5, "applied_share": 5}
    return a_release(**{**given, **changes})


def some_facts(**changes: Any) -> ServiceFacts:
    """A settled service on version 1."""
    facts = ServiceFacts(
        exists=True,
        uid="u",
        resource_version="7",
        spec=STABLE_SPEC,
        bundle_digest=ONE,
        model_version="1",
        latest_created=R1,
        latest_ready=R1,
        latest_rolledout=R1,
        traffic=(RevisionShare(R1, 100, latest=True),),
        bundles=BUNDLES,
    )
    return replace(facts, **changes)


def canary_facts(percent: int | None, **changes: Any) -> ServiceFacts:
    """Version 2 as a live canary over version 1."""
    shown = 100 if percent is None else percent
    traffic = (RevisionShare(R2, shown, latest=True), RevisionShare(R1, 100 - shown, latest=False))
    given = {
        "spec": CANDIDATE_SPEC,
        "bundle_digest": TWO,
        "model_version": "2",
        "percent": percent,
        "latest_created": R2,
        "latest_ready": R2,
        "traffic": traffic[: 1 if percent is None else 2],
    }
    return some_facts(**{**given, **changes})


def loading_facts(percent: int, **changes: Any) -> ServiceFacts:
    both = (RevisionShare(R1, percent, latest=True), RevisionShare(R1, 100 - percent, latest=False))
    return canary_facts(percent, **{"latest_ready": R1, "traffic": both, **changes})


def restoring_facts(**changes: Any) -> ServiceFacts:
    """Version 1's model again at 0 %, its new revision still loading under the rejected one."""
    given = {
        "percent": 0,
        "latest_created": R3,
        "latest_ready": R2,
        "traffic": (RevisionShare(R2, 0, latest=True), RevisionShare(R1, 100, latest=False)),
    }
    return some_facts(**{**given, **changes})


def promoted_facts(**changes: Any) -> ServiceFacts:
    given = {"latest_rolledout": R2, "previous_rolledout": R1}
    return canary_facts(None, **{**given, **changes})


def absent(**changes: Any) -> Release:
    return a_release(kind="first", before=None, **changes)


BACK_TO_ONE = {"kind": "rollback", "candidate": candidate("1"), "goal": BEFORE, "share": None}
NEWER = ServiceState(CANDIDATE_SPEC, TWO, "2", {TWO: 100})
NOT_LIVE = at_share(5, held_seconds=None)
UNSEEN = Expected(R1, TWO, "2")
