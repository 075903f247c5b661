"""How one release goes: its shares, times, sizes and who must agree. Values only."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ReleasePlan(BaseModel):
    """Steps and limits of a release. A step is left after both minimums; 100 needs `promote`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shares: tuple[int, ...] = Field(
        default=(5, 15, 50, 100),
        description="canary shares in percent, rising, the last one 100; a first share of 0 loads "
        "the canary for shadow requests before any client sees it",
    )
    approval: Literal["auto", "required"] = Field(
        default="auto", description="whether a person must approve before the canary starts"
    )
    approvals_required: int = Field(
        default=1,
        ge=1,
        le=20,
        description="how many approvers must agree (N of those configured); above 1 the requester "
        "is none of them",
    )
    requester_excluded: bool = Field(
        default=False, description="whether who asked for the release may not approve it"
    )
    approval_timeout_seconds: float = Field(
        default=86400, gt=0, description="an approval not given within this counts as rejected"
    )
    step_seconds_min: float = Field(
        default=300, ge=0, description="shortest time that a share is held"
    )
    step_requests_min: int = Field(
        default=200,
        ge=0,
        description="fewest canary requests before a share is left; none are waited for at 0",
    )
    seconds_max: float = Field(
        default=86400, gt=0, description="a canary undecided after this is rolled back"
    )
    ready_seconds_max: float = Field(
        default=600, gt=0, description="a revision or share not live within this is rolled back"
    )
    lease_seconds: float = Field(
        default=60, gt=0, description="a release nobody advances for this long is rolled back"
    )

    @model_validator(mode="after")
    def _shares_rise_to_all(self) -> Self:
        rising = all(low < high for low, high in zip(self.shares, self.shares[1:], strict=False))
        seen = [share for share in self.shares if share > 0]  # by clients
        if len(seen) < 2 or self.shares[0] < 0 or self.shares[-1] != 100 or not rising:
            raise ValueError(
                "shares must rise to exactly 100 with another above 0 before it, such as 5, 50, 100"
            )
        return self

    @model_validator(mode="after")
    def _approvers_are_asked(self) -> Self:
        if self.needs_approvers and self.approval != "required":
            raise ValueError("approvals_required and requester_excluded need approval: required")
        return self

    @property
    def needs_approvers(self) -> bool:
        """Whether names must be proven: several people, or another person than the requester."""
        return self.approvals_required > 1 or self.requester_excluded
