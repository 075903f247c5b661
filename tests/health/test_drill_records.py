"""Rows about what is kept and compared: routes, prompts, disk, ledger, daily runs; overrides."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import uuid4

import httpx
import pytest
from health_world import Case, HealthWorld, repeated

from core.words import features
from serving.safety.active import policy_folder
from serving.safety.policy import POLICY_NAME, SHIPPED_POLICY, parse_policy
from tests.one_machine import ROOT, until

pytestmark = pytest.mark.drill
SECONDS_MAX = 600
FILLED_BYTES = 2 << 30
OLD_SECONDS = 60 * 86400.0
SLOW_PATTERN = {"name": "late", "pattern": r"^(.|..|...)+\d\d", "directions": ["output"]}
"""A pattern that takes far longer over a long answer than a filter may."""
FAILS_OPEN = {"name": "open", "rules": {"patterns": [SLOW_PATTERN], "on_error": "allow"}}


@pytest.mark.timeout(SECONDS_MAX)
def test_routes_that_are_not_what_the_service_says_are_told(world: HealthWorld) -> None:
    found = world.propose(shares=(50, 100), step_seconds_min=3600)
    conductor = world.machine.conductor(world.ledger, "flow")
    conductor.start(found.release_id)
    until(lambda: conductor.advance(found.release_id).step_started_at, "a live canary", 120)
    world.watch("routing_share", window_seconds=4)
    case = Case(world, "routing_share", "the routes' shares edited by hand, 50 to 10 %")
    path = world.home / "control" / "routes.json"
    whole = path.read_text()
    edited = json.loads(whole)
    for arm in edited["services"][world.machine.service]["arms"]:
        arm["percent"] = 10 if arm["arm"] == "canary" else 90
    try:
        path.write_text(json.dumps(edited))
        case.acts()
    finally:
        path.write_text(whole)
    try:
        case.undone()
    finally:
        conductor.roll_back(found.release_id, "the test is over", "test")
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_prompts_in_another_language_than_was_trained_on_are_a_drift(world: HealthWorld) -> None:
    counted: dict[str, Counter[str]] = {}
    for (feature, bucket), count in features("Where is my parcel?").items():
        counted.setdefault(feature, Counter())[bucket] += count * 500
    kept = world.home / "snapshots" / "features" / f"{'5' * 64}.json"
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps({"rows": 500, "features": counted}))
    drift = {"metric": "prompt_drift", "above": 0.4, "clear": 0.35}
    config = {"drift_seconds": 1, "prompts_min": 5}  # fewer than the load sends in a second
    world.watch("prompt_drift", config=config, conditions=[drift], window_seconds=3)
    case = Case(world, "prompt_drift", "questions in Chinese, trained on English")
    with repeated(
        lambda: world.ask("请问我的包裹现在到哪里了，什么时候可以送到？"), 0.0, threads=4
    ):
        case.acts()
    case.undone()
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_an_almost_full_disk_is_cleaned_up(world: HealthWorld) -> None:
    usage = shutil.disk_usage(world.home)
    share = 1 - usage.free / usage.total
    above = share + 0.5 * FILLED_BYTES / usage.total
    disk = {"metric": "disk_used_share", "above": above, "clear": above}
    world.watch("disk", conditions=[disk])
    case = Case(world, "disk", f"an old log of {FILLED_BYTES >> 30} GiB")
    log = world.home / "logs" / "old.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, FILLED_BYTES)
    os.utime(log, times=(time.time() - OLD_SECONDS,) * 2)
    try:
        case.acts()
        case.recovers(lambda: not log.exists(), "retention to delete it")
        done = case.event("health_done")
        case.undone()
    finally:
        log.unlink(missing_ok=True)
    assert done.body["freed_bytes"] > FILLED_BYTES / 2
    assert world.ask().is_success
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_answers_that_leave_although_a_filter_fails_are_told(world: HealthWorld) -> None:
    def obey(text: str) -> None:
        """Put a policy into force, as clients see it."""
        file = policy_folder(world.home) / POLICY_NAME
        file.parent.mkdir(exist_ok=True)
        draft = file.with_suffix(".draft")
        draft.write_text(text)
        draft.replace(file)
        digest = parse_policy(text, "test").digest
        until(lambda: ask_long().headers.get("x-serin-policy") == digest, "the policy")

    def ask_long() -> httpx.Response:
        answer: httpx.Response = world.ask(temperature=1, max_tokens=80)
        return answer

    world.watch("audit_coverage", window_seconds=3)
    case = Case(world, "audit_coverage", "a filter that fails open on each answer")
    try:
        obey(json.dumps(FAILS_OPEN))
        with repeated(ask_long, 0.2):
            acted = case.acts()
    finally:
        obey(SHIPPED_POLICY.read_text())
    with repeated(ask_long, 0.2):
        case.undone()
    assert acted.body["readings"]["unscanned_bytes"]["value"] > 0
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_an_edited_event_of_the_ledger_is_found(world: HealthWorld) -> None:
    import sqlite3

    world.watch("ledger", config={"ledger_seconds": 1})
    case = Case(world, "ledger", "an event's text edited in the database")
    with closing(sqlite3.connect(world.home / "ledger.db", timeout=30)) as database:
        (body,) = database.execute("SELECT body FROM events WHERE seq = 1").fetchone()
        database.execute("UPDATE events SET body = '{}' WHERE seq = 1")
        database.commit()
        case.acts()
        database.execute("UPDATE events SET body = ? WHERE seq = 1", (body,))
        database.commit()
    case.undone()
    assert case.failed == 0


class _Prefect(BaseHTTPRequestHandler):
    """A Prefect server that knows one deployment, whose schedule is on."""

    def do_GET(self) -> None:
        body = json.dumps(deployment()).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def deployment() -> dict[str, Any]:
    """A deployment as Prefect's API answers."""
    schedule = {
        "id": str(uuid4()),
        "deployment_id": str(uuid4()),
        "active": True,
        "schedule": {"cron": "0 3 * * *", "timezone": "UTC"},
    }
    return {
        "id": str(uuid4()),
        "name": "daily",
        "flow_id": str(uuid4()),
        "paused": False,
        "schedules": [schedule],
    }


@contextmanager
def prefect() -> Iterator[str]:
    """Serve it; yields the API's address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Prefect)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/api"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.timeout(SECONDS_MAX)
def test_a_daily_run_that_does_not_come_is_told(world: HealthWorld) -> None:
    world.stop_watch()
    result = world.home / "reports" / "day-1" / "result.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    result.write_text("{}")
    age = {"metric": "daily_run_age_seconds", "above": 8, "clear": 4}
    with prefect() as url:
        world.environment = {"PREFECT_API_URL": url}
        with repeated(result.touch, 0.2):
            world.watch("stale_daily_run", conditions=[age])
            case = Case(world, "stale_daily_run", "no daily run ends for 8 s")
        case.acts()
        with repeated(result.touch, 0.2):
            case.undone()
        world.stop_watch()
    world.environment = {}
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_a_person_keeps_the_matrix_from_acting(world: HealthWorld) -> None:
    tell(world, "override", "latency", "off", "--for", "10m")
    since = world.seq()
    rate = {"metric": "request_rate", "above": 0.5, "clear": 0.1}
    world.watch("latency", conditions=[rate], window_seconds=3)
    world.looks(10)
    assert not world.events("latency", since)
    seen = json.loads(tell(world, "--json"))
    assert seen["overrides"]["latency"]["mode"] == "off"
    assert seen["rows"]["latency"]["readings"]["request_rate"]["value"] > 0
    assert "latency" in tell(world)
    tell(world, "override", "latency", "auto")
    until(lambda: world.events("latency", since), "the row acts again")
    world.watch("latency", conditions=[{**rate, "above": 1e6, "clear": 1e6}], window_seconds=3)
    until(lambda: not world.mode().get("degraded"), "the normal mode")


def tell(world: HealthWorld, *arguments: str) -> str:
    """Run `serin health` and return what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "cli.main", "health", *arguments],
        cwd=ROOT,
        env={**os.environ, **world.variables()},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
