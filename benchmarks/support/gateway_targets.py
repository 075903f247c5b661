"""What the gateway benchmark compares, as processes: the upstream, our gateway, LiteLLM's proxy.

Starts and stops them and reads what they cost; sends no requests but the one that asks readiness.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import yaml

from benchmarks.support.gateway_upstream import REVISION
from benchmarks.support.serving_predictors import MODEL

ROOT = Path(__file__).resolve().parents[2]
LITELLM = ROOT / ".venv-litellm"
READY_SECONDS_MAX = 120.0
STOP_SECONDS_MAX = 10.0
POLL_SECONDS = 0.02
DIRECT, SERIN, LITELLM_NAME = "direct", "serin", "litellm"


@dataclass(frozen=True, slots=True)
class Target:
    """One way to the upstream. Without a process of its own it costs nothing here."""

    name: str
    url: str
    process: subprocess.Popen[bytes] | None = None

    def cpu_seconds(self) -> float:
        """CPU seconds so far of the target's processes."""
        return sum(sum(found.cpu_times()[:2]) for found in self._family())

    def megabytes(self) -> float:
        """Memory (PSS) of the target's processes now."""
        return sum(found.memory_full_info().pss for found in self._family()) / 1e6

    def _family(self) -> list[psutil.Process]:
        if self.process is None:
            return []
        head = psutil.Process(self.process.pid)
        return [head, *head.children(recursive=True)]


@contextlib.contextmanager
def targets(folder: Path, notes: dict[str, str]) -> Iterator[dict[str, Target]]:
    """Start everything; note why LiteLLM is missing, if it is."""
    with contextlib.ExitStack() as stack:
        port_file = folder / "upstream.port"
        upstream = [sys.executable, "-m", "benchmarks.support.gateway_upstream"]
        command = [*upstream, "--port-file", str(port_file)]
        _wait(port_file.exists, _start(stack, command, folder / "upstream.log"))
        base = f"http://127.0.0.1:{port_file.read_text()}"
        found = {DIRECT: Target(DIRECT, f"{base}/openai/v1/chat/completions")}
        found[SERIN] = _serin(stack, folder, base)
        if (LITELLM / ".installed").exists():
            found[LITELLM_NAME] = _litellm(stack, folder, base)
        else:
            notes[LITELLM_NAME] = "not installed (make litellm)"
        yield found


def _serin(stack: contextlib.ExitStack, folder: Path, base: str) -> Target:
    home = folder / "home"
    (home / "control").mkdir(parents=True)
    arm = {
        "arm": "stable", "revision": REVISION, "percent": 100, "model_version": "1",
        "endpoints": [{"url": base, "ready": True}],
    }  # fmt: skip
    routes = {"generation": 1, "services": {MODEL: {"arms": [arm]}}}
    (home / "control" / "routes.json").write_text(json.dumps(routes))
    port_file = folder / "gateway.port"
    command = [sys.executable, "-m", "serving.gateway", "--home", str(home), "--port", "0"]
    command += ["--port-file", str(port_file)]
    process = _start(stack, command, folder / "gateway.log")
    _wait(port_file.exists, process)
    url = f"http://127.0.0.1:{port_file.read_text().strip()}"
    _wait(lambda: _answers(f"{url}/healthz"), process)
    return Target(SERIN, f"{url}/openai/v1/chat/completions", process)


def _litellm(stack: contextlib.ExitStack, folder: Path, base: str) -> Target:
    """Start LiteLLM's proxy as its documentation has it for production, with one worker."""
    config = folder / "litellm.yaml"
    model = {"model": f"openai/{MODEL}", "api_base": f"{base}/v1", "api_key": "none"}
    content = {
        "model_list": [{"model_name": MODEL, "litellm_params": model}],
        "litellm_settings": {"telemetry": False, "num_retries": 0, "set_verbose": False},
    }
    config.write_text(yaml.safe_dump(content))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(LITELLM / "bin" / "litellm"), "--config", str(config)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
    quiet = {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "DO_NOT_TRACK": "1",
        # Neither gateway asks for a key here: what is compared is the way of a request.
        "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",
    }
    process = _start(stack, command, folder / "litellm.log", quiet)
    url = f"http://127.0.0.1:{port}"
    _wait(lambda: _answers(f"{url}/health/liveliness"), process)
    return Target(LITELLM_NAME, f"{url}/v1/chat/completions", process)


def _start(
    stack: contextlib.ExitStack,
    command: Sequence[str],
    log: Path,
    more: dict[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("SERIN_")}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**kept, **(more or {})}, stdout=output, stderr=output
        )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _wait(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until a process is ready. Exits with its command when it ends or takes too long."""
    end = time.monotonic() + READY_SECONDS_MAX
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            raise SystemExit(f"not ready: {process.args!r}; try it by hand")
        time.sleep(POLL_SECONDS)
