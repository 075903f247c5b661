"""Rows whose recovery changes the service: more processes, or the version before."""

import statistics
from typing import Any

import psutil
import pytest
from health_world import Case, HealthWorld, repeated

from tests.one_machine import until

pytestmark = pytest.mark.drill
SECONDS_MAX = 900
MIB = 1 << 20
ANSWER_BYTES = 24 * MIB
CLIENTS, IN_WORK = 4, 14
"""Requests in work beside those of the load, 10 a second, and both together."""


def endpoints(world: HealthWorld) -> list[bool]:
    """Whether each of stable's processes is ready."""
    return [endpoint["ready"] for endpoint in world.arms()[0]["endpoints"]]


def resident_bytes(world: HealthWorld) -> float:
    """What a calm predictor of stable uses."""
    revision, home = world.revision(), str(world.home)
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        if revision in line and any(home in part for part in line):
            found.append(process.memory_info().rss)
    return statistics.median(found)


@pytest.mark.timeout(SECONDS_MAX)
def test_memory_pressure_scales_out_without_a_lost_request_and_back_in(world: HealthWorld) -> None:
    calm = resident_bytes(world)
    limit = int((calm + 0.8 * IN_WORK * ANSWER_BYTES) / 0.9)
    memory = {"metric": "memory_share", "above": 0.9, "clear": 0.85}
    config = {"memory_limit_bytes": limit, "replicas_max": 2}
    world.watch(
        "memory", config=config, conditions=[memory], for_seconds=1, clear_seconds=5,
        verify_seconds=90,
    )  # fmt: skip
    case = Case(world, "memory", f"each answer in work holds {ANSWER_BYTES // MIB} MiB")
    revision = world.revision()
    world.fault(revision, delay_seconds=1.0, answer_bytes=ANSWER_BYTES)
    with repeated(lambda: world.ask(temperature=1), 0.0, threads=CLIENTS):
        case.acts()
        case.recovers(lambda: endpoints(world) == [True, True], "a second predictor that answers")
        assert world.revision() == revision
        case.event("health_helped")
    world.fault(revision)
    case.undone()
    until(lambda: len(endpoints(world)) == 1, "one predictor again")
    assert world.ask().is_success
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_scores_worse_than_last_week_roll_the_model_back(world: HealthWorld) -> None:
    week = 56.0
    world.watch(
        "quality", config={"scores_min": 5}, window_seconds=week, cooldown_seconds=5 * week,
        verify_seconds=5 * week,
    )  # fmt: skip
    good = world.stable()
    for _ in range(10):
        world.score(0.9)
    until(lambda: sum(s.count for s in world.notes().scores) >= 10, "the good scores")
    world.promote()
    bad = world.stable()
    assert bad != good
    case = Case(world, "quality", "scores fall from 0.9 to 0.2")

    def give() -> None:
        if world.ask().headers["x-serin-model-version"] == bad:
            world.score(0.2)

    with repeated(give, 0.1):
        case.acts()
        case.recovers(
            lambda: world.ask(temperature=1).headers["x-serin-model-version"] == good,
            "the version before",
        )
    with repeated(lambda: world.score(0.9), 0.05):
        case.undone()
    assert world.ledger.releases(limit=1)[0].kind == "rollback"
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_labelled_probes_are_asked_and_scored(world: HealthWorld) -> None:
    answer = world.ask(temperature=0, max_tokens=64).json()["choices"][0]["message"]["content"]
    turns = [{"role": "user", "content": "Where is my parcel?"}]
    write_probes(world, {"messages": turns, "response": answer.strip()})
    world.watch("quality", config={"probes_asked": 2, "probe_seconds": 1}, window_seconds=3600)

    def probed() -> bool:
        found = [s for s in world.notes().scores if s.source == "probes"]
        return any(s.count >= 2 and s.total == s.count for s in found)

    until(probed, "right answers to the probes")
    (world.home / "probes.jsonl").unlink()


def write_probes(world: HealthWorld, *probes: dict[str, Any]) -> None:
    import json

    (world.home / "probes.jsonl").write_text("\n".join(json.dumps(one) for one in probes))


@pytest.mark.timeout(SECONDS_MAX)
def test_a_version_whose_predictor_keeps_dying_is_rolled_back(world: HealthWorld) -> None:
    good = world.stable()
    world.promote()
    exits = {"metric": "predictor_exits", "above": 1, "clear": 0}
    world.watch("crash_loop", conditions=[exits], window_seconds=90, verify_seconds=240)
    case = Case(world, "crash_loop", "each request kills the predictor")
    revision = world.revision()
    world.fault(revision, crash=True)
    case.acts()
    case.recovers(
        lambda: (
            (found := world.ask(temperature=1)).is_success
            and found.headers["x-serin-model-version"] == good
        ),
        "the version before answers",
    )
    world.fault(revision)
    case.undone()


@pytest.mark.timeout(SECONDS_MAX)
def test_a_running_release_is_not_scaled_into(world: HealthWorld) -> None:
    since = world.seq()
    found = world.propose(shares=(50, 100), step_seconds_min=3600)
    conductor = world.machine.conductor(world.ledger, "flow")
    conductor.start(found.release_id)
    until(lambda: conductor.advance(found.release_id).step_started_at, "a live canary", 120)
    memory = {"metric": "memory_share", "above": 0.0, "clear": 0.0}
    world.watch("memory", conditions=[memory])

    def deferred() -> bool:
        return any(e.kind == "health_deferred" for e in world.events("memory", since))

    try:
        until(deferred, "the row waits")
        world.watch("memory", conditions=[{"metric": "memory_share", "above": 5, "clear": 5}])
    finally:
        conductor.roll_back(found.release_id, "the test is over", "test")
    assert not [e for e in world.events("memory", since) if e.kind == "health_act"]
