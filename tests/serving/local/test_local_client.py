"""The kubernetes Python client against the control plane: a whole release, conflicts, watches."""

import threading
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from kubernetes import client, watch

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane, WaitFor

WHERE = ("serving.kserve.io", "v1beta1", "default", "inferenceservices")
NAME = (*WHERE, "assistant")


@pytest.fixture
def api(plane: "ControlPlane") -> client.CustomObjectsApi:
    configuration = client.Configuration()
    configuration.host = plane.url
    return client.CustomObjectsApi(client.ApiClient(configuration))


def predictor(**fields: Any) -> dict[str, Any]:
    return {"spec": {"predictor": fields}}


def refused(code: int, error: pytest.ExceptionInfo[client.ApiException]) -> str:
    assert error.value.status == code
    return str(error.value.body)


def test_a_release_and_its_rollback(plane: "ControlPlane", api: client.CustomObjectsApi) -> None:
    api.create_namespaced_custom_object(*WHERE, plane.service(plane.bundle("a")))
    plane.wait_ready()
    canary = predictor(canaryTrafficPercent=5, **plane.model("b", "2"))
    api.patch_namespaced_custom_object(*NAME, canary)
    plane.wait_traffic(("00002", 5, "latest"), ("00001", 95, "prev"))
    for percent in (15, 50, 0):
        api.patch_namespaced_custom_object(*NAME, predictor(canaryTrafficPercent=percent))
        plane.wait_traffic(("00002", percent, "latest"), ("00001", 100 - percent, "prev"))
        assert plane.arms()["canary"]["percent"] == percent
    restore = predictor(canaryTrafficPercent=0, **plane.model("a", "1"))
    api.patch_namespaced_custom_object(*NAME, restore)
    plane.wait_traffic(("00003", 0, "latest"), ("00001", 100, "prev"))
    api.patch_namespaced_custom_object(*NAME, predictor(canaryTrafficPercent=None))
    plane.wait_traffic(("00003", 100, "latest"))
    found = api.get_namespaced_custom_object(*NAME)
    assert "canaryTrafficPercent" not in found["spec"]["predictor"]
    assert api.get_namespaced_custom_object_status(*NAME) == found
    assert plane.arms()["stable"]["model_version"] == "1"
    assert api.list_namespaced_custom_object(*WHERE)["items"] == [found]
    assert api.list_cluster_custom_object(*WHERE[:2], WHERE[3])["items"] == [found]


def test_promotion_and_the_next_release(
    plane: "ControlPlane", api: client.CustomObjectsApi, wait_for: "WaitFor"
) -> None:
    api.create_namespaced_custom_object(*WHERE, plane.service(plane.bundle("a")))
    plane.wait_ready()
    for number, name in ((2, "b"), (3, "c")):
        patch = predictor(canaryTrafficPercent=50, **plane.model(name, str(number)))
        api.patch_namespaced_custom_object(*NAME, patch)
        before = f"{number - 1:05d}"
        plane.wait_traffic((f"{number:05d}", 50, "latest"), (before, 50, "prev"))
        api.patch_namespaced_custom_object(*NAME, predictor(canaryTrafficPercent=None))
        plane.wait_traffic((f"{number:05d}", 100, "latest"))
    component = plane.component()
    assert component["latestRolledoutRevision"] == "assistant-00003"
    assert component["previousRolledoutRevision"] == "assistant-00002"
    wait_for(lambda: sorted(plane.processes()) == ["00002", "00003"], "the first one's end")


def test_a_stale_version_is_a_conflict(plane: "ControlPlane", api: client.CustomObjectsApi) -> None:
    api.create_namespaced_custom_object(*WHERE, plane.service(plane.bundle("a")))
    plane.wait_ready()
    version = plane.get()["metadata"]["resourceVersion"]
    patch = {**predictor(canaryTrafficPercent=5), "metadata": {"resourceVersion": version}}
    api.patch_namespaced_custom_object(*NAME, patch)
    with pytest.raises(client.ApiException) as error:
        api.patch_namespaced_custom_object(*NAME, patch)
    assert '"reason":"Conflict"' in refused(409, error)
    whole = plane.get() | {"metadata": {**plane.get()["metadata"], "resourceVersion": version}}
    with pytest.raises(client.ApiException) as error:
        api.replace_namespaced_custom_object(*NAME, whole)
    refused(409, error)
    api.replace_namespaced_custom_object(*NAME, plane.get())


def test_refusals_are_status_objects(plane: "ControlPlane", api: client.CustomObjectsApi) -> None:
    with pytest.raises(client.ApiException) as error:
        api.get_namespaced_custom_object(*NAME)
    assert '"reason":"NotFound"' in refused(404, error)
    service = plane.service(plane.bundle("a"))
    api.create_namespaced_custom_object(*WHERE, service)
    with pytest.raises(client.ApiException) as error:
        api.create_namespaced_custom_object(*WHERE, service)
    assert '"reason":"AlreadyExists"' in refused(409, error)
    with pytest.raises(client.ApiException) as error:
        api.patch_namespaced_custom_object(*NAME, predictor(canaryTrafficPercent=250))
    assert "must be between 0 and 100" in refused(422, error)
    with pytest.raises(client.ApiException) as error:
        api.patch_namespaced_custom_object(*NAME, [{"op": "remove", "path": "/spec"}])
    refused(415 if error.value.status == 415 else 400, error)
    with pytest.raises(client.ApiException) as error:
        api.patch_namespaced_custom_object_status(*NAME, {"status": {}})
    refused(405, error)
    with pytest.raises(client.ApiException) as error:
        api.list_namespaced_custom_object(*WHERE, label_selector="a in (b)")
    refused(400, error)


def test_a_watch_sees_a_whole_life(
    plane: "ControlPlane", api: client.CustomObjectsApi, wait_for: "WaitFor"
) -> None:
    version = api.list_namespaced_custom_object(*WHERE)["metadata"]["resourceVersion"]
    seen: list[tuple[str, str]] = []

    def follow() -> None:
        events = watch.Watch().stream(
            api.list_namespaced_custom_object, *WHERE, resource_version=version, timeout_seconds=20
        )
        for event in events:
            found = event["object"]
            conditions = found.get("status", {}).get("conditions", ())
            ready = [entry["status"] for entry in conditions if entry["type"] == "Ready"]
            seen.append((event["type"], *(ready or ["-"])))
            if event["type"] == "DELETED":
                return

    follower = threading.Thread(target=follow)
    follower.start()
    api.create_namespaced_custom_object(*WHERE, plane.service(plane.bundle("a")))
    plane.wait_ready()
    api.delete_namespaced_custom_object(*NAME)
    follower.join(20)
    kinds = [entry for position, entry in enumerate(seen) if entry not in seen[:position]]
    assert kinds == [
        ("ADDED", "-"), ("MODIFIED", "Unknown"), ("MODIFIED", "True"), ("DELETED", "True"),
    ]  # fmt: skip


def test_a_watch_from_forgotten_times_is_told_to_list(plane: "ControlPlane") -> None:
    query = {"watch": "true", "resourceVersion": "999999999"}
    answer = httpx.get(plane.url + plane.services, params=query)
    assert (answer.status_code, answer.json()["reason"]) == (410, "Expired")
    query = {"watch": "true", "sendInitialEvents": "true"}
    assert httpx.get(plane.url + plane.services, params=query).status_code == 422


def test_a_watch_ends_after_its_seconds(plane: "ControlPlane") -> None:
    query = {"watch": "true", "timeoutSeconds": "1", "fieldSelector": "metadata.name=other"}
    assert httpx.get(plane.url + plane.services, params=query).text == ""


def test_fields_without_effect_are_warned_of(plane: "ControlPlane") -> None:
    service = plane.service(plane.bundle("a"), tolerations=[])
    answer = httpx.post(plane.url + plane.services, json=service)
    assert "spec.predictor.tolerations is kept but has no effect" in answer.headers["warning"]


@pytest.mark.parametrize(
    ("headers", "content", "code"),
    [
        ({"content-type": "application/json"}, b"{", 400),
        ({"content-type": "application/json"}, b"[]", 400),
        ({"content-type": "application/json"}, b"{}", 400),
        ({"content-type": "text/plain"}, b"{}", 415),
        ({"content-type": "application/json"}, b"x" * (1 << 20) + b"y", 413),
        ({"content-type": "application/json", "host": "evil.example"}, b"{}", 403),
    ],
)
def test_what_is_not_a_request_is_refused(
    plane: "ControlPlane", headers: dict[str, str], content: bytes, code: int
) -> None:
    answer = httpx.post(plane.url + plane.services, content=content, headers=headers)
    assert answer.status_code == code
    assert answer.json()["kind"] == "Status"


def test_unknown_paths_and_methods_are_status_objects(plane: "ControlPlane") -> None:
    assert httpx.get(plane.url + "/apis/apps/v1").json()["reason"] == "NotFound"
    answer = httpx.delete(plane.url + plane.services)
    assert (answer.status_code, answer.json()["reason"]) == (405, "MethodNotAllowed")
