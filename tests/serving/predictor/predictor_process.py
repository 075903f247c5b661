"""A predictor as its own process, as the control plane starts it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx
import openai

from core.keys import bearer, predictor_token
from serving.engines.faults import control_file

ROOT = Path(__file__).resolve().parents[3]
READY_SECONDS_MAX = 280
VLLM_PYTHON = ROOT / ".venv-vllm" / "bin" / "python"
VLLM = {"python": str(VLLM_PYTHON), "enforce_eager": True, "dtype": "float32"}
"""The vllm engine's settings of these tests; compiling first would only take time."""
VLLM_ENVIRONMENT = {"SERIN_PREDICTOR_VLLM": json.dumps(VLLM)}
REVISION = "assistant-00003"


class PredictorProcess:
    """Starts at once; `wait_ready` waits for the port. Its home and log lie in `folder`."""

    def __init__(
        self, bundle: Path, folder: Path, *options: str, faults: dict[str, Any] | None = None,
        program: Sequence[str] = ("-m", "serving.predictor"), **environment: str,
    ) -> None:  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self.home = folder
        self.port_file = folder / "port"
        self._log = folder / "log"
        if faults is not None:
            file = control_file(folder, REVISION)
            file.parent.mkdir(parents=True)
            file.write_text(json.dumps(faults))
            environment = {"SERIN_ALLOW_FAULTS": "1", **environment}
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SERIN_")}
        command = [
            sys.executable, *program, "--bundle", str(bundle),
            "--model-name", "assistant", "--model-version", "3",
            "--port-file", str(self.port_file), *options,
        ]  # fmt: skip
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={**kept, "SERIN_HOME": str(folder), **environment},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def wait_ready(self) -> "PredictorProcess":
        """Wait until the port is known; fail with the log when the process ends before."""
        until(lambda: self.port_file.exists() or self.process.poll() is not None, READY_SECONDS_MAX)
        assert self.port_file.exists(), self.log
        self.url = f"http://127.0.0.1:{int(self.port_file.read_text())}"
        return self

    @property
    def headers(self) -> dict[str, str]:
        """What the gateway sends: the token of this predictor's home."""
        return {"Authorization": bearer(predictor_token(self.home))}

    def get(self, path: str) -> httpx.Response:
        """Ask once, on a connection of its own."""
        return httpx.get(f"{self.url}{path}", headers=self.headers)

    def http(self, seconds: float = 60) -> httpx.Client:
        """Return a client of its own connections."""
        return httpx.Client(base_url=self.url, timeout=seconds, headers=self.headers)

    def openai(self) -> openai.OpenAI:
        """Return the official client; it does not retry by itself."""
        token = predictor_token(self.home)
        return openai.OpenAI(base_url=f"{self.url}/openai/v1", api_key=token, max_retries=0)

    def metric(self, name: str, **labels: str) -> float:
        """Return one sample of /metrics."""
        named = sorted({"model_version": "3", "revision": REVISION, **labels}.items())
        shown = ",".join(f'{key}="{value}"' for key, value in named)
        start = f"serin_predictor_{name}{{{shown}}} "
        text = self.get("/metrics").text
        return float(next(x for x in text.splitlines() if x.startswith(start)).split()[-1])

    def terminate(self) -> None:
        """Ask it to drain and end."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """End it in any case; return its exit code."""
        if self.process.poll() is None:
            self.terminate()
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    """Poll until the condition holds; fail after `seconds`."""
    ends = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < ends, f"not within {seconds} s"
        time.sleep(0.01)


def ask(text: str = "hi", **fields: Any) -> dict[str, Any]:
    """Return the body of a greedy chat request."""
    turns = [{"role": "user", "content": text}]
    return {"model": "assistant", "messages": turns, "temperature": 0, **fields}
