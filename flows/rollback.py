"""An operator's rollback: all traffic back to the version that served before."""

from typing import Any

from prefect import flow

from tasks.backing_up import back_up_change
from tasks.releasing import HELD_STATES, begin_rollback, settle_release, turn_rollback
from tasks.reporting import ended_release, open_release


@flow(name="rollback", log_prints=False)
def rollback(reason: str, to_version: str | None = None) -> Any:
    """Take the active release back, or return to an earlier promoted version (the last one)."""
    current = begin_rollback(reason, to_version)
    while current.state in HELD_STATES:
        current = turn_rollback(current.release_id)
    run = open_release(current.release_id)
    settle_release(run, current.release_id)
    back_up_change(run, current.release_id)
    return ended_release(run, current.release_id)
