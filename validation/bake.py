"""The bake after a promotion: absolute limits for what has just become stable. Pure.

There is no other arm to compare with any more; the version before is the way back.
"""

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import ArmCounters
from core.counters import histogram_quantile

QUANTILE = 0.95


class BakeConfig(BaseModel):
    """How long, and by what, a newly stable version is watched."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: float = Field(
        default=1800, ge=0, description="time after the promotion in which limits take it back"
    )
    error_share_max: float = Field(
        default=0.05, gt=0, le=1, description="largest share of failed requests since promotion"
    )
    p95_seconds_max: float | None = Field(
        default=None, gt=0, description="largest p95 latency since promotion; none by default"
    )
    requests_min: int = Field(
        default=100, ge=1, description="requests since promotion before a limit counts"
    )


def bake_problem(config: BakeConfig, counted: ArmCounters) -> str:
    """Say which limit the version breaks; "" for none, or for too few requests to tell.

    `counted` are the version's counters as the stable arm: they began with its promotion.
    """
    if not counted.requests >= config.requests_min:
        return ""
    share = counted.errors / counted.requests
    if share > config.error_share_max:
        return (
            f"after its promotion {share:.1%} of {counted.requests} requests failed, "
            f"{config.error_share_max:.1%} are allowed"
        )
    limit = config.p95_seconds_max
    latency = histogram_quantile(QUANTILE, counted.latency_buckets, counted.requests)
    if limit is not None and latency > limit:
        return f"after its promotion p95 latency is {latency:.2f} s, {limit:g} s are allowed"
    return ""
