"""An operator's kubectl against the control plane, whatever version is installed (1.20 to 1.33)."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serving.local.local_plane import ControlPlane

PROGRAM = shutil.which("kubectl")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="kubectl is not installed")
Kubectl = Callable[..., str]


@pytest.fixture
def kubectl(plane: "ControlPlane", tmp_path: Path) -> Kubectl:
    """Run kubectl with the kubeconfig that the control plane wrote; return what it prints."""

    def run(*arguments: str, code: int | None = 0) -> str:
        assert PROGRAM is not None
        done = subprocess.run(
            [PROGRAM, "--cache-dir", str(tmp_path / "cache"), *arguments],
            env={
                "HOME": str(tmp_path),
                "PATH": "/usr/bin:/bin",
                "KUBECONFIG": str(plane.home / "control" / "kubeconfig"),
            },
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert code in (None, done.returncode), done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.fixture
def manifest(plane: "ControlPlane", tmp_path: Path) -> Path:
    path = tmp_path / "service.json"
    path.write_text(json.dumps(plane.service(plane.bundle("a"))))
    return path


def percent(value: int | None) -> str:
    return json.dumps({"spec": {"predictor": {"canaryTrafficPercent": value}}})


def test_a_service_is_applied_shown_and_deleted(
    plane: "ControlPlane", kubectl: Kubectl, manifest: Path
) -> None:
    assert "assistant created" in kubectl("apply", "-f", str(manifest))
    kubectl("wait", "--for=condition=Ready", "isvc/assistant", "--timeout=20s")
    head, row = kubectl("get", "isvc").splitlines()
    assert head.split() == [
        "NAME", "URL", "READY", "PREV", "LATEST", "PREVROLLEDOUTREVISION", "LATESTREADYREVISION",
        "AGE",
    ]  # fmt: skip
    assert row.split()[:4] == ["assistant", "True", "100", "assistant-00001"]
    manifest.write_text(json.dumps(plane.service(plane.bundle("b"), "2", canaryTrafficPercent=10)))
    assert "assistant configured" in kubectl("apply", "-f", str(manifest))
    plane.wait_traffic(("00002", 10, "latest"), ("00001", 90, "prev"))
    assert "default     assistant" in kubectl("get", "inferenceservices", "-A")
    described = kubectl("describe", "isvc", "assistant")
    assert "Latest Ready Revision:      assistant-00002" in described
    assert "Canary Traffic Percent:  10" in described
    wanted = "jsonpath={.status.components.predictor.traffic[?(@.tag=='prev')].percent}"
    assert kubectl("get", "isvc", "assistant", "-o", wanted) == "90"
    assert "deleted" in kubectl("delete", "isvc", "assistant")
    assert "No resources found" in kubectl("get", "isvc")
    assert "NotFound" in kubectl("get", "isvc", "assistant", code=1)


def test_a_canary_is_moved_by_merge_patches(
    plane: "ControlPlane", kubectl: Kubectl, manifest: Path
) -> None:
    kubectl("create", "-f", str(manifest))
    plane.wait_ready()
    patch = {"spec": {"predictor": {"canaryTrafficPercent": 5, **plane.model("b", "2")}}}
    kubectl("patch", "isvc", "assistant", "--type", "merge", "-p", json.dumps(patch))
    plane.wait_traffic(("00002", 5, "latest"), ("00001", 95, "prev"))
    kubectl("patch", "isvc", "assistant", "--type", "merge", "-p", percent(0))
    plane.wait_traffic(("00002", 0, "latest"), ("00001", 100, "prev"))
    said = kubectl("patch", "isvc", "assistant", "--type", "merge", "-p", percent(250), code=1)
    assert "must be between 0 and 100" in said
    kubectl("patch", "isvc", "assistant", "--type", "merge", "-p", percent(None))
    plane.wait_traffic(("00002", 100, "latest"))


def test_a_dry_run_deletes_nothing(plane: "ControlPlane", kubectl: Kubectl, manifest: Path) -> None:
    # Newer kubectl asks for it in the body of the request only; older ones refuse by themselves.
    kubectl("create", "-f", str(manifest))
    said = kubectl("delete", "isvc", "assistant", "--dry-run=server", code=None)
    assert "(server dry run)" in said or "doesn't support dry-run" in said
    assert plane.get()["metadata"]["name"] == "assistant"


def test_a_watch_prints_one_head_and_a_row_for_each_change(
    plane: "ControlPlane", kubectl: Kubectl, manifest: Path
) -> None:
    kubectl("create", "-f", str(manifest))
    plane.wait_ready()
    lines = kubectl("get", "isvc", "assistant", "-w", "--request-timeout=1s").splitlines()
    assert [line.split()[0] for line in lines] == ["NAME", "assistant"]


def test_versions_and_resources_are_found(plane: "ControlPlane", kubectl: Kubectl) -> None:
    assert "+serin" in kubectl("version")
    assert "isvc" in kubectl("api-resources")
    assert "No resources found" in kubectl("get", "events")
    assert "default" in kubectl("get", "namespaces")
