"""The fake behaves as KServe's Knative mode does, the pitfalls included."""

import pytest
from release_scenarios import SERVICE, bundle, candidate

from core.errors import ConflictError, NotFoundError
from rollout.fake_inference_service import FakeInferenceServices
from rollout.inference_service import (
    ServiceFacts,
    patch_body,
    read_facts,
    service_body,
    spec_with_candidate,
)

ONE, TWO, THREE = bundle("1"), bundle("2"), bundle("3")


def facts(services: FakeInferenceServices) -> ServiceFacts:
    return read_facts(services.get("default", SERVICE), {})


def weights(services: FakeInferenceServices) -> dict[str, int]:
    return services.weights("default", SERVICE)


def create(services: FakeInferenceServices, version: str = "1") -> None:
    services.create("default", service_body("default", candidate(version)))


def percent(services: FakeInferenceServices, value: int | None) -> None:
    seen = facts(services)
    services.patch("default", SERVICE, patch_body(seen, seen.spec, value))


def model(services: FakeInferenceServices, version: str, value: int | None) -> None:
    seen = facts(services)
    wanted = spec_with_candidate(seen.spec, candidate(version))
    services.patch("default", SERVICE, patch_body(seen, wanted, value))


def test_a_first_create_gives_all_traffic_to_the_one_revision(
    services: FakeInferenceServices,
) -> None:
    create(services)
    seen = facts(services)
    assert weights(services) == {ONE: 100}
    assert seen.latest_rolledout == seen.latest_ready == seen.latest_created
    assert seen.percent is None


def test_a_canary_that_loads_leaves_both_entries_on_the_old_revision(
    services: FakeInferenceServices,
) -> None:
    create(services)
    services.behaviour[TWO] = "loading"
    model(services, "2", 10)
    assert weights(services) == {ONE: 100}
    assert facts(services).latest_created != facts(services).latest_ready
    services.behaviour[TWO] = "ready"
    services.reconcile()
    assert weights(services) == {ONE: 90, TWO: 10}
    assert facts(services).latest_rolledout.endswith("00001")


def test_percent_alone_on_a_promoted_service_sends_the_rest_to_the_previous_revision(
    services: FakeInferenceServices,
) -> None:
    create(services)
    model(services, "2", 10)
    percent(services, None)
    assert weights(services) == {TWO: 100}
    percent(services, 10)
    assert weights(services) == {TWO: 10, ONE: 90}
    percent(services, 0)
    assert weights(services) == {ONE: 100}


def test_null_while_the_rejected_revision_is_the_newest_ready_one_sends_it_everything(
    services: FakeInferenceServices,
) -> None:
    create(services)
    model(services, "2", 10)
    services.behaviour[ONE] = "loading"
    model(services, "1", 0)
    percent(services, None)
    assert weights(services) == {TWO: 100}


def test_the_right_way_back_never_gives_the_rejected_revision_more(
    services: FakeInferenceServices,
) -> None:
    create(services)
    model(services, "2", 10)
    percent(services, 0)
    model(services, "1", 0)
    percent(services, None)
    assert services.history == [{ONE: 100}, {ONE: 90, TWO: 10}, {ONE: 100}]
    assert facts(services).latest_created.endswith("00003")


def test_a_failed_revision_is_named_and_gets_no_traffic(services: FakeInferenceServices) -> None:
    create(services)
    services.behaviour[TWO] = "failed"
    model(services, "2", 50)
    assert facts(services).failure.startswith("RevisionFailed")
    assert weights(services) == {ONE: 100}


def test_percent_100_on_a_settled_service_writes_it_and_moves_nothing(
    services: FakeInferenceServices,
) -> None:
    create(services)
    model(services, "2", None)
    before = facts(services)
    percent(services, 100)
    after = facts(services)
    assert weights(services) == {TWO: 100}
    assert after.resource_version != before.resource_version
    assert after.previous_rolledout == before.previous_rolledout


def test_a_patch_with_an_old_resource_version_is_refused(services: FakeInferenceServices) -> None:
    create(services)
    old = facts(services)
    services.restart("default", SERVICE)
    with pytest.raises(ConflictError):
        services.patch("default", SERVICE, patch_body(old, old.spec, 50))
    assert weights(services) == {ONE: 100}


def test_unknown_and_existing_services_are_named(services: FakeInferenceServices) -> None:
    with pytest.raises(NotFoundError):
        services.patch("default", SERVICE, {})
    assert services.get("default", SERVICE) is None
    create(services)
    with pytest.raises(ConflictError):
        create(services)
    services.delete("default", SERVICE, "uid-of-another")
    assert services.get("default", SERVICE) is not None
    services.delete("default", SERVICE, facts(services).uid)
    assert services.get("default", SERVICE) is None
