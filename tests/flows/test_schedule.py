"""Deployments start by themselves: the stack's own Prefect server plans runs from a schedule."""

import time

import httpx

from tests.running_stack import Stack

PLANNED_SECONDS_MAX = 90


def test_the_server_plans_runs_of_a_schedule(stack: Stack) -> None:
    """Prefect 3.8 cannot insert scheduled runs with SQLAlchemy 2.1; only its log says so."""
    with httpx.Client(base_url=stack.settings.prefect_url, timeout=30) as client:
        flow = client.post("/flows/", json={"name": "planned"}).raise_for_status().json()
        schedule = {"schedule": {"interval": 3600}, "active": True}
        body = {"name": "hourly", "flow_id": flow["id"], "schedules": [schedule]}
        made = client.post("/deployments/", json=body).raise_for_status().json()
        wanted = {"deployments": {"id": {"any_": [made["id"]]}}, "limit": 3}
        deadline = time.monotonic() + PLANNED_SECONDS_MAX
        runs: list[dict[str, str]] = []
        while not runs and time.monotonic() < deadline:
            runs = client.post("/flow_runs/filter", json=wanted).raise_for_status().json()
            time.sleep(0.2)
        client.delete(f"/deployments/{made['id']}").raise_for_status()
    assert {run["state_type"] for run in runs} == {"SCHEDULED"}
