"""What the exporter reads of a home: runs, releases, disk, and where predictors listen."""

import json
import os
from pathlib import Path

from prometheus_client import CollectorRegistry
from prometheus_client.registry import Collector

from cli.discovery import targets
from cli.flow_metrics import (
    RUNS_MAX,
    HealthCollector,
    HomeCollector,
    LedgerReader,
    ReleaseCollector,
    RunCollector,
)
from core.contracts import Candidate
from core.settings import Settings
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from tasks.remembering import Notes, Remembered
from validation.health import Reading, RowState


def samples(collector: Collector) -> dict[tuple[str, ...], float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }


def day(reports: Path, name: str, state: str, seconds: dict[str, float], at: float) -> None:
    folder = reports / name
    folder.mkdir(parents=True)
    stages = [{"name": key, "seconds": value, "figures": {}} for key, value in seconds.items()]
    (folder / "stages.json").write_text(json.dumps(stages))
    result = {"final_state": state, "seconds": seconds, "quality_before": None}
    (folder / "result.json").write_text(json.dumps({**result, "quality_after": 0.9}))
    for path in (folder / "result.json", folder):
        os.utime(path, (at, at))


def test_runs_are_timed_by_stage_and_by_their_end(tmp_path: Path) -> None:
    day(tmp_path, "day-1", "Promoted", {"training": 80.0, "ingest": 2.0}, at=1000)
    day(tmp_path, "day-2", "Stopped by gates", {"training": 100.0}, at=2000)
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "result.json").write_text('{"final_st')
    found = samples(RunCollector(tmp_path))
    assert found["serin_stage_seconds_sum", "training"] == 180
    assert found["serin_stage_seconds_bucket", "training", "60"] == 0
    assert found["serin_stage_seconds_bucket", "training", "120"] == 2
    assert found["serin_daily_run_seconds_count", "stopped_by_gates"] == 1
    assert found["serin_daily_run_seconds_sum", "promoted"] == 82
    assert found["serin_daily_run_end_timestamp_seconds",] == 2000
    assert found["serin_evaluation_score_ratio", "candidate"] == 0.9
    assert ("serin_evaluation_score_ratio", "stable") not in found


def test_only_the_newest_runs_are_read(tmp_path: Path) -> None:
    for number in range(RUNS_MAX + 3):
        day(tmp_path, f"day-{number}", "Promoted", {"ingest": 1.0}, at=1000 + number)
    assert samples(RunCollector(tmp_path))["serin_stage_seconds_count", "ingest"] == RUNS_MAX


def test_releases_are_counted_from_the_ledger_once_there_is_one(tmp_path: Path) -> None:
    settings = Settings.read({"SERIN_HOME": str(tmp_path)})
    collector = ReleaseCollector(LedgerReader(settings))
    assert samples(collector) == {}
    ledger = Ledger(settings.ledger_url)
    conductor = Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)
    digest = "1" * 64
    candidate = Candidate("assistant", "1", digest, f"file:///b/{digest}", "a", "s", "v", None)
    plan = ReleasePlan(shares=(5, 100), step_seconds_min=0, step_requests_min=0)
    release = conductor.start(conductor.propose(candidate, plan).release_id)
    assert samples(collector)["serin_release_running",] == 1
    for _ in range(20):
        if release.final:
            break
        release = conductor.advance(release.release_id)
    ledger.close()
    found = samples(collector)
    assert found["serin_release_running",] == 0
    assert found["serin_releases", "first", "promoted"] == 1
    assert found["serin_release_seconds_count", "first", "promoted"] == 1


def test_the_watchs_last_look_is_shown_with_the_figures_that_only_it_knows(tmp_path: Path) -> None:
    settings = Settings.read({"SERIN_HOME": str(tmp_path)})
    collector = HealthCollector(LedgerReader(settings))
    assert samples(collector) == {}
    ledger = Ledger(settings.ledger_url)
    assert samples(collector) == {}  # it has not looked yet
    seen = Remembered(
        time_seconds=1000.0,
        readings={"prompt_drift": Reading(0.3), "ledger_problems": Reading(why="not yet")},
        states={
            "prompt_drift": RowState(active=True),
            "disk": RowState(active=True, dry=True),
            "memory": RowState(no_data=True),
        },
    )
    Notes(ledger, settings.namespace, settings.service).keep(seen)
    ledger.close()
    assert samples(collector) == {
        ("serin_health_look_timestamp_seconds",): 1000.0,
        ("serin_health_figure", "prompt_drift"): 0.3,
        ("serin_health_acting", "prompt_drift"): 1.0,
        ("serin_health_acting", "disk"): 0.0,
        ("serin_health_acting", "memory"): 0.0,
        ("serin_health_unknown", "prompt_drift"): 0.0,
        ("serin_health_unknown", "disk"): 0.0,
        ("serin_health_unknown", "memory"): 1.0,
    }


def test_the_disk_is_the_homes(tmp_path: Path) -> None:
    found = samples(HomeCollector(tmp_path))
    assert 0 < found["serin_home_disk_free_bytes",] < found["serin_home_disk_size_bytes",]


def test_predictors_that_listen_are_targets(tmp_path: Path) -> None:
    assert targets(tmp_path) == []
    (tmp_path / "control").mkdir()
    listed = [
        {"service": "assistant", "revision": "assistant-00001", "port": 4711},
        {"service": "assistant", "revision": "assistant-00002", "port": 0},
    ]
    (tmp_path / "control" / "processes.json").write_text(json.dumps({"processes": listed}))
    found = targets(tmp_path)
    labels = {"service": "assistant", "revision": "assistant-00001"}
    assert found == [{"targets": ["127.0.0.1:4711"], "labels": labels}]
