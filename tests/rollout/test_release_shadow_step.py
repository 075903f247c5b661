"""A release whose first share is 0: the canary is loaded and shadowed before clients see it."""

from dataclasses import replace
from typing import Any

import pytest
from release_facts import (
    NOW,
    PLAN,
    TWO,
    a_release,
    at_share,
    canary_facts,
    loading_facts,
    some_facts,
)
from release_scenarios import (
    CONTINUE,
    INCONCLUSIVE,
    PROMOTE,
    ROLL_BACK,
    begin,
    finish,
    kinds,
    promote,
)

from core.contracts import CanaryDecision, ReleaseState
from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.inference_service import ServiceFacts
from rollout.ledger import Ledger
from rollout.release import Release, decode_release, encode_release
from rollout.steps import RaiseShare, RollBack, StartCanary, Wait, next_action, share_is_live

NO_REQUESTS = CanaryDecision("continue", "no client has seen it", canary_requests=0)

SHADOWING = PLAN.model_copy(update={"shares": (0, 5, 100)})


def loaded(held_seconds: float | None = 61, **changes: Any) -> Release:
    """The canary without traffic."""
    release: Release = at_share(0, held_seconds, plan=SHADOWING, **changes)
    return release


@pytest.mark.parametrize(
    ("release", "facts", "decision", "expected"),
    [
        (a_release(), some_facts(), None, StartCanary(0)),
        (a_release(share=0), some_facts(), None, StartCanary(0)),  # the patch never arrived
        (a_release(share=0), canary_facts(0), None, Wait),
        (a_release(), canary_facts(0), None, RollBack),
        (loaded(None), loading_facts(0), ROLL_BACK, RollBack),
        (loaded(None), loading_facts(0), CONTINUE, Wait("the canary is loading")),
        (loaded(), canary_facts(0), None, Wait("no decision yet")),
        (loaded(59), canary_facts(0), CONTINUE, Wait("share 0 % is held for 60 s")),
        (loaded(), canary_facts(0), NO_REQUESTS, RaiseShare(5)),
        (loaded(), canary_facts(0), PROMOTE, RaiseShare(5)),
        (loaded(), canary_facts(0), ROLL_BACK, RollBack),
        (loaded(), canary_facts(0), INCONCLUSIVE, RollBack),
        (loaded(), canary_facts(None), CONTINUE, RollBack),  # somebody gave it everything
        (loaded(), canary_facts(7), CONTINUE, RollBack),
        (replace(loaded(None), share=5), canary_facts(0), None, RaiseShare(5)),
        (at_share(5), canary_facts(0), CONTINUE, RollBack),
        (a_release(), some_facts(), ROLL_BACK, StartCanary(0)),
    ],
)
def test_a_plan_that_begins_at_0_loads_the_canary_before_clients_see_it(
    release: Release, facts: ServiceFacts, decision: CanaryDecision | None, expected: object
) -> None:
    action = next_action(release, facts, decision, NOW, SHADOWING)
    if isinstance(expected, type):
        assert isinstance(action, expected)
    else:
        assert action == expected


def test_no_share_is_not_a_share_of_0() -> None:
    """A release that has intended nothing is not live on a service that somebody set to 0 %."""
    assert share_is_live(loaded(), canary_facts(0))
    assert not share_is_live(a_release(), canary_facts(0))
    assert not share_is_live(a_release(share=0), canary_facts(0))
    assert not share_is_live(a_release(), canary_facts(None))


def test_a_release_kept_when_0_stood_for_none_is_read() -> None:
    kept = encode_release(a_release(share=0, applied_share=0))
    read = decode_release(kept)
    assert (read.share, read.applied_share, read.percent) == (None, None, 0)
    assert decode_release(encode_release(loaded())) == loaded()
    assert decode_release(encode_release(at_share(5))).share == 5


def test_clients_see_nothing_of_the_canary_at_0_and_the_release_goes_on(
    conductor: Conductor, services: FakeInferenceServices, ledger: Ledger
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", shares=(0, 5, 50, 100), step_requests_min=10)
    release = finish(conductor, release, None, lambda found: bool(found.step_started_at))
    assert (release.share, release.applied_share) == (0, 0)
    body = services.get("default", "assistant")
    assert body is not None
    assert body["spec"]["predictor"]["canaryTrafficPercent"] == 0
    assert body["spec"]["predictor"]["model"]["storageUri"].endswith(TWO)
    assert [shown.get(TWO, 0) for shown in services.history] == [0]
    release = finish(conductor, release, NO_REQUESTS, lambda found: found.share == 5)
    for requests in range(0, 500, 50):
        decision = CanaryDecision("promote", "good", canary_requests=requests)
        ended = conductor.advance(release.release_id, decision)
    assert ended.state is ReleaseState.PROMOTED
    assert [shown.get(TWO, 0) for shown in services.history] == [0, 5, 50, 100]
    moves = [kind for kind in kinds(ledger, ended) if kind.startswith("intent")]
    assert moves == ["intent StartCanary", *["intent RaiseShare"] * 2, "intent Promote"]


def test_a_canary_rejected_at_0_never_had_a_client(
    conductor: Conductor, services: FakeInferenceServices
) -> None:
    promote(conductor, "1")
    release = begin(conductor, "2", "1", shares=(0, 5, 100))
    release = finish(conductor, release, None, lambda found: bool(found.step_started_at))
    ended = finish(conductor, release, ROLL_BACK)
    assert (ended.state, ended.alarms) == (ReleaseState.ROLLED_BACK, ())
    assert not any(TWO in shown for shown in services.history)
