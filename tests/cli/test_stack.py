"""The real stack: up, killed part by part, adopted, seen, silent towards the world, down."""

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import processes
from cli.children import table
from cli.environment import MEMBER_VARIABLE, ROOT
from cli.ports import bind
from cli.processes import Identity
from cli.readiness import answers, fetch_json, get_status
from cli.stack import children_of
from cli.stack_file import StackFile, read_stack
from core.settings import Settings
from tests.running_stack import DOWN_SECONDS_MAX, UP_SECONDS_MAX, Stack, isolated_environment, serin

WATCHING = {"prometheus", "exporter"} if shutil.which("prometheus") else set()
PARTS = {"prefect", "mlflow", "gateway", "control", "keeper", *WATCHING}
GATEWAY_BACK_SECONDS_MAX = 3.0
BACK_SECONDS_MAX = 120.0


@pytest.fixture
def living(stack: Stack) -> Iterator[dict[str, Identity]]:
    """The parts of the session's stack; every one answers again after the test."""
    yield read_stack(stack.home).living
    await_answers(stack)


def await_answers(stack: Stack, seconds: float = BACK_SECONDS_MAX) -> None:
    deadline = time.monotonic() + seconds
    while True:
        now = read_stack(stack.home)
        silent = [
            child.name
            for child in children_of(stack.settings, now)
            if not answers(stack.home, child, now.processes[child.name])
        ]
        if now.supervised and not silent:
            return
        assert time.monotonic() < deadline, f"no answer from {silent or 'the supervisor'}"
        time.sleep(0.1)


def test_up_starts_every_part_and_down_is_told_where(
    stack: Stack, living: dict[str, Identity]
) -> None:
    assert {*living} == PARTS
    settings = stack.settings
    assert get_status(f"{settings.prefect_url}/health", 5) == 200
    assert get_status(f"{settings.prefect_url.removesuffix('/api')}/", 5) == 200
    assert get_status(f"{settings.mlflow_url}/health", 5) == 200
    assert get_status(f"{settings.gateway_url}/healthz", 5) == 200
    assert get_status(f"{settings.kube_url}/readyz", 5) == 200


def test_up_again_changes_nothing(stack: Stack, living: dict[str, Identity]) -> None:
    printed = serin("up", "--no-worker", environment=stack.environment, seconds=60)
    assert stack.settings.gateway_url in printed
    assert read_stack(stack.home).living == living


def test_a_killed_gateway_serves_again_within_three_seconds(
    stack: Stack, living: dict[str, Identity]
) -> None:
    os.kill(living["gateway"].pid, signal.SIGKILL)
    killed_at = time.monotonic()
    # The supervisor holds the socket: this one request waits, it is not refused.
    assert get_status(f"{stack.settings.gateway_url}/healthz", 10) == 200
    assert time.monotonic() - killed_at < GATEWAY_BACK_SECONDS_MAX
    assert read_stack(stack.home).living["gateway"] != living["gateway"]


def test_all_other_parts_come_back_when_killed_at_once(
    stack: Stack, living: dict[str, Identity]
) -> None:
    doomed = {name: identity for name, identity in living.items() if name != "gateway"}
    for identity in doomed.values():
        os.kill(identity.pid, signal.SIGKILL)
    await_answers(stack)
    after = read_stack(stack.home).living
    assert {*after} == PARTS
    assert after["gateway"] == living["gateway"]
    assert not {*doomed.values()} & {*after.values()}


def test_parts_outlive_the_supervisor_and_the_next_up_adopts_them(
    stack: Stack, living: dict[str, Identity]
) -> None:
    supervisor = read_stack(stack.home).supervisor
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    assert processes.wait_gone([supervisor], 5)
    assert get_status(f"{stack.settings.gateway_url}/healthz", 5) == 200
    serin("up", "--no-worker", environment=stack.environment, seconds=60)
    after = read_stack(stack.home)
    assert after.living == living
    assert after.supervisor != supervisor
    os.kill(living["gateway"].pid, signal.SIGKILL)
    assert get_status(f"{stack.settings.gateway_url}/healthz", 10) == 200


def test_status_shows_every_part_and_is_light(stack: Stack, living: dict[str, Identity]) -> None:
    before = os.times()
    seen = json.loads(serin("status", "--json", environment=stack.environment, seconds=60))
    after = os.times()
    assert {name: part["state"] for name, part in seen["parts"].items()} == dict.fromkeys(
        PARTS, "ready"
    )
    assert {name: part["pid"] for name, part in seen["parts"].items()} == {
        name: identity.pid for name, identity in living.items()
    }
    assert isinstance(seen["runs"], list)
    assert isinstance(seen["serving"], dict)
    spent = after.children_user + after.children_system
    spent -= before.children_user + before.children_system
    assert spent < 3.0, f"{spent} CPU seconds"  # 1 on an idle machine


def test_old_runs_are_forgotten_by_both_servers(stack: Stack, living: dict[str, Identity]) -> None:
    mlflow, prefect = f"{stack.settings.mlflow_url}/api/2.0/mlflow", stack.settings.prefect_url
    run = fetch_json(f"{mlflow}/runs/create", 30, {"experiment_id": "0", "start_time": 1})
    run_id = run["run"]["info"]["run_id"]
    finished = {"run_id": run_id, "status": "FINISHED", "end_time": 2}
    assert fetch_json(f"{mlflow}/runs/update", 30, finished)
    flow = fetch_json(f"{prefect}/flows/", 30, {"name": "ancient"})
    flow_run = fetch_json(f"{prefect}/flow_runs/", 30, {"flow_id": flow["id"]})
    ended = {"state": {"type": "COMPLETED"}, "force": True}
    assert fetch_json(f"{prefect}/flow_runs/{flow_run['id']}/set_state", 30, ended)
    # The server dates a run itself: only its database can make one old.
    with sqlite3.connect(stack.home / "prefect" / "prefect.db", timeout=30) as database:
        changed = database.execute(
            "UPDATE flow_run SET end_time = '2000-01-01 00:00:00.000000' WHERE id = ?",
            (flow_run["id"],),
        )
    database.close()
    assert changed.rowcount == 1
    shown = serin("gc", "--days", "3650", environment=stack.environment, seconds=60)
    assert "would delete flow runs 1 in Prefect" in shown
    assert "would delete runs 1 in MLflow" in shown
    assert fetch_json(f"{prefect}/flow_runs/{flow_run['id']}", 30)
    serin("gc", "--days", "3650", "--delete", environment=stack.environment, seconds=120)
    assert fetch_json(f"{prefect}/flow_runs/{flow_run['id']}", 30) is None
    assert fetch_json(f"{mlflow}/runs/get?run_id={run_id}", 30) is None


def test_a_signal_reaches_prefect_or_is_told_as_lost(
    stack: Stack, living: dict[str, Identity]
) -> None:
    assert "asked to look" in serin(
        "health", "signal", "a test", environment=stack.environment, seconds=60
    )
    wanted = {"filter": {"event": {"name": ["serin.health.signal"]}}}
    deadline = time.monotonic() + 30
    while not (events := fetch_json(f"{stack.settings.prefect_url}/events/filter", 30, wanted))[
        "events"
    ]:
        assert time.monotonic() < deadline, "the event did not arrive"
        time.sleep(0.2)
    assert events["events"][0]["resource"] == {"prefect.resource.id": "serin.service.assistant"}
    assert events["events"][0]["payload"] == {"reason": "a test"}
    away = {**stack.environment, "SERIN_PREFECT_URL": "http://127.0.0.1:1/api"}
    lost = run_serin("health", "signal", "a test", environment=away)
    assert lost.returncode == 1
    assert "does not take the signal" in lost.stderr


def test_a_contradicting_port_is_refused(stack: Stack, living: dict[str, Identity]) -> None:
    environment = {**stack.environment, "SERIN_PORT_MLFLOW": "1"}
    failed = run_serin("up", environment=environment)
    assert failed.returncode == 1
    assert "SERIN_PORT_MLFLOW is 1; run `serin down` first" in failed.stderr


def test_nothing_contacts_the_internet(stack: Stack, living: dict[str, Identity]) -> None:
    serin("status", environment=stack.environment, seconds=60)
    serin("--help", environment=stack.environment, seconds=60)
    tried = stack.outgoing.read_text() if stack.outgoing.exists() else ""
    assert tried == ""


def test_an_attempt_to_leave_loopback_would_be_seen(tmp_path: Path) -> None:
    environment = isolated_environment(tmp_path)
    code = "import socket; socket.create_connection(('192.0.2.1', 80), 1)"
    failed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert failed.returncode != 0
    assert "192.0.2.1" in (tmp_path / "outgoing.txt").read_text()


def test_a_taken_port_is_named_with_its_setting(tmp_path: Path) -> None:
    with bind(0) as held:
        taken = held.getsockname()[1]
        environment = {**isolated_environment(tmp_path), "SERIN_PORT_GATEWAY": str(taken)}
        failed = run_serin("up", "--no-worker", environment=environment)
    assert failed.returncode == 1
    assert failed.stderr.startswith("serin: ")
    assert f"port {taken}" in failed.stderr
    assert "SERIN_PORT_GATEWAY" in failed.stderr
    assert len(failed.stderr.splitlines()) == 1
    assert [*processes.members(MEMBER_VARIABLE, str(tmp_path))] == []


def test_down_without_a_stack_does_nothing(tmp_path: Path) -> None:
    environment = isolated_environment(tmp_path)
    for _ in range(2):
        printed = serin("down", environment=environment, seconds=60)
        assert printed == "nothing was running\n"


def test_down_also_stops_what_a_killed_supervisor_left_behind(tmp_path: Path) -> None:
    environment = {**isolated_environment(tmp_path), MEMBER_VARIABLE: str(tmp_path)}
    orphan = subprocess.Popen(
        [sys.executable, "-c", "import time; time.sleep(60)"], env=environment
    )
    del environment[MEMBER_VARIABLE]
    printed = serin("down", environment=environment, seconds=60)
    assert printed == "stopped: 1 other processes\n"
    assert orphan.wait(5) == -signal.SIGTERM


def test_the_table_knows_every_part(tmp_path: Path) -> None:
    names = ("prefect", "mlflow", "gateway", "control", "prometheus", "exporter")
    ports = {name: number for number, name in enumerate(names, 1)}
    settings = Settings(home=tmp_path)
    assert {*table(settings, ports, worker=True)} == {*names, "keeper", "worker"}


@pytest.mark.slow
def test_two_homes_run_side_by_side_and_a_worker_runs_deployments(
    stack: Stack, living: dict[str, Identity], tmp_path: Path
) -> None:
    environment = isolated_environment(tmp_path)
    try:
        serin("up", environment=environment, seconds=UP_SECONDS_MAX)
        other = read_stack(tmp_path)
        assert {*other.living} == {*PARTS, "worker"}
        assert not {*other.addresses.values()} & {*read_stack(stack.home).addresses.values()}
        bound = {**environment, "PREFECT_API_URL": other.addresses["prefect_url"]}
        command = [sys.executable, "-m", "prefect", "deployment", "run", "watch/watch", "--watch"]
        done = subprocess.run(
            command, env=bound, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        runs = json.loads(serin("status", "--json", environment=environment, seconds=60))["runs"]
        assert ("watch", "Completed") in {(run["flow"], run["state"]) for run in runs}
    finally:
        serin("down", environment=environment, seconds=DOWN_SECONDS_MAX)
    assert read_stack(tmp_path) == StackFile()
    assert [*processes.members(MEMBER_VARIABLE, str(tmp_path))] == []
    assert read_stack(stack.home).living == living


@pytest.mark.slow
@pytest.mark.parametrize("word", ["prefect on port", "keeper ready"], ids=["ready", "starting"])
def test_the_foreground_stops_everything_when_it_is_ended(tmp_path: Path, word: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "cli.main", "up", "--foreground", "--no-worker"],
        env=isolated_environment(tmp_path), cwd=ROOT, text=True, bufsize=1,
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    with process.stderr as lines:
        assert any(word in line for line in lines)
        process.terminate()
        assert process.wait(DOWN_SECONDS_MAX) == 0
    assert [*processes.members(MEMBER_VARIABLE, str(tmp_path))] == []


@pytest.mark.slow
def test_everything_starts_where_there_is_no_network_at_all(tmp_path: Path) -> None:
    """The kernel's word on it, compiled libraries included: a namespace with loopback only."""
    loopback_up = (
        "import fcntl, socket, struct;"
        "s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack('16sH14s', b'lo', 0x41, b''))"
    )
    python = sys.executable
    script = f'"{python}" -c "{loopback_up}" && "$@"'
    isolate = ["unshare", "--net", "--map-root-user", "sh", "-c", script, "sh"]
    if subprocess.run([*isolate, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make network namespaces")
    both = f'"{python}" -m cli.main up --no-worker && "{python}" -m cli.main down'
    done = subprocess.run(
        [*isolate, "sh", "-c", both],
        env=isolated_environment(tmp_path), cwd=ROOT, capture_output=True, text=True,
        timeout=UP_SECONDS_MAX, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def run_serin(*arguments: str, environment: dict[str, str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
