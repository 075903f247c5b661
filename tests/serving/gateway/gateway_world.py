"""A real gateway process and stand-in predictors as processes, on ephemeral ports."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from core.contracts import CounterSample
from observability.load import LoadConfig, LoadGenerator
from observability.metrics import scrape

ROOT = Path(__file__).resolve().parents[3]
CHAT = "/openai/v1/chat/completions"
PATIENT = {"policy_seconds_max": 30}
"""On a busy machine a predictor's word must count for longer than answers come late."""
ASK = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
CLIENT = httpx.Client(
    timeout=30, trust_env=False, verify=False, limits=httpx.Limits(max_keepalive_connections=0)
)


def until(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Poll until the condition is truthy, and return what it gave."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.01)


@dataclass
class Predictor:
    """One stand-in process."""

    revision: str
    version: str
    process: subprocess.Popen[bytes]
    url: str

    def behave(self, **mood: Any) -> None:
        """Take this mood (and forget what was seen)."""
        CLIENT.post(self.url + "/control", json=mood).raise_for_status()

    def seen(self) -> dict[str, Any]:
        """What arrived since the last mood."""
        content: dict[str, Any] = CLIENT.get(self.url + "/control").json()
        return content

    def signal(self, number: int) -> None:
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class World:
    """A home, its gateway and its predictors."""

    home: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    gateway: subprocess.Popen[bytes] | None = None
    url: str = ""
    generation: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    """Variables of the processes that are started from now on, beside this process's own."""

    def predictor(self, revision: str, version: str, port: int = 0) -> Predictor:
        """Start a stand-in and wait until it listens."""
        port_file = self.home / f"{revision}-{len(self.processes)}.port"
        command = [
            sys.executable, str(Path(__file__).with_name("stand_in.py")), "--revision", revision,
            "--version", version, "--port", str(port), "--port-file", str(port_file),
        ]  # fmt: skip
        process = self._start(command)
        until(lambda: port_file.exists() or process.poll() is not None)
        return Predictor(
            revision, version, process, f"http://127.0.0.1:{port_file.read_text().strip()}"
        )

    def start_gateway(
        self, *arguments: str, pass_fds: tuple[int, ...] = (), url: str = "", **config: Any
    ) -> subprocess.Popen[bytes]:
        """Start a gateway and wait until it answers; `config` are GatewayConfig's fields."""
        port_file, config_file = self.home / "gateway.port", self.home / "gateway.yaml"
        port_file.unlink(missing_ok=True)
        config_file.write_text(json.dumps({**PATIENT, **config}))
        where = arguments or ("--port", "0", "--port-file", str(port_file))
        command = [
            sys.executable, "-m", "serving.gateway", "--home", str(self.home),
            "--config", str(config_file), *where,
        ]  # fmt: skip
        self.gateway = self._start(command, pass_fds)
        if not arguments:
            until(port_file.exists)
            url = f"http://127.0.0.1:{port_file.read_text().strip()}"
        self.url = url
        return self.gateway

    def _start(self, command: list[str], pass_fds: tuple[int, ...] = ()) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=pass_fds, env={**os.environ, **self.environment}
        )
        self.processes.append(process)
        return process

    def route(
        self,
        stable: Predictor | list[Predictor],
        canary: Predictor | list[Predictor] | None = None,
        percent: float = 0,
        ready: bool = True,
        canary_ready: bool = True,
    ) -> None:
        """Write routes and wait until the gateway has applied them."""
        arms = [_arm("stable", stable, 100 - percent, ready)]
        if canary is not None:
            arms.append(_arm("canary", canary, percent, canary_ready))
        self.write_routes({"assistant": {"arms": arms}})
        if self.url:
            until(lambda: self.applied() == self.generation)

    def keeps_answers(self) -> bool:
        """Whether the gateway knows the policy in force: only then a kept answer is given."""
        return self.metric("serin_gateway_policy_known") >= 1

    def write_routes(self, services: dict[str, Any]) -> None:
        self.generation += 1
        self.write_routes_text(json.dumps({"generation": self.generation, "services": services}))

    def write_routes_text(self, text: str) -> None:
        path = self.home / "control" / "routes.json"
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(text)
        os.replace(temporary, path)

    def applied(self) -> int:
        generation: int = CLIENT.get(self.url + "/serin/routes").json()["generation"]
        return generation

    def ask(self, timeout: float = 30.0, **more: Any) -> httpx.Response:
        """One request with a connection of its own."""
        headers = more.pop("headers", {})
        return CLIENT.post(self.url + CHAT, json={**ASK, **more}, headers=headers, timeout=timeout)

    def load(self, rps: float, **more: Any) -> LoadGenerator:
        """Start a load; `stop` gives its report."""
        config = LoadConfig(url=self.url, rps=rps, **more)
        generator = LoadGenerator(config, ["hello", "how are you"])
        generator.start()
        return generator

    def counters(self) -> CounterSample:
        return scrape(self.url, "assistant")

    def metric(self, name: str, **labels: str) -> float:
        """Sum of the samples of a metric whose labels match."""
        total = 0.0
        for line in CLIENT.get(self.url + "/metrics").text.splitlines():
            matches = all(f'{key}="{value}"' in line for key, value in labels.items())
            if line.split("{")[0].split(" ")[0] == name and matches:
                total += float(line.rsplit(" ", 1)[1])
        return total

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
        for process in self.processes:
            process.wait()


def _arm(
    name: str, predictors: Predictor | list[Predictor], percent: float, ready: bool
) -> dict[str, Any]:
    found = [predictors] if isinstance(predictors, Predictor) else predictors
    return {
        "arm": name,
        "revision": found[0].revision,
        "percent": percent,
        "model_version": found[0].version,
        "bundle_digest": "",
        "endpoints": [{"url": item.url, "ready": ready} for item in found],
    }
