"""The Kubernetes client over real HTTP: merge patches with nulls, conflicts, errors, time-outs."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_plane import MERGE_PATCH, ControlPlane
from release_scenarios import ROLL_BACK, SERVICE, begin, bundle, candidate, finish, promote

from core.contracts import ReleaseState
from core.errors import (
    ConfigurationError,
    ConflictError,
    NotFoundError,
    RefusedError,
    UnavailableError,
)
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.inference_service import read_facts, service_body
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger


@pytest.fixture
def plane(services: FakeInferenceServices) -> Iterator[ControlPlane]:
    started = ControlPlane(services)
    yield started
    started.stop()


@pytest.fixture
def client(plane: ControlPlane) -> KubernetesClient:
    return KubernetesClient(plane.url, timeout_seconds=5)


def test_releases_run_over_http_as_they_do_in_memory(
    client: KubernetesClient, services: FakeInferenceServices, ledger: Ledger, plane: ControlPlane
) -> None:
    conductor = Conductor(ledger, client, "flow")
    promote(conductor, "1")
    assert promote(conductor, "2", "1").state is ReleaseState.PROMOTED
    ended = finish(conductor, begin(conductor, "3", "2"), ROLL_BACK)
    assert ended.state is ReleaseState.ROLLED_BACK
    assert services.weights("default", SERVICE) == {bundle("2"): 100}
    patches = {kind for method, _, kind in plane.requests if method == "PATCH"}
    assert patches == {MERGE_PATCH}


def test_a_null_removes_a_field(client: KubernetesClient) -> None:
    client.create("default", service_body("default", candidate("1")))
    client.patch("default", SERVICE, {"spec": {"predictor": {"canaryTrafficPercent": 100}}})
    client.patch("default", SERVICE, {"spec": {"predictor": {"canaryTrafficPercent": None}}})
    body = client.get("default", SERVICE)
    assert body is not None
    assert "canaryTrafficPercent" not in body["spec"]["predictor"]
    assert body["metadata"]["annotations"] == {"serving.kserve.io/deploymentMode": "Knative"}


def test_conflicts_and_missing_services_are_told_apart(client: KubernetesClient) -> None:
    assert client.get("default", SERVICE) is None
    with pytest.raises(NotFoundError):
        client.patch("default", SERVICE, {})
    client.delete("default", SERVICE, "uid")
    made = client.create("default", service_body("default", candidate("1")))
    with pytest.raises(ConflictError):
        client.create("default", service_body("default", candidate("1")))
    with pytest.raises(ConflictError):
        client.patch("default", SERVICE, {"metadata": {"resourceVersion": "0"}})
    client.delete("default", SERVICE, "another-uid")
    assert client.get("default", SERVICE) is not None
    client.delete("default", SERVICE, read_facts(made, {}).uid)
    assert client.get("default", SERVICE) is None


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (500, UnavailableError),
        (503, UnavailableError),
        (429, UnavailableError),
        (422, RefusedError),
    ],
)
def test_answers_are_translated(
    client: KubernetesClient, plane: ControlPlane, status: int, error: type[Exception]
) -> None:
    plane.failing = status
    with pytest.raises(error, match="out of order"):
        client.get("default", SERVICE)


def test_nobody_there_and_nobody_answering_are_unavailable(
    plane: ControlPlane, services: FakeInferenceServices
) -> None:
    gone = ControlPlane(services)
    gone.stop()
    with pytest.raises(UnavailableError):
        KubernetesClient(gone.url).get("default", SERVICE)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        client = KubernetesClient(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.2)
        with pytest.raises(UnavailableError):
            client.get("default", SERVICE)


def test_no_cluster_at_all_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(ConfigurationError, match="serin up"):
        KubernetesClient().load()
