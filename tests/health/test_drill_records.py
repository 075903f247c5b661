"""Rows about what is kept and compared: routes, prompts, disk, ledger, daily runs; overrides."""

import json
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

import pytest
from health_world import Case, HealthWorld, repeated

from core.words import features
from tests.one_machine import ROOT, until

pytestmark = pytest.mark.drill
SECONDS_MAX = 600
FILLED_BYTES = 256 << 20


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
    config = {"drift_seconds": 1, "prompts_min": 20}
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
    case = Case(world, "disk", f"{FILLED_BYTES >> 20} MiB written over the threshold")
    filler = world.home / "filler"
    with filler.open("wb") as file:
        for _ in range(FILLED_BYTES >> 20):
            file.write(b"\1" * (1 << 20))
    case.acts()
    case.event("health_done")
    filler.unlink()
    case.undone()
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
    ends = time.monotonic() + 5
    until(lambda: time.monotonic() > ends, "some looks", 30)
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
    import os

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
