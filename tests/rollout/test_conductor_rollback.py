"""An operator takes releases and services back, and the ledger knows why."""

import pytest
from release_scenarios import (
    CONTINUE,
    PROMOTE,
    ROLL_BACK,
    SERVICE,
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
    NotFoundError,
    RefusedError,
)
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
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


def test_an_operator_takes_a_running_canary_back_from_whoever_holds_it(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = finish(conductor, begin(conductor, "2", "1"), CONTINUE, lambda r: r.share == 50)
    operator = Conductor(ledger, services, "cli")
    ended = operator.roll_back_service(SERVICE, "ann", "it smells")
    assert (ended.state, ended.release_id) == (ReleaseState.ROLLED_BACK, release.release_id)
    assert ended.reason == "it smells (by ann)"
    assert conductor.advance(release.release_id, PROMOTE).state is ReleaseState.ROLLED_BACK
    assert operator.roll_back(release.release_id, "again", "ann") == ended


def test_an_operators_rollback_moves_the_traffic_first_where_the_old_revision_is_warm(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    services.behaviour[ONE] = "loading"  # a new revision of version 1 takes its time
    begun = conductor.roll_back_service(SERVICE, "ann", "bad answers", wait_seconds=0.1)
    assert weights(services) == {ONE: 100}
    assert begun.state is ReleaseState.ROLLING_BACK
    assert begun.safe_at is not None
    services.behaviour[ONE] = "ready"
    services.reconcile()
    ended = finish(conductor, begun, None)
    assert (ended.state, ended.kind) == (ReleaseState.ROLLED_BACK, "rollback")
    assert services.history[-2:] == [{TWO: 100}, {ONE: 100}]
    stable = ledger.stable(SERVICE)
    assert stable is not None
    assert stable.candidate.model_version == "1"


def test_going_back_twice_goes_back_two_versions_and_a_version_can_be_named(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    for version, stable in (("1", None), ("2", "1"), ("3", "2")):
        promote(conductor, version, stable)
    assert conductor.roll_back_service(SERVICE, "ann", "x").candidate.model_version == "2"
    assert conductor.roll_back_service(SERVICE, "ann", "x").candidate.model_version == "1"
    with pytest.raises(RefusedError, match="the first one"):
        conductor.roll_back_service(SERVICE, "ann", "x")
    ended = conductor.roll_back_service(SERVICE, "ann", "x", to="3")
    assert ended.candidate.adapter_digest == "adapter-3"
    assert weights(services) == {THREE: 100}
    with pytest.raises(RefusedError, match="serves already"):
        conductor.roll_back_service(SERVICE, "ann", "x", to="3")
    with pytest.raises(RefusedError, match="never was stable"):
        conductor.roll_back_service(SERVICE, "ann", "x", to="9")
    assert ledger.verify() == []


def test_a_version_that_cannot_start_again_leaves_the_current_one_serving(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    for version, stable in (("1", None), ("2", "1"), ("3", "2")):
        promote(conductor, version, stable)
    before = spec(services)
    services.behaviour[ONE] = "failed"
    ended = conductor.roll_back_service(SERVICE, "ann", "x", to="1")
    assert ended.state is ReleaseState.REJECTED
    assert "RevisionFailed" in ended.reason
    assert weights(services) == {THREE: 100}
    assert spec(services) == before
    assert promote(conductor, "4", "3").state is ReleaseState.PROMOTED


def test_an_operators_rollback_ends_a_waiting_approval(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    asked = begin(conductor, "3", "2", approval="required")
    conductor.roll_back_service(SERVICE, "ann", "bad answers")
    assert ledger.release(asked.release_id).state is ReleaseState.SUPERSEDED
    assert weights(services) == {ONE: 100}


def test_nothing_to_roll_back_is_said(conductor: Conductor) -> None:
    with pytest.raises(RefusedError, match="no version was ever promoted"):
        conductor.roll_back_service(SERVICE, "ann", "x")
    ended = promote(conductor, "1")
    with pytest.raises(RefusedError, match="roll its service back"):
        conductor.roll_back(ended.release_id, "x", "ann")
    with pytest.raises(NotFoundError):
        conductor.advance("r-20000101-0001")
    waiting = conductor.propose(candidate("2", "1"), plan())
    assert conductor.roll_back(waiting.release_id, "x", "ann").state is ReleaseState.REJECTED


def test_any_earlier_version_may_be_released_again_through_a_canary(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    promote(conductor, "3", "2")
    writes = services.writes
    asked = conductor.propose_earlier(SERVICE, "ann", "1 was better", "1")
    assert (asked.kind, asked.state) == ("canary", ReleaseState.PROPOSED)
    assert (asked.candidate.stable_version, asked.requested_by) == ("3", "ann")
    assert services.writes == writes  # nothing moves before somebody starts it
    assert conductor.next_waiting(SERVICE) == asked
    begun = conductor.start(asked.release_id)
    halved = finish(conductor, begun, CONTINUE, lambda found: found.share == 50)
    conductor.advance(halved.release_id, CONTINUE)
    assert weights(services) == {THREE: 50, ONE: 50}
    assert finish(conductor, halved, PROMOTE).state is ReleaseState.PROMOTED
    assert weights(services) == {ONE: 100}
    assert "return_asked" in kinds(ledger, asked)
    assert ledger.verify() == []


def test_a_bad_canary_of_an_earlier_version_is_rolled_back_like_any_other(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    asked = conductor.propose_earlier(SERVICE, "ann", "1 was better", "1")
    again = conductor.propose_earlier(SERVICE, "bob", "so it was", "1")
    assert again.release_id == asked.release_id
    ended = finish(conductor, conductor.start(asked.release_id), ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert weights(services) == {TWO: 100}


@pytest.mark.parametrize(
    ("to", "words"), [("9", "9 never was stable here"), ("2", "version 2 serves already")]
)
def test_a_version_that_cannot_be_returned_to_is_refused(
    conductor: Conductor, ledger: Ledger, to: str, words: str
) -> None:
    promote(conductor, "1")
    promote(conductor, "2", "1")
    events = ledger.events()
    with pytest.raises(RefusedError, match=words):
        conductor.propose_earlier(SERVICE, "ann", "x", to)
    assert ledger.events() == events
