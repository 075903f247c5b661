"""A release is one trace, its day's stages included, whoever tells it and however often."""

from pathlib import Path

import pytest

from core.contracts import Candidate
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from tasks.stages import DayRun
from tasks.traces import trace_day, trace_release
from tests.one_machine import until
from tests.otlp_collector import Collector


@pytest.fixture(autouse=True)
def collected(taken: Collector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tell the traces to the collector of this test."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", taken.http_url)
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))


def run(folder: Path, label: str) -> DayRun:
    folder.mkdir()
    return DayRun(label, str(folder))


def test_a_release_and_its_day_are_one_trace(taken: Collector, tmp_path: Path) -> None:
    ledger = Ledger(f"sqlite:///{tmp_path}/ledger.db")
    conductor = Conductor(ledger, FakeInferenceServices(), "flow", sleep=lambda _: None)
    day, own = run(tmp_path / "day", "day-1"), run(tmp_path / "release", "release")
    day.record("training", 0.5, loss=0.1)
    digest = "1" * 64
    candidate = Candidate("assistant", "1", digest, f"file:///b/{digest}", "a", "s", "v", None)
    plan = ReleasePlan(shares=(5, 100), step_seconds_min=0, step_requests_min=0)
    release = conductor.start(conductor.propose(candidate, plan).release_id)
    own.record("begin release", 0.1)
    for _ in range(20):
        if release.final:
            break
        release = conductor.advance(release.release_id)
    for _ in range(2):  # the flow tells it, and the watch that settles what is left
        trace_release(ledger, release, own)
    trace_day(day, "Promoted", release.release_id)
    ledger.close()
    names = ["release 1", "training", "retrain day-1", "begin release", "canary"]
    until(lambda: {*names} <= {span["name"] for span in taken.spans}, "the spans")
    assert len({span["trace"] for span in taken.spans}) == 1
    roots = taken.named("release 1")
    assert {(root["parent"], root["status"]) for root in roots} == {("", 0)}
    assert len({root["id"] for root in roots}) == 1
    children = [span for span in taken.spans if span["name"] != "release 1"]
    assert {span["parent"] for span in children} == {roots[0]["id"]}
    assert roots[0]["attributes"]["serin.release.state"] == "PROMOTED"
    assert taken.named("training")[0]["attributes"]["serin.loss"] == "0.1"


def test_a_day_that_the_gates_stop_has_a_trace_of_its_own(taken: Collector, tmp_path: Path) -> None:
    day = run(tmp_path / "day", "day-4")
    day.record("model gates", 0.2)
    trace_day(day, "Stopped by gates", None)
    until(lambda: len(taken.spans) == 2, "the spans")
    root = taken.named("retrain day-4")[0]
    assert root["parent"] == ""
    assert taken.named("model gates")[0]["parent"] == root["id"]
    assert root["attributes"]["serin.final_state"] == "Stopped by gates"


def test_without_anybody_to_tell_nothing_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: Collector
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT")
    day = run(tmp_path / "day", "day-1")
    day.record("ingest", 0.1)
    trace_day(day, "Promoted", None)
    assert not taken.spans
