"""The health matrix's alerts, in real Prometheus' own test runner."""

import shutil
import subprocess
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml

from validation.alert_expressions import EXPRESSIONS
from validation.alerting import all_rules
from validation.canary import CanaryConfig
from validation.health_config import DEFAULT_ROWS, HealthConfig, Metric

pytestmark = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed; see `make programs`"
)
LOOKED = "serin_health_look_timestamp_seconds"
PROBLEMS = 'serin_health_figure{metric="ledger_problems"}'
SLOW_DISK = {"disk": {"for_seconds": 900, "clear_seconds": 0}}


def promtool(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["promtool", *arguments]
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def disk(used: str) -> list[dict[str, str]]:
    """A disk of 100 bytes by the minute: F is full, o is not, _ is no scrape."""
    free = {"F": "5", "o": "50", "_": "_"}
    size = " ".join("_" if mark == "_" else "100" for mark in used)
    values = " ".join(free[mark] for mark in used)
    return [
        {"series": "serin_home_disk_free_bytes", "values": values},
        {"series": "serin_home_disk_size_bytes", "values": size},
    ]


def fires(
    folder: Path,
    rows: dict[str, Any],
    inputs: list[dict[str, str]],
    minute: int,
    alert: str = "SerinDisk",
) -> bool:
    """Whether an alert fires in that minute."""
    rules = all_rules(CanaryConfig(), HealthConfig(rows=rows), "assistant")
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    at = {"eval_time": f"{minute}m", "alertname": alert, "exp_alerts": []}
    test = {"interval": "1m", "input_series": inputs, "alert_rule_test": [at]}
    content = {"rule_files": ["rules.yaml"], "evaluation_interval": "1m", "tests": [test]}
    (folder / "test.yaml").write_text(yaml.safe_dump(content))
    ran = promtool(folder, "test", "rules", "test.yaml")
    assert alert in ran.stderr + ran.stdout or ran.returncode == 0, ran.stderr
    return ran.returncode != 0


def test_prometheus_accepts_every_rule(tmp_path: Path) -> None:
    rules = all_rules(CanaryConfig(), HealthConfig(), "assistant")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    ran = promtool(tmp_path, "check", "rules", "rules.yaml")
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_fifteen_true_evaluations_do_not_fire_and_the_sixteenth_does(tmp_path: Path) -> None:
    full = disk("F" * 20)
    assert not fires(tmp_path, SLOW_DISK, full, 14)
    assert fires(tmp_path, SLOW_DISK, full, 15)


@pytest.mark.parametrize("gap", ["o", "_" * 6])
def test_one_gap_begins_the_count_anew(tmp_path: Path, gap: str) -> None:
    """One false evaluation; or no data for longer than Prometheus remembers a sample (5 min)."""
    gapped = disk("F" * 8 + gap + "F" * 20)
    again = 8 + len(gap)
    assert not fires(tmp_path, SLOW_DISK, gapped, 15)
    assert not fires(tmp_path, SLOW_DISK, gapped, again + 14)
    assert fires(tmp_path, SLOW_DISK, gapped, again + 15)


def test_an_alert_stays_until_its_row_was_clear_for_long_enough(tmp_path: Path) -> None:
    rows = {"disk": {"for_seconds": 0, "clear_seconds": 300}}
    cleared = disk("F" * 3 + "o" * 10)
    assert fires(tmp_path, rows, cleared, 7)
    assert not fires(tmp_path, rows, cleared, 9)


def test_each_row_has_its_alert_and_so_has_the_watch() -> None:
    health = all_rules(CanaryConfig(), HealthConfig(), "assistant")["groups"][-1]["rules"]
    assert [rule["labels"]["row"] for rule in health] == [*DEFAULT_ROWS, "watch"]
    assert {*EXPRESSIONS} == {*get_args(Metric)}
    off = all_rules(CanaryConfig(), HealthConfig(rows={"disk": {"mode": "off"}}), "assistant")
    assert "SerinDisk" not in [rule["alert"] for rule in off["groups"][-1]["rules"]]


@pytest.mark.parametrize(
    ("alert", "looks", "minute", "fired"),
    [
        ("SerinWatch", [{"series": LOOKED, "values": "0+60x30"}], 30, False),
        ("SerinWatch", [{"series": LOOKED, "values": "0+60x9 540x20"}], 16, False),
        ("SerinWatch", [{"series": LOOKED, "values": "0+60x9 540x20"}], 18, True),
        ("SerinWatch", [], 4, False),
        ("SerinWatch", [], 5, True),
        ("SerinLedger", [{"series": PROBLEMS, "values": "0x9 1x20"}], 9, False),
        ("SerinLedger", [{"series": PROBLEMS, "values": "0x9 1x20"}], 10, True),
    ],
)
def test_a_watch_that_does_not_look_and_what_only_it_finds_are_told(
    tmp_path: Path, alert: str, looks: list[dict[str, str]], minute: int, fired: bool
) -> None:
    assert fires(tmp_path, {}, looks, minute, alert) is fired
