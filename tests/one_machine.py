"""One machine's data plane as real processes: control plane, gateway, keeper, predictors, load.

The gateway's socket is held here, as the supervisor holds it: what connects while it is dead waits.
"""

import json
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil

from core.contracts import Candidate
from core.settings import Settings
from observability.load import CHAT_PATH, LoadConfig, LoadGenerator
from rollout.conductor import Conductor
from rollout.identities import from_routes
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger

ROOT = Path(__file__).resolve().parent.parent
SERVICE = "assistant"
LONG_SECONDS = 60.0
ANSWERING = (sys.executable, "-S", str(ROOT / "tests" / "answering_predictor.py"))
"""The command of a predictor without a model, which starts at once."""
LOCAL: dict[str, float] = {
    "tick_seconds": 0.05,
    "probe_seconds": 0.1,
    "probe_loading_seconds": 0.02,
    "restart_first_seconds": 0.05,
    "progress_deadline_seconds": 60,
    "drain_seconds": 0.2,
    "stop_grace_seconds": 5,
}
Found = TypeVar("Found")


def until(look: Callable[[], Found], what: str, seconds: float = LONG_SECONDS) -> Found:
    """Return the first true result of `look`."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.01)
    return found


@dataclass
class OneMachine:
    """A home and its processes by name; `stop` ends all of them.

    With a `gateway_url` it only looks at a stack that somebody else runs.
    """

    home: Path
    predictor: Sequence[str] = ()
    config: dict[str, float] = field(default_factory=lambda: dict(LOCAL))
    processes: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)
    kube_url: str = ""
    gateway_url: str = ""
    service: str = SERVICE

    def __post_init__(self) -> None:
        if not self.gateway_url:
            self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
            self.gateway_url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.ledger_url = f"sqlite:///{self.home}/ledger.db"
        self._http = httpx.Client(trust_env=False, verify=False, timeout=10)
        self._ports: dict[str, int] = {}

    def start(self) -> None:
        """Start gateway and control plane and wait for both."""
        (self.home / "control").mkdir(parents=True, exist_ok=True)
        self.start_gateway()
        self.start_control_plane()

    def spawn(
        self, name: str, *command: str, pass_fds: tuple[int, ...] = ()
    ) -> "subprocess.Popen[bytes]":
        """Start `python *command` under a name."""
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, *command],
                cwd=ROOT,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=pass_fds,
            )
        self.processes[name] = process
        return process

    def start_gateway(self) -> None:
        """Start a gateway on the held socket."""
        number = self.listener.fileno()
        command = ("-m", "serving.gateway", "--home", str(self.home), "--fd", str(number))
        self.spawn("gateway", *command, pass_fds=(number,))

    def start_control_plane(self) -> None:
        """Start the control plane, on the port that it had before."""
        config, port_file = self.home / "local.json", self.home / "control.port"
        config.write_text(json.dumps(self.config))
        port_file.unlink(missing_ok=True)
        predictor = ("--predictor-command", shlex.join(self.predictor)) if self.predictor else ()
        self.spawn(
            "control plane",
            *("-m", "serving.local", "--home", str(self.home), "--config", str(config)),
            *("--port", str(self._ports.get("control plane", 0)), "--port-file", str(port_file)),
            *("--gateway-url", self.gateway_url, *predictor),
        )
        port = until(lambda: port_file.exists() and port_file.read_text(), "the control plane")
        self._ports["control plane"] = int(port)
        self.kube_url = f"http://127.0.0.1:{port}"

    def start_keeper(self, name: str = "keeper") -> None:
        """Start a keeper that looks ten times a second."""
        self.spawn(
            name,
            *("-m", "rollout.keeper", "--home", str(self.home), "--interval-seconds", "0.1"),
            *("--kube-url", self.kube_url, "--ledger-url", self.ledger_url),
        )

    def kill(self, name: str) -> None:
        """Kill -9 a process of ours and reap it."""
        process = self.processes[name]
        process.kill()
        process.wait()

    def kill_predictor(self, bundle_digest: str) -> bool:
        """Kill -9 the predictor of a bundle, which the control plane then starts again."""
        control = self.home / "control" / "processes.json"
        listed = json.loads(control.read_text())["processes"] if control.exists() else []
        found = [item["pid"] for item in listed if bundle_digest in json.dumps(item)]
        for pid in found:
            if pid and psutil.pid_exists(pid):
                psutil.Process(pid).kill()
        return bool(found)

    def candidate(self, version: str, stable: str | None, bundle: Path | None = None) -> Candidate:
        """Return a candidate whose bundle is `bundle`, or a folder made for it."""
        digest = bundle.name if bundle else f"{int(version):064x}"
        folder = bundle or self.home / "bundles" / digest
        folder.mkdir(parents=True, exist_ok=True)
        return Candidate(
            service=self.service,
            model_version=version,
            bundle_digest=digest,
            bundle_uri=f"file://{folder}",
            adapter_digest="a" * 64,
            snapshot_id="5" * 64,
            verdict_digest="d" * 64,
            stable_version=stable,
        )

    def conductor(self, ledger: Ledger, holder: str) -> Conductor:
        """Return a conductor in this process."""
        routes = from_routes(Settings(home=self.home))
        return Conductor(ledger, KubernetesClient(self.kube_url), holder, identities=routes)

    def routed(self) -> dict[str, int]:
        """What the gateway is told: {bundle digest: percent}."""
        routes = json.loads((self.home / "control" / "routes.json").read_text())
        arms = routes["services"].get(self.service, {"arms": []})["arms"]
        return {arm["bundle_digest"]: arm["percent"] for arm in arms if arm["percent"]}

    def gateway_followed(self) -> bool:
        """Whether the gateway has applied the routes as they are written now."""
        written = json.loads((self.home / "control" / "routes.json").read_text())["generation"]
        try:
            answer = self._http.get(f"{self.gateway_url}/serin/routes")
        except httpx.TransportError:
            return False
        return bool(answer.status_code == 200 and answer.json()["generation"] >= written)

    def ask(self) -> tuple[int, str]:
        """Send one request through the gateway: (status, version that answered)."""
        message = [{"role": "user", "content": "hello"}]
        body: dict[str, Any] = {"model": self.service, "messages": message, "max_tokens": 4}
        answer = self._http.post(self.gateway_url + CHAT_PATH, json=body)
        return answer.status_code, answer.headers.get("x-serin-model-version", "")

    def load(self, rps: float = 20) -> LoadGenerator:
        """Return a load on the gateway, not started."""
        config = LoadConfig(url=self.gateway_url, model=self.service, rps=rps, max_tokens=4)
        return LoadGenerator(config, ["Where is my parcel?"])

    def stop(self) -> None:
        """Kill everything of this home."""
        for process in self.processes.values():
            process.kill()
            process.wait()
        for left in psutil.process_iter(["cmdline"]):
            if any(str(self.home / "control") in part for part in left.info["cmdline"] or ()):
                left.kill()
        self._http.close()
        self.listener.close()
