"""Releases from proposal to their end, on a real ledger and an in-memory control plane."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from release_scenarios import (
    CONTINUE,
    PROMOTE,
    ROLL_BACK,
    SERVICE,
    Clock,
    begin,
    bundle,
    candidate,
    finish,
    kinds,
    plan,
    promote,
)

from core.contracts import ReleaseState
from core.errors import (
    InputError,
    RefusedError,
    UnavailableError,
)
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.identities import Identity
from rollout.inference_service import Body
from rollout.ledger import Ledger

ONE, TWO, THREE = bundle("1"), bundle("2"), bundle("3")


def weights(services: FakeInferenceServices) -> dict[str, int]:
    return services.weights("default", SERVICE)


def spec(services: FakeInferenceServices) -> Body:
    body = services.get("default", SERVICE)
    assert body is not None
    found: Body = body["spec"]
    return found


def test_the_first_release_goes_straight_to_stable(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    ended = promote(conductor, "1")
    assert (ended.state, ended.kind) == (ReleaseState.PROMOTED, "first")
    assert weights(services) == {ONE: 100}
    assert kinds(ledger, ended) == [
        "proposed",
        "started",
        "intent CreateService",
        "applied CreateService",
        "revision_created",
        "promoted",
    ]


def test_a_first_release_that_never_starts_leaves_no_service(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    services.behaviour[ONE] = "failed"
    ended = promote(conductor, "1")
    assert ended.state is ReleaseState.ROLLED_BACK
    assert "RevisionFailed: it exits with 1" in ended.reason
    assert services.get("default", SERVICE) is None


def test_a_canary_rises_share_by_share_and_is_promoted(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    ended = promote(conductor, "2", "1", shares=(5, 15, 50, 100))
    assert (ended.state, ended.kind) == (ReleaseState.PROMOTED, "canary")
    shares = [shown.get(TWO, 0) for shown in services.history]
    assert shares == [0, 5, 15, 50, 100]
    stable = ledger.stable(SERVICE)
    assert stable is not None
    assert stable.release_id == ended.release_id
    assert ended.revision == "assistant-predictor-00002"


def test_a_rejected_canary_is_safe_first_then_restored_as_it_was(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    before = spec(services)
    ended = finish(conductor, begin(conductor, "2", "1"), ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.reason == f"the judge: {ROLL_BACK.reason}"
    assert services.history == [{ONE: 100}, {ONE: 95, TWO: 5}, {ONE: 100}]
    assert spec(services) == before
    moves = [kind for kind in kinds(ledger, ended) if kind.startswith("intent")]
    assert moves == [
        "intent StartCanary",
        "intent RollBackSafe",
        "intent RestoreStable",
        "intent ClearPercent",
    ]
    last = ledger.events(release_id=ended.release_id)[-1]
    assert last.body["differences"] == []
    assert last.body["goal_digest"] is not None


def test_the_first_call_after_a_bad_verdict_already_takes_the_traffic_away(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    release = finish(conductor, begin(conductor, "2", "1"), CONTINUE, lambda r: r.share == 50)
    conductor.advance(release.release_id, ROLL_BACK)
    assert weights(services) == {ONE: 100}


@pytest.mark.parametrize("behaviour", ["failed", "loading"])
def test_a_canary_that_does_not_start_is_rolled_back(behaviour: Any, tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    services = FakeInferenceServices()
    conductor = Conductor(ledger, services, "flow")
    promote(conductor, "1")
    services.behaviour[TWO] = behaviour
    release = begin(conductor, "2", "1", ready_seconds_max=30)
    if behaviour == "loading":
        assert conductor.advance(release.release_id).state is ReleaseState.CANARY
        clock.seconds += 31
    ended = finish(conductor, release, None)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert services.history == [{ONE: 100}]
    ledger.close()


def test_a_control_plane_that_lags_is_waited_for(tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    services = FakeInferenceServices(lag=True)
    conductor = Conductor(ledger, services, "flow")
    release = begin(conductor, "1")
    for _ in range(3):
        assert not conductor.advance(release.release_id).final
    services.reconcile()
    assert conductor.advance(release.release_id).state is ReleaseState.PROMOTED
    release = begin(conductor, "2", "1")
    taken = conductor.roll_back(release.release_id, "at once", "ann", wait_seconds=0.2)
    assert taken.state is ReleaseState.ROLLING_BACK  # the candidate's revision has no name yet
    for _ in range(6):
        services.reconcile()
        taken = conductor.advance(release.release_id)
    assert taken.state is ReleaseState.ROLLED_BACK
    assert services.history == [{ONE: 100}]
    ledger.close()


def test_a_second_release_waits_and_the_newest_waiting_one_supersedes(
    conductor: Conductor, ledger: Ledger
) -> None:
    promote(conductor, "1")
    running = begin(conductor, "2", "1")
    third = conductor.start(conductor.propose(candidate("3", "1"), plan()).release_id)
    assert third.state is ReleaseState.PROPOSED
    assert conductor.next_waiting(SERVICE) is None
    fourth = conductor.propose(candidate("4", "1"), plan())
    assert ledger.release(third.release_id).state is ReleaseState.SUPERSEDED
    assert ledger.release(running.release_id).state is ReleaseState.CANARY
    finish(conductor, running, ROLL_BACK)
    waiting = conductor.next_waiting(SERVICE)
    assert waiting is not None
    assert waiting.release_id == fourth.release_id
    assert finish(conductor, conductor.start(fourth.release_id)).state is ReleaseState.PROMOTED


def test_a_waiting_candidate_is_judged_again_when_stable_has_changed(
    conductor: Conductor, ledger: Ledger
) -> None:
    promote(conductor, "1")
    running = begin(conductor, "2", "1")
    waiting = conductor.propose(candidate("3", "1"), plan())
    assert not conductor.needs_new_verdict(waiting.release_id)
    finish(conductor, running)
    assert conductor.needs_new_verdict(waiting.release_id)
    with pytest.raises(RefusedError, match="judge the candidate again"):
        conductor.start(waiting.release_id)
    again = conductor.propose(candidate("3", "2", verdict="another"), plan())
    assert again.release_id == waiting.release_id
    assert again.candidate.verdict_digest == "another"
    assert kinds(ledger, again)[-1] == "judged_again"
    assert finish(conductor, conductor.start(again.release_id)).state is ReleaseState.PROMOTED


def test_a_candidate_that_serves_already_is_rejected(conductor: Conductor) -> None:
    promote(conductor, "1")
    ended = conductor.start(conductor.propose(candidate("1", "1"), plan()).release_id)
    assert ended.state is ReleaseState.REJECTED
    assert "serves already" in ended.reason


def test_an_approval_holds_the_release_until_it_is_given(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    asked = begin(conductor, "2", "1", approval="required")
    assert asked.state is ReleaseState.AWAITING_APPROVAL
    assert conductor.advance(asked.release_id, PROMOTE).state is ReleaseState.AWAITING_APPROVAL
    assert weights(services) == {ONE: 100}
    with pytest.raises(RefusedError, match="changed since it was shown"):
        conductor.approve(asked.release_id, "ann", seen_digest="0" * 64)
    approved = conductor.approve(asked.release_id, "ann", "fine", seen_digest="verdict")
    again = conductor.approve(asked.release_id, "ann", "fine")
    assert again.approvals == approved.approvals
    with pytest.raises(RefusedError, match="approved by ann"):
        conductor.approve(asked.release_id, "bob")
    event = ledger.events(release_id=asked.release_id)[-1]
    assert event.kind == "approved"
    assert event.body["who"] == "ann"
    assert event.body["candidate_digest"] == asked.candidate_digest
    assert finish(conductor, approved).state is ReleaseState.PROMOTED


def test_a_new_verdict_voids_an_approval(conductor: Conductor, ledger: Ledger) -> None:
    promote(conductor, "1")
    asked = begin(conductor, "2", "1", approval="required")
    conductor.approve(asked.release_id, "ann")
    conductor.propose(candidate("2", "1", verdict="another"), plan(approval="required"))
    release = conductor.advance(asked.release_id)
    assert release.state is ReleaseState.AWAITING_APPROVAL
    assert release.approvals == ()
    assert ledger.events(release_id=asked.release_id)[-1].body["approval_void"] is True


def test_a_rejection_moves_nothing_and_frees_the_service(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    writes = services.writes
    asked = begin(conductor, "2", "1", approval="required")
    assert conductor.reject(asked.release_id, "bob", "no").state is ReleaseState.REJECTED
    assert conductor.reject(asked.release_id, "bob", "no").reason == "rejected by bob: no"
    assert services.writes == writes
    running = begin(conductor, "3", "1")
    with pytest.raises(RefusedError, match="can be rolled back"):
        conductor.reject(running.release_id, "bob")


def test_an_unanswered_approval_is_superseded_and_an_answered_one_is_not(
    conductor: Conductor, ledger: Ledger
) -> None:
    promote(conductor, "1")
    asked = begin(conductor, "2", "1", approval="required")
    newer = begin(conductor, "3", "1", approval="required")
    assert ledger.release(asked.release_id).state is ReleaseState.SUPERSEDED
    assert newer.state is ReleaseState.AWAITING_APPROVAL
    conductor.approve(newer.release_id, "ann")
    conductor.propose(candidate("4", "1"), plan())
    assert ledger.release(newer.release_id).state is ReleaseState.AWAITING_APPROVAL


def test_a_late_approval_counts_as_rejected(tmp_path: Path) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db", clock)
    conductor = Conductor(ledger, FakeInferenceServices(), "flow")
    asked = begin(conductor, "1", approval="required", approval_timeout_seconds=60)
    assert conductor.reject_expired(asked.release_id).state is ReleaseState.AWAITING_APPROVAL
    clock.seconds += 61
    ended = conductor.reject_expired(asked.release_id)
    assert (ended.state, ended.reason) == (ReleaseState.REJECTED, "no approval within 60 s")
    ledger.close()


def test_what_somebody_else_does_to_the_service_ends_the_canary(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    release = finish(conductor, begin(conductor, "2", "1"), CONTINUE, lambda r: r.share == 50)
    body = {"spec": {"predictor": {"canaryTrafficPercent": 0}}}
    services.patch("default", SERVICE, body)  # an operator's kubectl patch
    ended = finish(conductor, release, CONTINUE)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert "somebody else" in ended.reason
    assert weights(services) == {ONE: 100}


def test_a_rollback_brings_back_every_field_that_the_canary_or_others_changed(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    model = {"model": {"args": ["--threads=2"]}}
    services.patch("default", SERVICE, {"spec": {"predictor": model}})
    before = spec(services)
    release = finish(conductor, begin(conductor, "2", "1"), CONTINUE, lambda r: r.share == 5)
    other = {
        "containerConcurrency": 3,
        "model": {"args": None, "env": [{"name": "X", "value": "1"}]},
    }
    services.patch("default", SERVICE, {"spec": {"predictor": other}})
    ended = finish(conductor, release, ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert spec(services) == before
    assert not ended.alarms


def test_a_state_that_is_not_as_before_raises_an_alarm(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    served = [Identity(ONE, "policy-1")]
    conductor = Conductor(ledger, services, "flow", identities=lambda *_: tuple(served))
    promote(conductor, "1")
    release = begin(conductor, "2", "1")
    served[0] = Identity(THREE, "policy-2")  # a process that serves what nobody asked for
    ended = finish(conductor, release, ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert ended.alarms == ("the service is not as it was: reported, policies",)
    assert "alarm" in kinds(ledger, ended)


def test_processes_that_cannot_be_asked_are_unknown_and_no_alarm(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    answers: list[tuple[Identity, ...] | None] = [(Identity(ONE, ""),)]
    conductor = Conductor(ledger, services, "flow", identities=lambda *_: answers[0])
    promote(conductor, "1")
    release = begin(conductor, "2", "1")
    answers[0] = None
    assert not finish(conductor, release, ROLL_BACK).alarms


def test_an_unsettled_service_is_not_begun_on(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    services.patch("default", SERVICE, {"spec": {"predictor": {"canaryTrafficPercent": 30}}})
    proposed = conductor.propose(candidate("3", "2"), plan())
    with pytest.raises(UnavailableError, match="not settled"):
        conductor.start(proposed.release_id)
    assert ledger.release(proposed.release_id).state is ReleaseState.PROPOSED


def test_a_service_from_before_the_ledger_is_adopted(
    conductor: Conductor, services: FakeInferenceServices, tmp_path: Path
) -> None:
    promote(conductor, "1")
    fresh = Ledger(f"sqlite:///{tmp_path}/fresh.db")
    newcomer = Conductor(fresh, services, "flow")
    assert promote(newcomer, "2", "1").kind == "canary"
    ended = newcomer.roll_back_service(SERVICE, "ann", "worse")
    assert (ended.state, ended.candidate.model_version) == (ReleaseState.ROLLED_BACK, "1")
    assert weights(services) == {ONE: 100}
    fresh.close()


def test_a_bundle_uri_must_name_its_bundle(conductor: Conductor) -> None:
    wrong = replace(candidate("1"), bundle_uri="file:///bundles/latest")
    with pytest.raises(InputError, match="must end in the bundle's digest"):
        conductor.propose(wrong, plan())
