"""The generated PrometheusRule against real Prometheus: it fires when the classic rule does."""

import json
import shutil
import subprocess
from bisect import bisect_left
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.contracts import LATENCY_BUCKETS_SECONDS, ArmCounters, CounterSample
from validation.canary import CanaryConfig, judge
from validation.prometheus_rule import ALERT, HISTOGRAM, prometheus_rule, rule_groups

MINUTES = 40
REQUESTS = 30
needs_promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; see `make programs`"
)
Latencies = list[float]
"""One latency per minute, in seconds: that of all requests of that minute."""


def counts(latencies: Latencies, restart_minute: int | None) -> list[list[int]]:
    """Cumulative bucket counts, +Inf last, after each minute; a restart begins at 0."""
    buckets = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
    found = [list(buckets)]
    for minute, latency in enumerate(latencies, 1):
        if minute == restart_minute:
            buckets = [0] * len(buckets)
        for index in range(bisect_left(LATENCY_BUCKETS_SECONDS, latency), len(buckets)):
            buckets[index] += REQUESTS
        found.append(list(buckets))
    return found


def series(arm: str, counted: list[list[int]]) -> list[dict[str, str]]:
    labels = f'service="assistant",arm="{arm}",revision="{arm}-1"'
    found = []
    for index, edge in enumerate([*map(repr, LATENCY_BUCKETS_SECONDS), "+Inf"]):
        values = " ".join(str(minute[index]) for minute in counted)
        found.append({"series": f'{HISTOGRAM}_bucket{{{labels},le="{edge}"}}', "values": values})
    total = " ".join(str(minute[-1]) for minute in counted)
    return [*found, {"series": f"{HISTOGRAM}_count{{{labels}}}", "values": total}]


def fires_by_judge(stable: list[list[int]], canary: list[list[int]]) -> int | None:
    """The minute in which the classic rule takes the canary back."""
    config = CanaryConfig(betting=None, requests_min=10**6)
    samples = []
    for minute, (one, two) in enumerate(zip(stable, canary, strict=True)):
        arms = [
            ArmCounters(name, counted[-1], counted[-1], 0, tuple(counted[:-1]))
            for name, counted in (("stable-1", one), ("canary-1", two))
        ]
        samples.append(CounterSample(1e9 + 60 * minute, 0.5, arms[0], arms[1]))
        if judge(config, samples).decision == "rollback":
            return minute
    return None


def promtool_agrees(
    folder: Path, inputs: list[dict[str, str]], minute: int, fires: bool
) -> subprocess.CompletedProcess[str]:
    rules = rule_groups(CanaryConfig(), "assistant")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    expected: list[dict[str, Any]] = []
    if fires:
        rule = rules["groups"][0]["rules"][0]
        expected = [{"exp_labels": rule["labels"]}]
    test = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": inputs,
                "alert_rule_test": [
                    {"eval_time": f"{minute}m", "alertname": ALERT, "exp_alerts": expected}
                ],
            }
        ],
    }
    (folder / "test.yaml").write_text(yaml.safe_dump(test))
    return subprocess.run(
        ["promtool", "test", "rules", "test.yaml"],
        cwd=folder, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


SLOW_FROM_5 = [0.1] * 5 + [0.2] * (MINUTES - 5)
CASES: dict[str, tuple[Latencies, int | None]] = {
    "slow from the fifth minute on": (SLOW_FROM_5, None),
    "slow, and its process restarts": (SLOW_FROM_5, 12),
    "slow with a pause that resets": (SLOW_FROM_5[:18] + [0.1] * 8 + [0.2] * 14, None),
    "never slow": ([0.1] * MINUTES, None),
}


@needs_promtool
@pytest.mark.parametrize("name", CASES)
def test_prometheus_fires_in_the_minute_in_which_the_classic_rule_does(
    name: str, tmp_path: Path
) -> None:
    latencies, restart = CASES[name]
    stable, canary = counts([0.1] * MINUTES, None), counts(latencies, restart)
    inputs = series("stable", stable) + series("canary", canary)
    minute = fires_by_judge(stable, canary)
    if minute is None:
        assert fires_quietly(tmp_path, inputs, MINUTES - 1)
        return
    assert fires_quietly(tmp_path, inputs, minute - 1)
    assert not fires_quietly(tmp_path, inputs, minute)


def fires_quietly(folder: Path, inputs: list[dict[str, str]], minute: int) -> bool:
    """Whether promtool agrees that nothing fires in that minute."""
    ran = promtool_agrees(folder, inputs, minute, fires=False)
    assert "error" not in ran.stderr.lower(), ran.stderr
    return ran.returncode == 0


@needs_promtool
def test_promtool_accepts_the_rule(tmp_path: Path) -> None:
    rule = prometheus_rule(CanaryConfig(window_seconds=90.5), "assistant", "default")
    assert rule["kind"] == "PrometheusRule"
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rule["spec"]))
    ran = subprocess.run(
        ["promtool", "check", "rules", "rules.yaml"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert json.dumps(rule)
