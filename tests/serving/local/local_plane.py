"""A control plane as a process of its own, with stand-in predictors and times made short."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

ROOT = Path(__file__).resolve().parents[3]
STANDIN = Path(__file__).with_name("standin_predictor.py")
SERVICES = "/apis/serving.kserve.io/v1beta1/namespaces/default/inferenceservices"
ALL_SERVICES = "/apis/serving.kserve.io/v1beta1/inferenceservices"
WAIT_SECONDS = 15.0
# One client for all polling: making one loads certificates each time.
HTTP = httpx.Client(trust_env=False, verify=False)
SHORT = {
    "tick_seconds": 0.05,
    "probe_seconds": 0.1,
    "probe_loading_seconds": 0.02,
    "drain_seconds": 0.05,
    "restart_first_seconds": 0.05,
    "progress_deadline_seconds": 5,
    "stop_grace_seconds": 5,
    "silent_seconds_max": 1,
    "hung_seconds_max": 2,
    "restart_reset_seconds": 0.2,
}
Found = TypeVar("Found")


def wait(look: Callable[[], Found], what: str, seconds: float = WAIT_SECONDS) -> Found:
    """Return the first true result of `look`."""
    deadline = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s, last was {found!r}"
        time.sleep(0.01)


class ControlPlane:
    """`python -m serving.local` on one home; started and killed as often as a test wants."""

    def __init__(self, home: Path, gateway_url: str = "", **config: Any) -> None:
        self.home = home
        self.gateway_url = gateway_url
        self.config = {**SHORT, **config}
        self.process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.command = [sys.executable, "-S", str(STANDIN)]

    def start(self, **environment: str) -> None:
        self.home.mkdir(exist_ok=True)
        config = self.home / "local.json"
        config.write_text(json.dumps(self.config))
        port_file = self.home / "port"
        port_file.unlink(missing_ok=True)
        with (self.home / "local.log").open("ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "serving.local", "--home", str(self.home)),
                    *("--port", "0", "--port-file", str(port_file), "--config", str(config)),
                    *("--predictor-command", shlex.join(self.command)),
                    *(("--gateway-url", self.gateway_url) if self.gateway_url else ()),
                ],
                cwd=ROOT,
                env={**os.environ, **environment},
                stderr=log,
                stdout=log,
            )
        port = wait(lambda: port_file.exists() and port_file.read_text(), "the port file")
        self.url = f"http://127.0.0.1:{port}"
        wait(self.answers, "the API")

    def answers(self) -> bool:
        try:
            return HTTP.get(self.url + "/healthz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self, number: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(WAIT_SECONDS)
        self.process = None
        return code

    def bundle(self, name: str, **behaviour: Any) -> str:
        """Make a bundle folder and return its storage address."""
        folder = self.home / "bundles" / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "behaviour.json").write_text(json.dumps(behaviour))
        return f"file://{folder}"

    def behave(self, revision: str, **behaviour: Any) -> None:
        """Change how a running stand-in behaves."""
        folder = self.home / "standin"
        folder.mkdir(exist_ok=True)
        draft = folder / f".{revision}"
        draft.write_text(json.dumps(behaviour))
        draft.rename(folder / f"{revision}.json")

    def service(self, uri: str, version: str = "1", **predictor: Any) -> dict[str, Any]:
        """Return a whole InferenceService."""
        return {
            "apiVersion": "serving.kserve.io/v1beta1",
            "kind": "InferenceService",
            "metadata": {
                "name": "assistant",
                "annotations": {"serving.kserve.io/deploymentMode": "Knative"},
            },
            "spec": {"predictor": {**predictor, "model": model(uri, version)}},
        }

    @property
    def services(self) -> str:
        return SERVICES

    @property
    def service_url(self) -> str:
        return f"{self.url}{SERVICES}/assistant"

    def model(self, name: str, version: str, **behaviour: Any) -> dict[str, Any]:
        """Return the patch that names another bundle."""
        return {"model": model(self.bundle(name, **behaviour), version)}

    def log(self) -> str:
        return (self.home / "local.log").read_text()

    def create(self, uri: str, version: str = "1", **predictor: Any) -> dict[str, Any]:
        answer = HTTP.post(self.url + SERVICES, json=self.service(uri, version, **predictor))
        assert answer.status_code == 201, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def patch(self, patch: dict[str, Any], status: int = 200) -> dict[str, Any]:
        """Send a merge patch."""
        answer = HTTP.patch(
            self.service_url,
            content=json.dumps(patch),
            headers={"content-type": "application/merge-patch+json"},
        )
        assert answer.status_code == status, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def predictor(self, **predictor: Any) -> dict[str, Any]:
        """Patch below spec.predictor."""
        return self.patch({"spec": {"predictor": predictor}})

    def get(self) -> dict[str, Any]:
        found: dict[str, Any] = HTTP.get(self.service_url).json()
        return found

    def component(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get().get("status", {}).get("components", {})
        component: dict[str, Any] = found.get("predictor", {})
        return component

    def traffic(self) -> list[tuple[str, int, str]]:
        """Return (revision, percent, latest or prev) of every traffic entry."""
        return [
            (
                entry["revisionName"].removeprefix("assistant-"),
                entry["percent"],
                "latest" if entry["latestRevision"] else entry["tag"],
            )
            for entry in self.component().get("traffic", ())
        ]

    def condition(self, kind: str = "Ready") -> tuple[str, str]:
        """Return status and reason of a condition."""
        conditions = self.get().get("status", {}).get("conditions", ())
        for entry in conditions:
            if entry["type"] == kind:
                return entry["status"], entry.get("reason", "")
        return "", ""

    def wait_traffic(self, *wanted: tuple[str, int, str]) -> None:
        wait(lambda: self.traffic() == list(wanted), f"traffic {wanted}")

    def wait_ready(self) -> None:
        wait(lambda: self.condition() == ("True", ""), "Ready")

    def routes(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.home / "control" / "routes.json").read_text())
        return content

    def arms(self) -> dict[str, dict[str, Any]]:
        """Return the arms of the routes by name."""
        return {arm["arm"]: arm for arm in self.routes()["services"]["assistant"]["arms"]}

    def entries(self) -> list[dict[str, Any]]:
        """Return the lines of processes.json."""
        content = json.loads((self.home / "control" / "processes.json").read_text())
        found: list[dict[str, Any]] = content["processes"]
        return found

    def processes(self) -> dict[str, int]:
        """Return the running predictors' pids by revision number (and replica)."""
        return {
            entry["revision"].removeprefix("assistant-")
            + (f".{entry['index']}" if entry["index"] else ""): entry["pid"]
            for entry in self.entries()
            if lives(entry["pid"])
        }


def model(uri: str, version: str) -> dict[str, Any]:
    return {
        "modelFormat": {"name": "serin"},
        "runtime": "serin",
        "storageUri": uri,
        "env": [{"name": "SERIN_MODEL_VERSION", "value": version}],
    }


def lives(pid: int) -> bool:
    """Whether a process runs, and is not just waiting to be reaped."""
    try:
        return bool(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end_all(home: Path) -> None:
    """Kill every predictor whose command line names this home."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if any(str(home / "control") in part for part in line):
            process.kill()


def finish(plane: ControlPlane) -> None:
    """End a control plane and its predictors."""
    if plane.process is not None:
        plane.process.kill()
        plane.process.wait()
    end_all(plane.home)


Planes = Callable[..., ControlPlane]
WaitFor = Callable[..., Any]
