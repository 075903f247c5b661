"""One release: the canary's steps until it is stable or everything is as it was."""

from typing import Any

from prefect import flow

from tasks.approving import hear_answer, may_ask
from tasks.backing_up import back_up_change
from tasks.releasing import HELD_STATES, begin_release, settle_release, turn_release
from tasks.reporting import ended_release, open_release
from validation.canary import CanaryConfig


@flow(name="release", log_prints=False)
def release(
    release_id: str,
    canary: CanaryConfig = CanaryConfig(),
) -> Any:
    """Move one candidate to stable through its canary; whatever happens is in the ledger."""
    run = open_release(release_id)
    current = begin_release(run, release_id)
    while may_ask(current):
        current = hear_answer(run, current)
    while current.state in HELD_STATES:
        current = turn_release(release_id, canary)
    settle_release(run, release_id)
    back_up_change(run, release_id)
    return ended_release(run, release_id)
