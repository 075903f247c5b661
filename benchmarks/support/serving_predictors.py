"""Real predictor processes for the serving benchmark: started, ready, measured, stopped."""

import json
import os
import secrets
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
READY_SECONDS_MAX = 660.0
STOP_SECONDS_MAX = 20.0
POLL_SECONDS = 0.01
MODEL = "assistant"


@dataclass(frozen=True, slots=True)
class Row:
    """One way to serve: bundle, engine, predictor configuration, a file it needs."""

    name: str
    bundle: str
    engine: str = "openvino"
    config: dict[str, Any] = field(default_factory=dict)
    needs: Path | None = None

    @property
    def batched(self) -> bool:
        """Whether answers share the engine's steps."""
        return self.engine != "reference" and self.config.get("concurrency") != 1


class NotServingError(Exception):
    """A row's predictor did not become ready; the message is the log's last line."""


class Predictor:
    """One predictor of one bundle; ready once made. Its home, configuration and log: `folder`."""

    def __init__(self, row: Row, bundle: Path, folder: Path) -> None:
        """Start and wait. Raises NotServingError when the process ends before it is ready."""
        folder.mkdir(parents=True, exist_ok=True)
        port, config = folder / "port", folder / "predictor.json"
        port.unlink(missing_ok=True)
        limits = {"deadline_seconds": 3600, "queue_requests_max": 4096, **row.config}
        config.write_text(json.dumps(limits))
        kept = {key: value for key, value in os.environ.items() if not key.startswith("SERIN_")}
        command = [
            sys.executable, "-m", "serving.predictor", "--bundle", str(bundle), "--engine",
            row.engine, "--model-name", MODEL, "--model-version", "1", "--port-file", str(port),
            "--config", str(config),
        ]  # fmt: skip
        log = folder / "log"
        self.token = secrets.token_hex(32)
        began = time.monotonic()
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env={
                    **kept,
                    "SERIN_HOME": str(folder),
                    "SERIN_PREDICTOR_TOKEN": self.token,
                    "HF_HUB_OFFLINE": "1",
                },
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            self._wait(port, log, began)
        except BaseException:
            self.stop()
            raise
        self.start_seconds = time.monotonic() - began
        self.url = f"http://127.0.0.1:{int(port.read_text())}"

    def _wait(self, port: Path, log: Path, began: float) -> None:
        while not port.exists():
            if self._process.poll() is not None or time.monotonic() - began > READY_SECONDS_MAX:
                lines = log.read_text(errors="replace").strip().splitlines()
                raise NotServingError(lines[-1] if lines else "it ended without a word")
            time.sleep(POLL_SECONDS)

    def cpu_seconds(self) -> float:
        """CPU seconds so far, of the process and its children."""
        return sum(sum(process.cpu_times()[:2]) for process in self._family())

    def megabytes(self) -> float:
        """Proportional memory (PSS) of the process and its children now, in MB."""
        return sum(process.memory_full_info().pss for process in self._family()) / 1e6

    def stop(self) -> None:
        """End it, and every process that it started."""
        family = self._family()
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in psutil.wait_procs(family, timeout=STOP_SECONDS_MAX)[1]:
            process.kill()

    def _family(self) -> list[psutil.Process]:
        try:
            head = psutil.Process(self._process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []
