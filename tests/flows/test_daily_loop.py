"""The daily loop on the real stack: Prefect, MLflow, control plane, gateway, predictors, keeper."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cli.stack_file import read_stack
from cli.verification import decision_problems
from core.contracts import ReleaseState
from lake.snapshots import find_snapshot, load_held_out, load_rows
from lake.table import Lake
from observability.load import LoadConfig, LoadGenerator
from registry.connection import Connection
from rollout.ledger import Ledger
from tests.file_search import leaks
from tests.planted_values import (
    CARRIERS,
    PLANTED_ID,
    VALUES,
    broken_lines,
    good_rows,
    refused_rows,
)
from tests.running_stack import Stack, serin

ROOT = Path(__file__).resolve().parent.parent.parent
FLOW_SECONDS_MAX = 280
EVALUATION = "evaluation.jsonl"
SAID: list[str] = []
"""What the flows' processes printed and logged."""
PARAMETERS: dict[str, Any] = {
    "base": {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "epochs": 3, "threads": 1},
    "train": {"epochs": 1, "threads": 1, "replay_share": 0.2},
    "bundle": {"weight_precision": "fp32", "kv_cache_precision": "f32"},
    "gates": {
        "quality": {"score_min": 0.0, "tolerance": 1.0, "slice_tolerance": 1.0}
        | {"new_slice_score_min": 0.0, "records_min": 10},
        "forgetting": {"drop_max": 1.0, "slice_drop_max": 1.0, "records_min": 1},
        "parity": {"identical_share_min": 0.9, "score_difference_max": 0.2, "prompts": 60}
        | {"prompts_min": 10},
        "safety": {"unsafe_share_max": 1.0},
        "answer_tokens_max": 12,
    },
    "plan": {
        "shares": [50, 100], "step_seconds_min": 1, "step_requests_min": 5, "lease_seconds": 30,
    },
    "canary": {
        "p95_ratio_max": 20.0, "window_seconds": 5, "evaluate_seconds": 1, "for_seconds": 5,
        "requests_min": 20, "seconds_min": 2, "seconds_max": 120, "latency_requests_min": 5,
        "error_requests_min": 10,
        "betting": {
            "alpha_promote": 0.5, "error_tolerance": 0.3, "block_tolerance": 0.3,
            "first_requests": 20, "refresh_requests": 20,
        },
    },
}  # fmt: skip


def start_flow(stack: Stack, name: str, parameters: dict[str, Any]) -> "subprocess.Popen[str]":
    """Start a flow as its own process against the stack."""
    command = [sys.executable, str(ROOT / "tests/flows/loop_process.py"), name]
    return subprocess.Popen(
        [*command, json.dumps(parameters)],
        cwd=ROOT, env=stack.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def final_state(running: "subprocess.Popen[str]") -> dict[str, Any]:
    """Wait for a flow's process; return the flow's final state."""
    output, errors = running.communicate(timeout=FLOW_SECONDS_MAX)
    SAID.extend((output, errors))
    lines = [line for line in output.splitlines() if line.startswith("STATE ")]
    assert lines, output[-2000:] + errors[-6000:]
    found: dict[str, Any] = json.loads(lines[-1].removeprefix("STATE "))
    return found


def run_flow(stack: Stack, name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return final_state(start_flow(stack, name, parameters))


def day_parameters(data: Path, day: str) -> dict[str, Any]:
    mapping = {"prompt": "text", "response": "intent", "slice_name": "domain"}
    ingest = {"data": str(data), "mapping": mapping, "rows_min": 50}
    ingest["evaluation"] = {"uri": str(data.parent / EVALUATION)}
    return {**PARAMETERS, "ingest": ingest, "day": day}


def retrain(stack: Stack, data: Path, day: str) -> dict[str, Any]:
    return run_flow(stack, "retrain", day_parameters(data, day))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small days cut from the sample; the first one is full of personal values."""
    folder = tmp_path_factory.mktemp("data") / "days"
    folder.mkdir()
    for day, rows in ((1, 400), (2, 200), (3, 200)):
        lines = (ROOT / f"samples/days/day-{day}.jsonl").read_bytes().splitlines()[:rows]
        if day == 1:
            like = json.loads(lines[0])
            planted = [as_line(row) for row in (*good_rows(like), *refused_rows())]
            lines += [*planted, *broken_lines()]
            # Rows that stand nowhere else: the candidate is judged on them, and keeps them.
            judged = [{**row, "text": f"again {row['text']}"} for row in good_rows(like)]
            (folder.parent / EVALUATION).write_bytes(b"\n".join(map(as_line, judged)))
        (folder / f"day-{day}.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    return folder


def as_line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode()


@pytest.fixture(scope="module")
def served(stack: Stack, data: Path) -> dict[str, Any]:
    """Day 1, promoted: from here on something serves."""
    ended = retrain(stack, data, "day-1")
    assert ended["name"] == "Promoted", ended
    return ended


@pytest.fixture
def traffic(
    stack: Stack, served: dict[str, Any], request: pytest.FixtureRequest
) -> Iterator[LoadGenerator]:
    """Ten requests a second, or as many as asked for, for as long as a test lasts."""
    rps = getattr(request, "param", 10)
    config = LoadConfig(url=stack.settings.gateway_url, rps=rps, reuse_connections=False)
    load = LoadGenerator(config, ["where is my parcel", "cancel my order", "我的快递到哪里了"])
    load.start()
    yield load
    load.stop()


@pytest.mark.timeout(900)
def test_the_first_day_serves_and_says_what_it_is(stack: Stack, served: dict[str, Any]) -> None:
    body = {"model": "assistant", "messages": [{"role": "user", "content": "hello"}]}
    url = f"{stack.settings.gateway_url}/openai/v1/chat/completions"
    answer = httpx.post(url, json={**body, "max_tokens": 8}, timeout=30)
    assert answer.status_code == 200
    assert answer.json()["model"] == "assistant:1"
    assert answer.headers["x-serin-model-version"] == "1"
    result = served["data"]
    planted = 2 * len(CARRIERS) + len(refused_rows()) + len(broken_lines())
    assert (result["rows_in"], result["verdict"]) == (400 + planted, "pass")
    assert Path(result["folder"], "report.md").read_text().startswith("# day-1: Promoted")


@pytest.mark.timeout(900)
def test_no_file_of_the_home_holds_a_personal_value_of_the_data(
    stack: Stack, served: dict[str, Any], data: Path
) -> None:
    lake = Lake(stack.settings.lake_uri)
    refused = lake.quarantined(day="day-1", limit=1000)
    assert len(refused) == len(refused_rows()) + len(broken_lines())
    assert sum("[EMAIL]" in row["text"] for row in refused) >= 8
    assert sum(row["text"] == "" for row in refused) >= 4 * len(CARRIERS)
    snapshot = find_snapshot(stack.home / "snapshots", registered_snapshot(stack))
    rows = [*load_rows(snapshot), *load_held_out(snapshot)]
    stored = [row for row in rows if row.record_id.startswith(PLANTED_ID)]
    assert len(stored) == len(CARRIERS)
    assert any("[EMAIL]" in row.prompt for row in stored)
    judged = json.loads(Path(served["data"]["folder"], "evaluation.json").read_text())
    assert any("[EMAIL]" in str(row) and "again" in str(row) for row in judged)

    (stack.home / "said.txt").write_text("\n".join(SAID))
    assert {Path(leak.path).parts[0] for leak in leaks(stack.home, [like_a_planted_text()])} >= {
        "lake", "snapshots", "reports",
    }  # fmt: skip
    assert leaks(stack.home, VALUES) == []


def like_a_planted_text() -> str:
    """A piece of a planted row that is no personal value: it must be found where its row is."""
    return "number 3 of the ids"


def registered_snapshot(stack: Stack) -> str:
    """Return the snapshot that the registry's first version was trained on."""
    client = Connection(stack.settings.mlflow_url).client()
    version = client.get_model_version("assistant", "1")
    found = [value for name, value in version.tags.items() if name.endswith("snapshot_id")]
    assert len(found) == 1, version.tags
    return str(found[0])


@pytest.mark.timeout(900)
def test_the_same_file_again_is_not_enough_data(
    stack: Stack, served: dict[str, Any], data: Path
) -> None:
    assert retrain(stack, data, "day-1")["name"] == "Not enough data"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("traffic", [20], indirect=True)
def test_the_second_day_goes_through_a_canary_and_an_operator_takes_it_back(
    stack: Stack, data: Path, traffic: LoadGenerator
) -> None:
    ended = retrain(stack, data, "day-2")
    assert ended["name"] == "Promoted", ended
    ledger = Ledger(stack.settings.ledger_url)
    release = ledger.stable("assistant")
    assert release is not None
    assert release.candidate.model_version == "2"
    kinds = [event.kind for event in ledger.events(release_id=release.release_id)]
    assert kinds.index("intent") < kinds.index("applied")

    back = run_flow(stack, "rollback", {"reason": "a test asks for it"})
    assert back["name"] == "Rolled back", back
    stable = ledger.stable("assistant")
    assert stable is not None
    assert stable.candidate.model_version == "1"
    report = traffic.stop()
    assert report.failed == 0, report.causes
    assert {"1", "2"} <= set(report.by_version)
    assert ledger.verify() == []


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("traffic", [20], indirect=True)
def test_a_candidate_waits_for_a_running_canary_and_is_then_judged_again(
    stack: Stack, data: Path, traffic: LoadGenerator
) -> None:
    ledger = Ledger(stack.settings.ledger_url)
    slow = {**PARAMETERS["plan"], "step_seconds_min": 180}
    running = start_flow(stack, "retrain", {**day_parameters(data, "day-2"), "plan": slow})
    wait_for(lambda: canary_of(ledger), FLOW_SECONDS_MAX, "the second day's canary")
    waits = retrain(stack, data, "day-3")
    assert waits["name"] == "Registered, waiting", waits
    assert canary_of(ledger), "a waiting candidate must not end a running canary"
    assert final_state(running)["name"] == "Promoted"

    release_id = waits["data"]["release_id"]
    before = ledger.release(release_id).candidate
    parameters = {"release_id": release_id, "canary": PARAMETERS["canary"]}
    ended = run_flow(stack, "release", parameters)
    assert ended["name"] == "Promoted", ended
    after = ledger.release(release_id).candidate
    assert after.model_version == before.model_version
    assert after.verdict_digest != before.verdict_digest
    assert after.stable_version != before.stable_version
    assert traffic.stop().failed == 0
    assert list(decision_problems(ledger)) == []
    assert_failing_after_its_promotion_it_is_taken_back(stack, ledger, after.model_version)


def assert_failing_after_its_promotion_it_is_taken_back(
    stack: Stack, ledger: Ledger, version: str
) -> None:
    promoted = ledger.stable("assistant")
    assert promoted is not None
    assert promoted.candidate.model_version == version
    faults = stack.home / "control" / "faults"
    faults.mkdir(parents=True, exist_ok=True)
    (faults / f"{promoted.revision}.json").write_text('{"error_share": 0.5}')
    load = LoadGenerator(LoadConfig(url=stack.settings.gateway_url, rps=20), ["where is my parcel"])
    load.start()
    # The gateway asks again, so that clients see little of it; its counters do.
    wait_for(lambda: load.report().ok + load.report().failed >= 100, 60, "requests to be answered")
    seen = run_flow(stack, "watch", {"canary": {**PARAMETERS["canary"], "bake": {"seconds": 600}}})
    load.stop()
    assert "after its promotion" in seen["data"]
    stable = ledger.stable("assistant")
    assert stable is not None
    assert stable.candidate.model_version == promoted.candidate.stable_version


def canary_of(ledger: Ledger) -> bool:
    active = ledger.active("assistant")
    return active is not None and active.state is ReleaseState.CANARY and active.percent > 0


@pytest.mark.timeout(900)
def test_the_watch_is_light_and_tells_what_it_sees(stack: Stack, served: dict[str, Any]) -> None:
    seen = run_flow(stack, "watch", {})
    assert seen["type"].endswith("COMPLETED"), seen
    assert "service ready True" in seen["data"]
    assert "stable" in seen["data"]


def parts_of(stack: Stack) -> dict[str, int]:
    return {name: part.pid for name, part in read_stack(stack.home).living.items()}


def predictor_of(stack: Stack) -> int:
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if "serving.predictor" in line and str(stack.home) in " ".join(line):
            return int(process.pid)
    raise AssertionError("no predictor runs")


def wait_for(condition: Any, seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError(f"waited {seconds} s for {what}")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["control", "keeper", "mlflow", "predictor", "gateway"])
def test_killing_one_process_loses_at_most_what_it_had_in_flight(
    stack: Stack, traffic: LoadGenerator, victim: str
) -> None:
    wait_for(lambda: traffic.report().ok >= 20, 60, "traffic to flow")
    pid = predictor_of(stack) if victim == "predictor" else parts_of(stack)[victim]
    in_flight = traffic.report().in_flight
    psutil.Process(pid).kill()
    if victim != "predictor":
        wait_for(lambda: parts_of(stack).get(victim) != pid, 60, f"a new {victim}")
    answered = traffic.report().ok
    wait_for(lambda: traffic.report().ok >= answered + 20, 60, "traffic to flow again")
    report = traffic.stop()
    # A request may have begun between the count and the kill.
    allowed = in_flight + 2 if victim == "gateway" else 0
    assert report.failed <= allowed, report.causes
    if victim in ("control", "keeper", "mlflow"):
        assert predictor_of(stack)


def test_a_release_that_ended_is_final(stack: Stack, served: dict[str, Any]) -> None:
    ledger = Ledger(stack.settings.ledger_url)
    ended = {release.state for release in ledger.releases("assistant")}
    assert ended <= {ReleaseState.PROMOTED, ReleaseState.ROLLED_BACK}
    assert serin("status", "--json", environment=stack.environment, seconds=60).startswith("{")
