"""Scenarios of releases that the tests drive: candidates, plans, decisions and a settable clock."""

import time
from collections.abc import Callable

from core.contracts import CanaryDecision, Candidate
from rollout.conductor import Conductor
from rollout.ledger import Ledger
from rollout.plan import ReleasePlan
from rollout.release import Release

SERVICE = "assistant"
PROMOTE = CanaryDecision("promote", "better in everything", canary_requests=1000)
CONTINUE = CanaryDecision("continue", "too early", canary_requests=1000)
ROLL_BACK = CanaryDecision("rollback", "p95 is 2.0 times stable's", canary_requests=1000)
INCONCLUSIVE = CanaryDecision("inconclusive", "no data", canary_requests=0)
ADVANCES_MAX = 60


class Clock:
    """A wall clock that tests move by hand; it also moves a millisecond each time it is read."""

    def __init__(self) -> None:
        self.seconds = time.time()

    def __call__(self) -> float:
        self.seconds += 0.001
        return self.seconds


def bundle(version: str) -> str:
    return (version * 64)[:64]


def candidate(version: str, stable: str | None = None, verdict: str = "verdict") -> Candidate:
    return Candidate(
        service=SERVICE,
        model_version=version,
        bundle_digest=bundle(version),
        bundle_uri=f"file:///bundles/{bundle(version)}",
        adapter_digest=f"adapter-{version}",
        snapshot_id=f"snapshot-{version}",
        verdict_digest=verdict,
        stable_version=stable,
    )


def plan(**changes: object) -> ReleasePlan:
    quick = {"step_seconds_min": 0, "step_requests_min": 0, "shares": (5, 50, 100)}
    return ReleasePlan.model_validate({**quick, **changes})


def begin(
    conductor: Conductor, version: str, stable: str | None = None, **changes: object
) -> Release:
    return conductor.start(
        conductor.propose(candidate(version, stable), plan(**changes)).release_id
    )


def finish(
    conductor: Conductor,
    release: Release,
    decision: CanaryDecision | None = PROMOTE,
    until: Callable[[Release], bool] = lambda release: release.final,
) -> Release:
    for _ in range(ADVANCES_MAX):
        if release.final or until(release):
            return release
        release = conductor.advance(release.release_id, decision)
    raise AssertionError(f"after {ADVANCES_MAX} advances the release is {release}")


def promote(
    conductor: Conductor, version: str, stable: str | None = None, **changes: object
) -> Release:
    return finish(conductor, begin(conductor, version, stable, **changes))


def kinds(ledger: Ledger, release: Release) -> list[str]:
    """The release's events in order, moves by the name of their action."""
    events = ledger.events(release_id=release.release_id)
    return [
        f"{event.kind} {event.body['action']}" if "action" in event.body else event.kind
        for event in events
    ]
