"""Replicas are scaled without disturbing releases, and what happens to a service is in the chain.

The control plane here makes a new revision for more replicas, as a cluster does.
"""

import pytest
from release_scenarios import CONTINUE, PROMOTE, SERVICE, begin, bundle, finish, promote

from core.contracts import ReleaseState
from core.errors import RefusedError
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.scaling import Replicas, read_replicas, scale


def replicas(services: FakeInferenceServices) -> int:
    body = services.get("default", SERVICE)
    assert body is not None
    return read_replicas(body).wanted


def test_replicas_are_raised_and_taken_back(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    assert scale(ledger, services, "default", SERVICE, 2).wanted == 1
    assert replicas(services) == 2
    writes = services.writes
    scale(ledger, services, "default", SERVICE, 2)
    assert services.writes == writes
    scale(ledger, services, "default", SERVICE, 1, only_from=2)
    assert replicas(services) == 1


def test_what_somebody_else_decided_meanwhile_stays(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    scale(ledger, services, "default", SERVICE, 3)
    scale(ledger, services, "default", SERVICE, 1, only_from=2)
    assert replicas(services) == 3


def test_nothing_is_scaled_while_a_release_runs(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    begin(conductor, "2", "1")
    with pytest.raises(RefusedError, match="runs"):
        scale(ledger, services, "default", SERVICE, 2)


def test_a_release_over_scaled_replicas_is_promoted_and_rolled_back_as_ever(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    scale(ledger, services, "default", SERVICE, 2)
    assert promote(conductor, "2", "1").state is ReleaseState.PROMOTED
    assert replicas(services) == 2
    back = conductor.roll_back_service(SERVICE, "watch", "worse than last week")
    assert back.state is ReleaseState.ROLLED_BACK
    assert not back.alarms
    assert services.weights("default", SERVICE) == {bundle("1"): 100}


def test_replicas_changed_by_hand_during_a_canary_do_not_end_it(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1")
    release = conductor.advance(release.release_id, CONTINUE)
    assert release.state is ReleaseState.CANARY
    services.patch("default", SERVICE, {"spec": {"predictor": {"maxReplicas": 4}}})
    release = conductor.advance(release.release_id, CONTINUE)
    assert release.state is ReleaseState.CANARY
    assert finish(conductor, release, PROMOTE).state is ReleaseState.PROMOTED


def test_events_without_a_release_are_in_the_chain(conductor: Conductor, ledger: Ledger) -> None:
    promote(conductor, "1")
    body = {"row": "memory", "value": 0.95}
    ledger.write(lambda writer: writer.record("default", SERVICE, "health_act", "watch", body))
    event = ledger.last_events(1)[0]
    assert (event.kind, event.release_id, event.body["row"]) == ("health_act", "", "memory")
    assert ledger.verify() == []
    promote(conductor, "2", "1")
    assert ledger.verify() == []


def test_a_memory_limit_is_read_from_the_services_resources() -> None:
    model = {"resources": {"limits": {"memory": "2Gi"}}}
    body = {"spec": {"predictor": {"minReplicas": 2, "maxReplicas": 4, "model": model}}}
    assert read_replicas(body) == Replicas(2, None, 4, "2Gi")


def test_notes_are_replaced_and_in_no_chain(ledger: Ledger) -> None:
    assert ledger.note("health:default/assistant") is None
    ledger.keep_note("health:default/assistant", "one")
    ledger.keep_note("health:default/assistant", "two")
    assert ledger.note("health:default/assistant") == "two"
    assert ledger.verify() == []
