"""Settling: outcomes enter the counts in the order of assignment, whatever ends first."""

import heapq
import math
import random
from collections.abc import Iterator

import pytest

from core.contracts import LATENCY_BUCKET_COUNT, LATENCY_BUCKETS_SECONDS, ArmOutcomes, Stratum
from observability.metrics import parse_sample
from serving.gateway.balancer import Arm, Balancer, Service
from serving.gateway.metrics import Metrics
from serving.gateway.routes import parse_routes
from serving.gateway.settlement import STRATA_MAX, UNANSWERED_SECONDS, Draw, Settlement

STABLE = Arm("stable", "assistant-00001", "1", 95, ())
CANARY = Arm("canary", "assistant-00002", "2", 5, ())
NEXT = Arm("canary", "assistant-00003", "3", 5, ())


def settlement(
    series: int = 4, keep: float = 3600, settling: int = 1000, conversations: int = 1000
) -> Settlement:
    return Settlement(series, keep, settling, conversations)


def split(found: Settlement, share: float = 0.05, canary: Arm = CANARY) -> Service:
    service = Service("assistant", (STABLE, canary), share)
    found.apply([service])
    return service


def drawn(found: Settlement, service: Service, arm: Arm, conversation: str | None = None) -> Draw:
    draw = found.draw(service, arm, conversation)
    assert draw is not None
    return draw


def strata(found: Settlement, *services: Service) -> tuple[Stratum, ...]:
    """What a scrape reads of the first service."""
    metrics = Metrics(4, 3600)
    metrics.apply(1, services)
    text = metrics.exposition({}, 0, found.lines()).decode()
    sample = parse_sample(text, "assistant", 1.0)
    assert sample.process == found.process
    return sample.strata


def test_an_outcome_waits_for_every_earlier_one() -> None:
    found = settlement()
    service = split(found)
    first, second, third = (drawn(found, service, arm) for arm in (CANARY, STABLE, STABLE))
    second.finish(False, False, 0.1)
    third.finish(True, False, 0.1)
    assert strata(found, service) == (Stratum(0.05),)
    first.finish(False, True, 4.0)
    (stratum,) = strata(found, service)
    assert (stratum.canary.requests, stratum.canary.blocks) == (1, 1)
    assert (stratum.stable.requests, stratum.stable.errors) == (2, 1)


def test_latencies_are_counted_in_their_bucket_and_the_unanswered_beyond_all() -> None:
    found = settlement()
    service = split(found)
    for seconds in (0.0, LATENCY_BUCKETS_SECONDS[3], 1e6):
        drawn(found, service, STABLE).finish(False, False, seconds)
    drawn(found, service, STABLE).finish(True, False, UNANSWERED_SECONDS)
    latencies = strata(found, service)[0].stable.latencies
    assert latencies == {0: 1, 3: 1, LATENCY_BUCKET_COUNT: 2}


def test_an_outcome_is_given_once() -> None:
    found = settlement()
    service = split(found)
    draw = drawn(found, service, CANARY)
    draw.finish(True, False, UNANSWERED_SECONDS)
    draw.finish(False, True, 0.1)
    assert strata(found, service)[0].canary == ArmOutcomes(1, 1, 0, {LATENCY_BUCKET_COUNT: 1}, {})


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_nothing_is_observed_at_the_ends_of_the_scale(share: float) -> None:
    found = settlement()
    assert found.draw(split(found, share), STABLE, None) is None


def test_nothing_is_observed_without_a_canary() -> None:
    found = settlement()
    service = Service("assistant", (STABLE,), 0.0)
    found.apply([service])
    assert found.draw(service, STABLE, None) is None
    assert strata(found, service) == ()


def test_each_share_has_its_stratum_in_the_order_of_the_first_draw() -> None:
    found = settlement()
    for share, arm in ((0.15, STABLE), (0.05, CANARY), (0.15, CANARY)):
        drawn(found, split(found, share), arm).finish(False, False, 0.1)
    first, second = strata(found, Service("assistant", (STABLE, CANARY), 0.15))
    assert (first.share, first.stable.requests, first.canary.requests) == (0.15, 1, 1)
    assert (second.share, second.stable.requests, second.canary.requests) == (0.05, 0, 1)


def test_too_many_shares_are_not_observed() -> None:
    found = settlement()
    for number in range(STRATA_MAX):
        drawn(found, split(found, (number + 1) / 100), STABLE)
    assert found.draw(split(found, 0.99), STABLE, None) is None
    assert found.draw(split(found, 0.01), STABLE, None) is not None


def test_an_outcome_counts_at_the_share_of_its_draw() -> None:
    found = settlement()
    draw = drawn(found, split(found, 0.05), CANARY)
    service = split(found, 0.15)
    later = drawn(found, service, STABLE)
    draw.finish(False, False, 0.1)
    later.finish(False, False, 0.1)
    first, second = strata(found, service)
    assert (first.share, first.canary.requests, first.stable.requests) == (0.05, 1, 0)
    assert (second.share, second.canary.requests, second.stable.requests) == (0.15, 0, 1)


def test_other_revisions_begin_a_new_comparison_and_old_draws_count_for_the_old_one() -> None:
    found = settlement()
    first = split(found)
    draw = drawn(found, first, CANARY)
    second = split(found, canary=NEXT)
    drawn(found, second, NEXT).finish(False, False, 0.1)
    assert strata(found, second)[0].canary.requests == 0
    draw.finish(False, False, 0.1)
    assert strata(found, second)[0].canary.requests == 1
    assert strata(found, first)[0].canary.requests == 1


def test_a_comparison_that_left_is_kept_for_a_while_and_never_dropped_with_open_draws() -> None:
    found = settlement(keep=0)
    draw = drawn(found, split(found), CANARY)
    alone = Service("assistant", (STABLE,), 0.0)
    found.apply([alone])
    found.apply([alone])
    assert "assistant-00002" in "".join(found.lines())
    draw.finish(False, False, 0.1)
    found.apply([alone])
    assert "assistant-00002" not in "".join(found.lines())


def test_only_so_many_past_comparisons_are_kept() -> None:
    found = settlement(series=3)
    for number in range(50):
        arm = Arm("canary", f"assistant-{number:05}", "1", 5, ())
        drawn(found, split(found, canary=arm), arm).finish(False, False, 0.1)
    kept = {line for line in found.lines() if "settled_requests" in line and 'arm="canary"' in line}
    assert len(kept) == 4
    assert any("assistant-00049" in line for line in kept)


def test_a_canary_that_is_briefly_away_keeps_its_counts() -> None:
    found = settlement(keep=0)
    drawn(found, split(found), CANARY).finish(False, False, 0.1)
    assert found.draw(split(found, 0.0), STABLE, None) is None
    service = split(found)
    drawn(found, service, CANARY).finish(False, False, 0.1)
    assert strata(found, service)[0].canary.requests == 2


def test_a_conversation_is_observed_once_per_comparison() -> None:
    found = settlement()
    service = split(found)
    drawn(found, service, CANARY, "a").finish(False, False, 0.1)
    assert found.draw(service, CANARY, "a") is None
    assert found.draw(split(found, 0.15), CANARY, "a") is None
    assert found.draw(service, STABLE, "b") is not None
    assert found.draw(split(found, canary=NEXT), NEXT, "a") is not None


def test_a_conversation_that_cannot_be_remembered_is_not_observed() -> None:
    found = settlement(conversations=2)
    service = split(found)
    seen = [found.draw(service, STABLE, str(number % 5)) is not None for number in range(20)]
    assert seen == [True, True] + [False] * 18
    assert found.draw(service, STABLE, None) is not None


def test_the_line_is_bounded_and_opens_again() -> None:
    found = settlement(settling=3)
    service = split(found)
    draws = [drawn(found, service, STABLE) for _ in range(3)]
    assert found.draw(service, CANARY, None) is None
    draws[0].finish(False, False, 0.1)
    assert found.draw(service, CANARY, None) is not None


def test_services_do_not_wait_for_each_other() -> None:
    found = settlement()
    ours = Service("assistant", (STABLE, CANARY), 0.05)
    other = Service("other", (STABLE, CANARY), 0.05)
    found.apply([ours, other])
    drawn(found, other, CANARY)
    drawn(found, ours, CANARY).finish(False, False, 0.1)
    assert strata(found, ours, other)[0].canary.requests == 1


def settled(found: Settlement, arm: str) -> int:
    place = found.scored(("assistant", "assistant-00002", "assistant-00001"), 0.05, arm)
    assert place is not None
    return place[1].requests


def world(
    seed: int, slowness: float, requests: int
) -> Iterator[tuple[list[str], tuple[int, int], list[str]]]:
    """Play A/A traffic at 100 requests/s and a share of 5 % through draw and settlement.

    A tenth of the requests is retried (slow, and an error), `slowness` stretches the canary's
    time. After each completion: the arms drawn so far, the settled (stable, canary) requests, the
    arms in the order of completion.
    """
    chance = random.Random(seed)
    balancer = Balancer("key", seed)
    balancer.apply(
        parse_routes(b"""{"generation": 1, "services": {"assistant": {"arms": [
        {"arm": "stable", "revision": "assistant-00001", "percent": 95,
         "endpoints": [{"url": "http://127.0.0.1:1"}]},
        {"arm": "canary", "revision": "assistant-00002", "percent": 5,
         "endpoints": [{"url": "http://127.0.0.1:2"}]}]}}}""")
    )
    found = settlement(settling=100_000)
    found.apply(balancer.services.values())
    service = balancer.services["assistant"]
    running: list[tuple[float, int, Draw, str, bool, float]] = []
    drawn_arms: list[str] = []
    completed: list[str] = []
    now = 0.0
    while len(drawn_arms) < requests or running:
        coming = len(drawn_arms) < requests
        arrival = now + chance.expovariate(100) if coming else math.inf
        while running and running[0][0] <= arrival:
            _, _, draw, name, error, seconds = heapq.heappop(running)
            draw.finish(error, False, seconds)
            completed.append(name)
            yield drawn_arms, (settled(found, "stable"), settled(found, "canary")), completed
        if coming:
            now = arrival
            arm = balancer.draw(service)
            retried = chance.random() < 0.1
            seconds = min(chance.lognormvariate(0, 0.5) + 5 * retried, 60)
            seconds *= slowness if arm.name == "canary" else 1
            draw = drawn(found, service, arm)
            entry = (now + seconds, len(drawn_arms), draw, arm.name, retried, seconds)
            heapq.heappush(running, entry)
            drawn_arms.append(arm.name)


@pytest.mark.parametrize("slowness", [1.0, 4.0], ids=["alike", "canary-4x-slower"])
def test_the_settled_share_is_the_drawn_one_at_every_prefix(slowness: float) -> None:
    for drawn_arms, (stable, canary), _ in world(11, slowness, 6000):
        count = stable + canary
        assert canary == drawn_arms[:count].count("canary")
        bound = 4 * math.sqrt(count * 0.05 * 0.95) + 3
        assert abs(canary - 0.05 * count) <= bound
    assert count == 6000


def test_in_the_order_of_completion_a_slow_canary_looks_rare() -> None:
    shares = []
    for seed in range(20):
        completed = [done for _, _, done in world(seed, 4.0, 800)][-1]
        shares.append(completed[:200].count("canary") / 200)
    assert sum(shares) / len(shares) < 0.02  # of a declared 0.05
