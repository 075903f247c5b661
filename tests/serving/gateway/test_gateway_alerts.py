"""A real Prometheus with the generated rule, on the live series of a real gateway."""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from gateway_world import Predictor, World, until

from cli.prometheus import command
from validation.classic import ClassicConfig
from validation.prometheus_rule import ALERT, rule_groups

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is not installed; see `make programs`"
)
QUICK = ClassicConfig(window_seconds=8, evaluate_seconds=1, for_seconds=2, latency_requests_min=5)
"""The rule as it is, over a short range and with a short `for`."""


@pytest.fixture
def prometheus(tmp_path: Path, free_port: int) -> Iterator["Running"]:
    found = Running(tmp_path / "prometheus", free_port)
    yield found
    found.stop()


class Running:
    """A Prometheus process, once `start` was called."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder, self._port = folder, port
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, gateway_url: str) -> None:
        """Scrape a gateway twice a second, with the rule."""
        self._folder.mkdir()
        target = {"targets": [gateway_url.removeprefix("http://")]}
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "1s"},
            "rule_files": ["rules.yaml"],
            "scrape_configs": [{"job_name": "serin-gateway", "static_configs": [target]}],
        }
        rules = rule_groups(QUICK, "assistant")
        for name, content in (("prometheus", config), ("rules", rules)):
            (self._folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
        program = shutil.which("prometheus")
        assert program is not None
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                command(program, self._folder, self._port), stdout=log, stderr=log
            )

    def alert(self) -> str:
        """State of the canary's alert: firing, pending, or nothing."""
        try:
            answer = httpx.get(f"http://127.0.0.1:{self._port}/api/v1/alerts", timeout=5)
        except httpx.TransportError:
            return ""
        if answer.status_code != 200:
            return ""
        alerts: list[dict[str, Any]] = answer.json()["data"]["alerts"]
        return next((str(a["state"]) for a in alerts if a["labels"]["alertname"] == ALERT), "")

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(20)


def test_the_alert_fires_on_a_slow_canary_and_ends_with_it(
    world: World, stable: Predictor, canary: Predictor, prometheus: Running
) -> None:
    world.start_gateway(cache_seconds=0)
    stable.behave(delay=0.02)
    canary.behave(delay=0.2)
    world.route(stable, canary, percent=50)
    load = world.load(20)
    prometheus.start(world.url)
    until(lambda: prometheus.alert() == "firing", 60)
    canary.behave(delay=0.02)
    until(lambda: prometheus.alert() == "", 60)
    assert load.stop().failed == 0
