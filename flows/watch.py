"""Each minute: is what serves healthy, and is there a release to take back or to start?"""

from typing import Any

from prefect import flow

from tasks.healing import heal
from tasks.recovering import look_around, settle_left, start_next, take_back, take_back_stable
from validation.canary import CanaryConfig
from validation.health_config import HealthConfig


@flow(name="watch", log_prints=False)
def watch(
    canary: CanaryConfig = CanaryConfig(),
    health: HealthConfig = HealthConfig(),
) -> Any:
    """Roll a bad canary back; finish and start what waits for it; then heal what is not well."""
    seen = look_around(canary)
    if seen.bad_release is not None and seen.decision is not None:
        take_back(seen.bad_release, seen.decision)
    if seen.bad_stable:
        take_back_stable(seen.bad_stable)
    if seen.unsettled is not None:
        settle_left(seen.unsettled)
    if seen.startable is not None:
        start_next(seen.startable)
    healed = heal(health)
    return f"{seen.summary}; {healed}"
