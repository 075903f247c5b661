"""The state machine, every state against every kind of fact: a table, no I/O."""

from dataclasses import replace

import pytest
from pydantic import ValidationError
from release_facts import (
    BACK_TO_ONE,
    NEWER,
    NOT_LIVE,
    NOW,
    ONE,
    PLAN,
    R1,
    R2,
    R3,
    TWO,
    UNSEEN,
    a_release,
    absent,
    ago,
    at_share,
    canary_facts,
    going_back,
    loading_facts,
    promoted_facts,
    restoring_facts,
    some_facts,
)
from release_scenarios import CONTINUE, INCONCLUSIVE, PROMOTE, ROLL_BACK, plan

from core.contracts import CanaryDecision, ReleaseState
from core.errors import RefusedError
from rollout.inference_service import (
    ABSENT,
    RevisionShare,
    ServiceFacts,
)
from rollout.plan import ReleasePlan
from rollout.release import Approval, Release
from rollout.steps import (
    AskApproval,
    Begin,
    ClearPercent,
    CreateService,
    DeleteService,
    Fence,
    FinishPromoted,
    FinishRolledBack,
    Promote,
    RaiseShare,
    Reject,
    RestoreStable,
    Return,
    RollBack,
    RollBackSafe,
    StartCanary,
    Wait,
    next_action,
)

TABLE: list[tuple[str, Release, ServiceFacts, CanaryDecision | None, object]] = [
    # A first release: straight to stable.
    ("nothing yet", absent(), ABSENT, None, CreateService()),
    ("create unanswered", absent(share=100), ABSENT, None, CreateService()),
    ("created, loading", absent(share=100), canary_facts(None, latest_ready=""), None, Wait),
    ("created, ready", absent(share=100), canary_facts(None), None, FinishPromoted()),
    (
        "created, fails",
        absent(share=100),
        canary_facts(None, latest_ready="", traffic=(), failure="RevisionFailed: x"),
        None,
        RollBack("the candidate cannot start: RevisionFailed: x"),
    ),
    (
        "created, never ready",
        absent(share=100, patched_at=ago(30)),
        canary_facts(None, latest_ready="", traffic=()),
        None,
        RollBack("the candidate was not ready within 30 s"),
    ),
    ("deleted by others", absent(share=100, applied_share=100), ABSENT, None, RollBack),
    ("made by others", absent(share=100), some_facts(), None, RollBack),
    # Starting a canary.
    ("begun", a_release(), some_facts(), None, StartCanary(5)),
    ("begun, percent 100 by hand", a_release(), some_facts(percent=100), None, StartCanary(5)),
    ("start unanswered", a_release(share=5), some_facts(), None, StartCanary(5)),
    ("changed before the start", a_release(), some_facts(spec={"predictor": {}}), None, RollBack),
    ("percent by hand", a_release(), some_facts(percent=20), None, RollBack),
    ("deleted by hand", at_share(5), ABSENT, CONTINUE, RollBack),
    ("loading", NOT_LIVE, loading_facts(5), None, Wait("the canary is loading")),
    ("loading, judge unsure", NOT_LIVE, loading_facts(5), INCONCLUSIVE, Wait),
    (
        "fails to load",
        NOT_LIVE,
        loading_facts(5, failure="BlockedByFailedLoad: no file"),
        None,
        RollBack("the candidate cannot start: BlockedByFailedLoad: no file"),
    ),
    (
        "an old failure is not the candidate's",
        a_release(share=5, applied_share=5),
        loading_facts(5, latest_created=R1, failure="RevisionFailed: old"),
        None,
        Wait("the canary is loading"),
    ),
    (
        "never live",
        at_share(5, held_seconds=None, patched_at=ago(31)),
        loading_facts(5),
        None,
        RollBack("the candidate was not ready within 30 s"),
    ),
    # Judging it.
    ("no decision", at_share(5), canary_facts(5), None, Wait("no decision yet")),
    ("goes on", at_share(5), canary_facts(5), CONTINUE, RaiseShare(50)),
    ("promote does not skip a share", at_share(5), canary_facts(5), PROMOTE, RaiseShare(50)),
    ("too short", at_share(5, held_seconds=59), canary_facts(5), PROMOTE, Wait),
    (
        "too few requests",
        at_share(5, step_requests_start=950),
        canary_facts(5),
        PROMOTE,
        Wait("50 of 100 canary requests at this share"),
    ),
    ("bad", at_share(5), canary_facts(5), ROLL_BACK, RollBack(f"the judge: {ROLL_BACK.reason}")),
    ("bad while loading", NOT_LIVE, loading_facts(5), ROLL_BACK, RollBack),
    ("unsure", at_share(5), canary_facts(5), INCONCLUSIVE, RollBack("inconclusive: no data")),
    (
        "too long",
        at_share(5, started_at=ago(900)),
        canary_facts(5),
        CONTINUE,
        RollBack("no decision within 900 s"),
    ),
    ("percent set to 0 by hand", at_share(5), canary_facts(0), CONTINUE, RollBack),
    ("model replaced by hand", at_share(5), some_facts(percent=5), CONTINUE, RollBack),
    (
        "raise unanswered",
        replace(NOT_LIVE, share=50),
        canary_facts(5),
        None,
        RaiseShare(50),
    ),
    ("last share, undecided", at_share(50), canary_facts(50), CONTINUE, Wait),
    ("last share, better", at_share(50), canary_facts(50), PROMOTE, Promote()),
    (
        "promote unanswered",
        replace(NOT_LIVE, applied_share=50, share=100),
        canary_facts(50),
        None,
        Promote(),
    ),
    (
        "promote unanswered, then bad",
        replace(NOT_LIVE, applied_share=50, share=100),
        canary_facts(50),
        ROLL_BACK,
        RollBack,
    ),
    ("promoted, not moved yet", at_share(100), canary_facts(None, traffic=()), PROMOTE, Wait),
    ("promoted", at_share(100), promoted_facts(), None, FinishPromoted()),
    # Rolling back, safe phase.
    ("live canary", going_back(), canary_facts(50), None, RollBackSafe()),
    ("loading canary", going_back(), loading_facts(5), None, RollBackSafe()),
    ("just promoted", going_back(), promoted_facts(), None, RollBackSafe()),
    (
        "at 0, not moved yet",
        going_back(),
        canary_facts(0, traffic=canary_facts(50).traffic),
        None,
        Wait("traffic goes back"),
    ),
    (
        "at 0 for too long",
        going_back(patched_at=ago(31)),
        canary_facts(0, traffic=canary_facts(50).traffic),
        None,
        Wait("traffic goes back", alarm=True),
    ),
    # Restored phase.
    ("safe", going_back(), canary_facts(0), None, RestoreStable()),
    ("safe, its name not known", going_back(expected=UNSEEN), canary_facts(0), None, Wait),
    ("restoring", going_back(), restoring_facts(), None, Wait("the restored revision is loading")),
    (
        "restoring fails",
        going_back(),
        restoring_facts(failure="RevisionFailed: x"),
        None,
        Wait("the restored revision is loading RevisionFailed: x", alarm=True),
    ),
    (
        "restored, its name not known",
        going_back(),
        restoring_facts(latest_ready=R3, bundles={R1: (ONE, "1"), R2: (TWO, "2")}),
        None,
        Wait,
    ),
    ("restored", going_back(), restoring_facts(latest_ready=R3), None, ClearPercent()),
    (
        "cleared, not moved yet",
        going_back(),
        restoring_facts(percent=None, latest_ready=R3),
        None,
        Wait,
    ),
    ("all as before", going_back(), some_facts(), None, FinishRolledBack()),
    (
        "null by hand too early",
        going_back(),
        restoring_facts(percent=None, traffic=(RevisionShare(R2, 100, latest=True),)),
        None,
        RollBackSafe(),
    ),
    (
        "never started, a patch may be on its way",
        going_back(fence_version="7"),
        some_facts(),
        None,
        Fence(),
    ),
    ("fenced", going_back(fence_version="7"), some_facts(percent=100), None, ClearPercent()),
    ("fence passed", going_back(fence_version="6"), some_facts(), None, FinishRolledBack()),
    ("service gone", going_back(), ABSENT, None, FinishRolledBack()),
    ("service going", going_back(), some_facts(deleting=True), None, Wait),
    # A first release goes back to nothing.
    (
        "first, failed",
        going_back(kind="first", goal=None),
        canary_facts(None),
        None,
        DeleteService(),
    ),
    ("first, gone", going_back(kind="first", goal=None), ABSENT, None, FinishRolledBack()),
    ("first, others'", going_back(kind="first", goal=None), some_facts(), None, FinishRolledBack()),
    # An operator's rollback from version 2 to version 1.
    (
        "warm: the previous revision is the goal's",
        going_back(**BACK_TO_ONE, before=NEWER),
        promoted_facts(),
        None,
        RollBackSafe(),
    ),
    (
        "cold: the previous revision is another's",
        going_back(**BACK_TO_ONE, before=NEWER),
        promoted_facts(previous_rolledout=R2),
        None,
        RestoreStable(),
    ),
    (
        "cold, cannot start",
        going_back(**BACK_TO_ONE, before=NEWER),
        restoring_facts(failure="RevisionFailed: x"),
        None,
        Return("RevisionFailed: x"),
    ),
    (
        "warm, cannot start: the traffic is where it should be",
        going_back(**BACK_TO_ONE, before=NEWER, safe_at=ago(1)),
        restoring_facts(failure="RevisionFailed: x"),
        None,
        Wait,
    ),
    ("arrived", going_back(**BACK_TO_ONE, before=NEWER), some_facts(), None, FinishRolledBack()),
    (
        "returned",
        going_back(**{**BACK_TO_ONE, "goal": NEWER}, before=NEWER, reason="cannot start"),
        promoted_facts(),
        None,
        Reject("cannot start"),
    ),
]


@pytest.mark.parametrize(
    ("release", "facts", "decision", "expected"),
    [row[1:] for row in TABLE],
    ids=[row[0] for row in TABLE],
)
def test_the_next_action_is(
    release: Release, facts: ServiceFacts, decision: CanaryDecision | None, expected: object
) -> None:
    action = next_action(release, facts, decision, NOW, PLAN)
    if isinstance(expected, type):
        assert isinstance(action, expected)
    else:
        assert action == expected


def approval(release: Release, seconds_ago: float, verdict: str = "verdict") -> Approval:
    return Approval("ann", ago(seconds_ago), "", release.candidate_digest, verdict)


def test_a_release_waits_for_its_approval_and_not_for_ever() -> None:
    asks = plan(approval="required", approval_timeout_seconds=60)
    proposed = a_release(state=ReleaseState.PROPOSED)
    assert next_action(proposed, ABSENT, None, NOW, asks) == AskApproval()
    assert next_action(proposed, ABSENT, None, NOW, plan()) == Begin()
    awaiting = a_release(state=ReleaseState.AWAITING_APPROVAL, asked_at=ago(59))
    assert next_action(awaiting, ABSENT, None, NOW, asks) == Wait("awaits approval")
    late = replace(awaiting, asked_at=ago(60))
    assert next_action(late, ABSENT, None, NOW, asks) == Reject("no approval within 60 s")
    approved = replace(late, approvals=(approval(late, 1),))
    assert next_action(approved, ABSENT, None, NOW, asks) == Begin()
    unused = replace(late, approvals=(approval(late, 61),))
    assert isinstance(next_action(unused, ABSENT, None, NOW, asks), Reject)
    void = replace(late, approvals=(approval(late, 1, verdict="another"),))
    assert next_action(void, ABSENT, None, NOW, asks) == AskApproval()


@pytest.mark.parametrize(
    "state",
    [
        ReleaseState.PROMOTED,
        ReleaseState.ROLLED_BACK,
        ReleaseState.REJECTED,
        ReleaseState.SUPERSEDED,
    ],
)
def test_an_ended_release_has_no_next_action(state: ReleaseState) -> None:
    with pytest.raises(RefusedError, match="has ended"):
        next_action(a_release(state=state), ABSENT, PROMOTE, NOW, PLAN)


@pytest.mark.parametrize(
    "shares",
    [
        (),
        (100,),
        (5, 50),
        (50, 5, 100),
        (5, 5, 100),
        (0, 100),
        (5, 101),
        (5, 100, 120),
        (-1, 5, 100),
        (0, 0, 5, 100),
    ],
)
def test_a_plan_must_rise_to_100(shares: tuple[int, ...]) -> None:
    with pytest.raises(ValidationError):
        ReleasePlan(shares=shares)


def test_every_field_of_the_plan_makes_a_usable_form() -> None:
    for name, field in ReleasePlan.model_fields.items():
        assert field.description, name
        assert not field.is_required(), name
