"""A person's answer to a release: who may give it, how often, and what the ledger keeps of it."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from release_scenarios import Clock, begin, candidate, plan

from core.contracts import ReleaseState
from core.errors import ConfigurationError, RefusedError
from rollout.answers import REFUSED_MAX, REFUSED_SECONDS, Answer, check_policy, record_answer
from rollout.approvers import Approvers
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.keeper import Keeper
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release, decode_release, encode_release

CODES = {"Ada": "correct horse 77", "Grace": "nanoseconds 88", "Linus": "penguins 99"}


@pytest.fixture
def approvers(tmp_path: Path) -> Approvers:
    configured = Approvers(tmp_path / "approvers.yaml")
    for name, code in CODES.items():
        configured.add(name, code)
    return configured


@pytest.fixture
def nobody(tmp_path: Path) -> Approvers:
    return Approvers(tmp_path / "none.yaml")


def ask(conductor: Conductor, requested_by: str = "", **policy: Any) -> Release:
    given = plan(approval="required", **policy)
    proposed = conductor.propose(candidate("1"), given, requested_by)
    return conductor.start(proposed.release_id)


def yes(release: Release, who: str, code: str | None = None, **fields: str) -> Answer:
    return Answer(release.release_id, who, True, code=code or CODES.get(who, ""), **fields)


def text_of(ledger: Ledger, release: Release) -> str:
    return str(ledger.events(release_id=release.release_id)) + encode_release(
        ledger.release(release.release_id)
    )


def test_as_many_different_people_as_the_plan_asks_for_must_agree(
    conductor: Conductor, ledger: Ledger, approvers: Approvers
) -> None:
    asked = ask(conductor, approvals_required=2)
    for who in ("Ada", "ada "):  # the same person twice is one
        one = record_answer(ledger, approvers, yes(asked, who, CODES["Ada"], note="fine"))
        assert (len(one.approvals), one.approved) == (1, False)
    assert conductor.advance(asked.release_id).state is ReleaseState.AWAITING_APPROVAL
    both = record_answer(ledger, approvers, yes(asked, "Grace"))
    assert both.approved
    assert conductor.advance(asked.release_id).state is ReleaseState.CANARY
    events = [e for e in ledger.events(release_id=asked.release_id) if e.kind == "approved"]
    assert [(e.body["who"], e.body["approvals"], e.body["required"]) for e in events] == [
        ("Ada", 1, 2),
        ("Grace", 2, 2),
    ]
    assert events[0].body["note"] == "fine"
    assert events[0].body["self_declared"] is False
    assert events[0].body["candidate_digest"] == asked.candidate_digest
    assert events[0].body["verdict_digest"] == "verdict"
    with pytest.raises(RefusedError, match="CANARY"):
        record_answer(ledger, approvers, yes(asked, "Linus"))


def test_one_rejection_by_an_approver_ends_it(
    conductor: Conductor, ledger: Ledger, approvers: Approvers
) -> None:
    asked = ask(conductor, approvals_required=2)
    record_answer(ledger, approvers, yes(asked, "Ada"))
    no = Answer(asked.release_id, "Grace", False, "not today", CODES["Grace"])
    ended = record_answer(ledger, approvers, no)
    assert (ended.state, ended.reason) == (
        ReleaseState.REJECTED,
        "rejected by Grace: not today",
    )
    with pytest.raises(RefusedError, match="REJECTED"):
        record_answer(ledger, approvers, yes(asked, "Linus"))


@pytest.mark.parametrize("policy", [{"approvals_required": 2}, {"requester_excluded": True}])
def test_the_requester_may_reject_but_not_approve(
    conductor: Conductor, ledger: Ledger, approvers: Approvers, policy: dict[str, Any]
) -> None:
    asked = ask(conductor, requested_by="linus", **policy)
    with pytest.raises(RefusedError, match="another person"):
        record_answer(ledger, approvers, yes(asked, "Linus"))
    no = Answer(asked.release_id, "Linus", False, code=CODES["Linus"])
    assert record_answer(ledger, approvers, no).state is ReleaseState.REJECTED


def test_a_wrong_code_is_an_event_without_the_code_and_soon_a_pause(
    fast_folder: Path, approvers: Approvers
) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{fast_folder}/ledger.db", clock)
    conductor = Conductor(ledger, FakeInferenceServices(), "flow")
    asked = ask(conductor, approvals_required=2)
    for _ in range(REFUSED_MAX):
        with pytest.raises(RefusedError, match="name or code is wrong"):
            record_answer(ledger, approvers, yes(asked, "Ada", "guess-guess"))
    with pytest.raises(RefusedError, match="too many wrong codes for Ada"):
        record_answer(ledger, approvers, yes(asked, "Ada"))
    events = [e for e in ledger.events(release_id=asked.release_id) if e.kind == "answer_refused"]
    assert [event.body["who"] for event in events] == ["Ada"] * REFUSED_MAX
    assert len(record_answer(ledger, approvers, yes(asked, "Grace")).approvals) == 1  # others can
    clock.seconds += REFUSED_SECONDS
    assert record_answer(ledger, approvers, yes(asked, "Ada")).approved  # the pause is over
    for code in (*CODES.values(), "guess-guess"):
        assert code not in text_of(ledger, asked)
    ledger.close()


def test_a_code_in_a_wrong_field_is_not_recorded(
    conductor: Conductor, ledger: Ledger, approvers: Approvers
) -> None:
    asked, code = ask(conductor), CODES["Ada"]
    mistakes = (
        yes(asked, code, "x"),
        yes(asked, code, code),
        yes(asked, "Ada", code, note=f"code {code}"),
    )
    for mistaken in mistakes:
        with pytest.raises(RefusedError) as refused:
            record_answer(ledger, approvers, mistaken)
        assert code not in str(refused.value)
        assert code not in repr(Answer(asked.release_id, "Ada", True, code=code))
    assert code not in text_of(ledger, asked)


def test_without_approvers_a_single_approval_is_self_declared(
    conductor: Conductor, ledger: Ledger, nobody: Approvers
) -> None:
    asked = ask(conductor)
    (given,) = record_answer(ledger, nobody, yes(asked, "anybody")).approvals
    assert (given.who, given.self_declared) == ("anybody", True)


@pytest.mark.parametrize("policy", [{"approvals_required": 2}, {"requester_excluded": True}])
def test_a_policy_about_persons_needs_approvers(
    conductor: Conductor, ledger: Ledger, nobody: Approvers, policy: dict[str, Any]
) -> None:
    asked = ask(conductor, **policy)
    with pytest.raises(ConfigurationError, match="serin approver add"):
        check_policy(asked.plan, nobody)
    with pytest.raises(RefusedError, match="serin approver add"):
        record_answer(ledger, nobody, yes(asked, "anybody"))
    check_policy(plan(approval="required"), nobody)


def test_fewer_approvers_than_the_plan_asks_for_are_refused_at_once(approvers: Approvers) -> None:
    check_policy(plan(approval="required", approvals_required=3), approvers)
    with pytest.raises(ConfigurationError, match="needs 4 approver"):
        check_policy(plan(approval="required", approvals_required=4), approvers)
    with pytest.raises(ValidationError, match="approval: required"):
        ReleasePlan(approvals_required=2)


def test_another_verdict_voids_every_approval_and_is_asked_for_again(
    conductor: Conductor, ledger: Ledger, approvers: Approvers
) -> None:
    asked = ask(conductor, approvals_required=2)
    seen = yes(asked, "Ada", seen_digest="verdict")
    record_answer(ledger, approvers, seen)
    given = plan(approval="required", approvals_required=2)
    conductor.propose(candidate("1", verdict="another"), given)
    current = conductor.advance(asked.release_id)
    assert (current.state, current.approvals) == (ReleaseState.AWAITING_APPROVAL, ())
    with pytest.raises(RefusedError, match="changed since it was shown"):
        record_answer(ledger, approvers, seen)
    fresh = yes(asked, "Ada", seen_digest="another")
    assert len(record_answer(ledger, approvers, fresh).approvals) == 1


def test_half_the_approvals_in_time_are_not_enough(fast_folder: Path, approvers: Approvers) -> None:
    clock = Clock()
    ledger = Ledger(f"sqlite:///{fast_folder}/ledger.db", clock)
    services = FakeInferenceServices()
    conductor = Conductor(ledger, services, "flow")
    asked = ask(conductor, approvals_required=2, approval_timeout_seconds=60)
    record_answer(ledger, approvers, yes(asked, "Ada"))
    keeper = Keeper(ledger, Conductor(ledger, services, "keeper"))
    keeper.tick()
    assert ledger.release(asked.release_id).state is ReleaseState.AWAITING_APPROVAL
    clock.seconds += 61
    keeper.tick()
    ended = ledger.release(asked.release_id)
    assert (ended.state, ended.reason) == (ReleaseState.REJECTED, "no approval within 60 s")
    ledger.close()


def test_an_approval_written_before_there_could_be_several_still_counts(
    conductor: Conductor,
) -> None:
    asked = begin(conductor, "1", approval="required")
    approved = conductor.approve(asked.release_id, "ann", "fine")
    older = encode_release(approved).replace('"approvals":[{', '"approval":{')
    older = older.replace('"self_declared":true}]', '"self_declared":true}')
    assert '"approval":{' in older
    assert decode_release(older) == approved
