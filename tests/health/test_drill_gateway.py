"""Rows whose recovery is in front of the predictors: degrade, filters, bans; seen by clients."""

import time

import httpx
import pytest
from health_world import PROMPT, STRANGER, Case, HealthWorld, repeated

from tests.one_machine import until

SECONDS_MAX = 600
LONG = "x" * 25_000


def stranger_client() -> httpx.Client:
    """A client at an address that can be banned."""
    return httpx.Client(transport=httpx.HTTPTransport(local_address=STRANGER, verify=False))


@pytest.mark.timeout(SECONDS_MAX)
def test_a_slow_model_is_degraded_and_clients_get_kept_answers(world: HealthWorld) -> None:
    latency = {"metric": "latency_p95_seconds", "above": 0.8, "clear": 0.5}
    rate = {"metric": "request_rate", "above": 1, "clear": 0.5}
    world.watch("latency", conditions=[latency, rate], window_seconds=3, for_seconds=0.5)
    case = Case(world, "latency", "engine answers after 1.2 s")
    world.fault(world.revision(), delay_seconds=1.2)
    with repeated(lambda: world.ask(temperature=1), 0.3, threads=3):
        case.acts()

        def quick() -> bool:
            began = time.monotonic()
            return world.ask(temperature=1).is_success and time.monotonic() - began < 0.8

        case.recovers(quick, "a quick answer")
        assert world.mode()["degraded"] is True
        world.fault(world.revision())
        case.undone()
    until(lambda: not world.mode()["degraded"], "the normal mode")
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_too_many_long_inputs_are_refused_and_short_ones_answered(world: HealthWorld) -> None:
    world.watch("long_inputs")
    case = Case(world, "long_inputs", "half of the inputs have 6,000 tokens")
    with repeated(lambda: world.ask(LONG), 0.03, threads=3):
        case.acts()
        case.recovers(lambda: world.ask(LONG).status_code == 413, "a long input refused")
        assert world.ask().is_success
    with repeated(world.ask, 0.01, threads=3):
        case.undone()
    until(lambda: world.mode()["input_filter"] == "auto", "the filter's own judgement")
    assert case.failed == 0


@pytest.mark.drill
@pytest.mark.timeout(SECONDS_MAX)
def test_illegal_requests_turn_the_request_filter_on(world: HealthWorld) -> None:
    world.watch("illegal_requests", window_seconds=4)
    case = Case(world, "illegal_requests", "half of the requests have wrong keys")
    with stranger_client() as stranger:

        def bad() -> int:
            return int(world.post(stranger, key="wrong").status_code)

        with repeated(bad, 0.05):
            case.acts()
            case.recovers(lambda: bad() == 429, "the stranger held back")
            assert world.ask().is_success
            world.looks(8)  # what is held back is illegal still, so the filter stays on
            assert not case.seen("health_undo")
    case.undone()
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_a_client_with_too_many_wrong_keys_is_banned(world: HealthWorld) -> None:
    strikes = {"metric": "client_strikes_per_minute", "above": 30, "clear": 20}
    config = {"ban_exempt": ["127.0.0.1/32"]}
    world.watch("malicious_client", config=config, conditions=[strikes], mode="off")
    metric = "client_strikes_per_minute"
    until(lambda: world.notes().readings[metric].value == 0, "no strikes of earlier tests", 120)
    world.watch("malicious_client", config=config, conditions=[strikes])
    case = Case(world, "malicious_client", "a flood of wrong keys from one address")
    with stranger_client() as stranger:

        def bad() -> int:
            return int(world.post(stranger, key="wrong").status_code)

        with repeated(bad, 0.02):
            acted = case.acts()
            case.recovers(lambda: bad() == 403, "the ban")
        assert acted.body["readings"][metric]["detail"]["client"] == STRANGER
        done = case.event("health_done")
        assert (done.body["client"], done.body["banned_by"]) == (STRANGER, "health")
        assert world.ask().is_success
        case.undone()
    assert case.failed == 0


@pytest.mark.timeout(SECONDS_MAX)
def test_a_dry_run_tells_and_touches_nothing(world: HealthWorld) -> None:
    before, since = world.mode(), world.seq()
    rate = {"metric": "request_rate", "above": 0.5, "clear": 0.1}
    world.watch("latency", dry_run=True, conditions=[rate], window_seconds=3)

    def told() -> bool:
        return any(event.body["dry_run"] for event in world.events("latency", since))

    with repeated(lambda: world.ask(PROMPT), 0.1):
        until(told, "a pretended recovery")
    assert world.mode() == before
