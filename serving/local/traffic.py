"""KServe's traffic rules in Knative mode: percent and history in, shares and arms out. Pure.

Read from KServe's ksvc_reconciler.go (createKnativeService) and inference_service_status.go
(PropagateStatus); its quirks are kept, because a cluster has them too.
"""

from collections.abc import Sequence
from dataclasses import replace

from serving.local.revisions import ServiceState, Share


def shares(state: ServiceState, percent: int | None) -> tuple[Share, ...]:
    """Return the traffic that spec.canaryTrafficPercent asks for now.

    A percent counts only once a revision has been rolled out fully. "Latest" is the latest *ready*
    revision, so while a new one loads both entries may name the same revision.
    """
    if not state.latest_ready:
        return ()
    if percent is None or not state.latest_rolledout:
        return (Share(state.latest_ready, 100, latest=True),)
    latest = Share(state.latest_ready, percent, latest=True)
    if percent == 100:
        return (latest,)
    return (latest, Share(state.latest_rolledout, 100 - percent, latest=False))


def with_targets(state: ServiceState, percent: int | None) -> ServiceState:
    """Count a Knative generation when the template or the traffic targets changed."""
    wanted: tuple[Share, ...] = (
        Share("", 100, latest=True),
        Share(state.latest_created, 0, latest=False),
    )
    if percent is not None and state.latest_rolledout:
        rest = Share(state.latest_rolledout, 100 - percent, latest=False)
        wanted = (Share("", percent, latest=True), rest, wanted[-1])
    if wanted == state.targets:
        return state
    return replace(state, targets=wanted, knative_generation=state.knative_generation + 1)


def with_applied(state: ServiceState, applied: tuple[Share, ...]) -> ServiceState:
    """Record traffic that the gateway applied, and who is rolled out by it.

    100 % on the latest ready revision rolls it out. A percent below 100 while the rolled-out
    revision is also the latest one sends the rest to the revision rolled out before it.
    """
    state = replace(state, traffic=applied)
    latest = next((share for share in applied if share.latest), None)
    if latest is None or latest.revision != state.latest_ready:
        return state
    if state.latest_rolledout != state.latest_ready:
        if latest.percent == 100:
            state = replace(
                state,
                previous_rolledout=state.latest_rolledout,
                latest_rolledout=state.latest_ready,
            )
        return state
    total = sum(share.percent for share in applied if share.revision == latest.revision)
    promoted = state.latest_ready == state.latest_created
    if promoted and latest.percent < 100 and total == 100 and state.previous_rolledout:
        return replace(state, latest_rolledout=state.previous_rolledout)
    return state


def arms(applied: Sequence[Share]) -> tuple[tuple[str, str, int], ...]:
    """Return (arm, revision, percent) for the gateway: stable first, then canary if there is one.

    Two entries on one revision are one arm. The latest revision stays a canary at 0 %.
    """
    if not applied:
        return ()
    latest = next(share for share in applied if share.latest)
    rest = next((share for share in applied if not share.latest), None)
    if rest is None or rest.revision == latest.revision:
        return (("stable", latest.revision, 100),)
    return (
        ("stable", rest.revision, rest.percent),
        ("canary", latest.revision, latest.percent),
    )
