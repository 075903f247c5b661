"""Two processes, lost answers and late patches: only one holder writes, and nothing twice."""

import copy

import pytest
from release_scenarios import (
    CONTINUE,
    PROMOTE,
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
    ConflictError,
    FencedError,
    RefusedError,
    UnavailableError,
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


def test_another_holder_only_looks_on_until_the_lease_runs_out(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1")
    other = Conductor(ledger, services, "other flow")
    before = ledger.release(release.release_id)
    assert other.advance(release.release_id, PROMOTE) == before
    assert finish(conductor, release).state is ReleaseState.PROMOTED


def test_the_same_holder_in_a_new_process_goes_on_and_the_old_process_is_fenced(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = finish(conductor, begin(conductor, "2", "1"), CONTINUE, lambda r: r.share == 50)
    again = Conductor(ledger, services, "flow")
    again.advance(release.release_id)
    writes = services.writes
    looked = conductor.advance(release.release_id, PROMOTE)
    assert looked.state is ReleaseState.CANARY
    assert services.writes == writes
    with pytest.raises(FencedError, match="may not write any more"):
        ledger.write(lambda writer: writer.change(release, "late", {}))
    assert finish(again, release).state is ReleaseState.PROMOTED


class SilentServices:
    """InferenceServices whose next patch is kept back: sent, not answered, delivered later."""

    def __init__(self, inner: FakeInferenceServices) -> None:
        self.inner = inner
        self.keep_back = False
        self.kept: list[tuple[str, str, Body]] = []

    def get(self, namespace: str, name: str) -> Body | None:
        return self.inner.get(namespace, name)

    def create(self, namespace: str, body: Body) -> Body:
        return self.inner.create(namespace, body)

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        if self.keep_back:
            self.kept.append((namespace, name, copy.deepcopy(body)))
            raise UnavailableError("no answer within 10 s")
        return self.inner.patch(namespace, name, body)

    def delete(self, namespace: str, name: str, uid: str) -> None:
        self.inner.delete(namespace, name, uid)


def test_a_patch_that_arrives_after_the_release_has_ended_is_refused(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    silent = SilentServices(services)
    conductor = Conductor(ledger, silent, "flow")
    promote(conductor, "1")
    proposed = conductor.propose(candidate("2", "1"), plan())
    silent.keep_back = True
    with pytest.raises(UnavailableError):
        conductor.start(proposed.release_id)
    silent.keep_back = False
    ended = conductor.roll_back(proposed.release_id, "no answer", "ann")
    assert ended.state is ReleaseState.ROLLED_BACK
    assert "intent Fence" in kinds(ledger, ended)
    namespace, name, body = silent.kept[0]
    with pytest.raises(ConflictError):
        services.patch(namespace, name, body)
    assert services.history == [{ONE: 100}]


def test_a_patch_without_an_answer_that_did_arrive_is_found_and_not_repeated(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    class Deaf(SilentServices):
        def patch(self, namespace: str, name: str, body: Body) -> Body:
            self.inner.patch(namespace, name, body)
            raise UnavailableError("no answer within 10 s")

    promote(Conductor(ledger, services, "flow"), "1")
    conductor = Conductor(ledger, Deaf(services), "flow")
    release = conductor.propose(candidate("2", "1"), plan())
    with pytest.raises(UnavailableError):
        conductor.start(release.release_id)
    live = conductor.advance(release.release_id)
    assert live.step_started_at is not None
    assert [kind for kind in kinds(ledger, live) if "StartCanary" in kind] == [
        "intent StartCanary",
        "applied StartCanary",
    ]


def test_a_service_that_is_written_all_the_time_is_read_again(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    class Busy(SilentServices):
        conflicts = 3

        def patch(self, namespace: str, name: str, body: Body) -> Body:
            if self.conflicts:
                self.conflicts -= 1
                self.inner.restart(namespace, name)
            return super().patch(namespace, name, body)

    promote(Conductor(ledger, services, "flow"), "1")
    ended = promote(Conductor(ledger, Busy(services), "flow"), "2", "1")
    assert ended.state is ReleaseState.PROMOTED
    assert kinds(ledger, ended).count("conflict StartCanary") == 3


def test_what_the_control_plane_refuses_ends_the_release(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    class Refusing(SilentServices):
        def patch(self, namespace: str, name: str, body: Body) -> Body:
            if TWO in str(body):
                raise RefusedError("admission webhook denied the request")
            return super().patch(namespace, name, body)

    promote(Conductor(ledger, services, "flow"), "1")
    conductor = Conductor(ledger, Refusing(services), "flow")
    ended = finish(conductor, begin(conductor, "2", "1"))
    assert ended.state is ReleaseState.ROLLED_BACK
    assert "denied" in ended.reason
    assert weights(services) == {ONE: 100}


def test_a_create_that_arrives_after_its_release_was_rolled_back_is_recognised_and_removed(
    ledger: Ledger, services: FakeInferenceServices
) -> None:
    class SilentCreate(SilentServices):
        def create(self, namespace: str, body: Body) -> Body:
            self.kept.append((namespace, "", copy.deepcopy(body)))
            raise UnavailableError("no answer within 10 s")

    silent = SilentCreate(services)
    conductor = Conductor(ledger, silent, "flow")
    first = conductor.propose(candidate("1"), plan())
    with pytest.raises(UnavailableError):
        conductor.start(first.release_id)
    conductor.roll_back(first.release_id, "no answer", "ann")
    services.create("default", silent.kept[0][2])
    removed = conductor.remove_orphans()
    assert [release.release_id for release in removed] == [first.release_id]
    assert services.get("default", SERVICE) is None
    other = Conductor(ledger, services, "flow")
    services.create("default", silent.kept[0][2])
    assert promote(other, "2").kind == "first"  # it does not take the orphan for a stable version
    assert other.remove_orphans() == []
    assert ledger.verify() == []
