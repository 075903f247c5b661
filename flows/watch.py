"""Each minute: is what serves healthy, and is there a release to take back or to start?"""

from typing import Any

from prefect import flow
from prefect.states import Failed, State

from tasks.healing import heal
from tasks.recovering import look_around, settle_left, start_next, take_back, take_back_stable
from validation.canary import CanaryConfig
from validation.health_config import HealthConfig


@flow(name="watch", log_prints=False)
def watch(
    canary: CanaryConfig = CanaryConfig(),
    health: HealthConfig = HealthConfig(),
) -> Any:
    """Roll a bad canary back; heal what is not well; then finish and start what waits.

    A step that fails, such as one that needs a registry that is away, keeps no other from being
    done; the run then ends as failed and says which.
    """
    looked: State[Any] = look_around(canary, return_state=True)
    seen = looked.result() if looked.is_completed() else None
    ended = [looked]
    if seen is not None and seen.bad_release is not None and seen.decision is not None:
        ended.append(take_back(seen.bad_release, seen.decision, return_state=True))
    if seen is not None and seen.bad_stable:
        ended.append(take_back_stable(seen.bad_stable, return_state=True))
    ended.append(healed := heal(health, return_state=True))
    if seen is not None and seen.unsettled is not None:
        ended.append(settle_left(seen.unsettled, return_state=True))
    if seen is not None and seen.startable is not None:
        ended.append(start_next(seen.startable, return_state=True))
    failed = [str(state.message) for state in ended if not state.is_completed()]
    if failed or seen is None:
        return Failed(message="; ".join(failed))
    return f"{seen.summary}; {healed.result()}"
