"""Which regions serve, and when one of them is left alone: a part of the gateway's limits."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from yarl import URL

REGIONS_MAX = 16
NAME = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"


class OtherRegion(BaseModel):
    """A region beside this gateway's own, and where each model answers there."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=NAME, description="its name in metrics and answers")
    models: dict[str, tuple[str, ...]] = Field(
        min_length=1, description="addresses of gateways or predictors there, by the model's name"
    )
    weight: float = Field(default=1.0, ge=0, description="its share beside the others' weights")
    concurrency_max: int | None = Field(
        default=None,
        ge=1,
        description="requests in work there at once; further ones wait (429 after)",
    )
    key_file: str = Field(
        default="", description="private file with the API key that the region's gateway asks for"
    )

    @field_validator("models")
    @classmethod
    def _are_addresses(cls, models: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for model, addresses in models.items():
            if not addresses:
                raise ValueError(f"{model} has no address")
            for text in addresses:
                url = URL(text)
                if url.scheme not in ("http", "https") or not url.host or url.query_string:
                    raise ValueError(f"{text!r} is no http:// or https:// address")
        return models


class RegionsConfig(BaseModel):
    """All regions. Without `others` there is one, and nothing here has an effect."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(default="home", pattern=NAME, description="this gateway's own region")
    weight: float = Field(default=1.0, ge=0, description="its own share beside the others'")
    concurrency_max: int | None = Field(
        default=None, ge=1, description="requests in work in its own region at once"
    )
    others: tuple[OtherRegion, ...] = Field(
        default=(), max_length=REGIONS_MAX - 1, description="regions beside its own"
    )
    failover_only: bool = Field(
        default=False,
        description="the first healthy region gets everything: its own, then the others in order",
    )
    affinity: Literal["conversation", "client"] = Field(
        default="conversation",
        description="what stays in its region: conversations that have a name, or each client",
    )
    health_min: float = Field(
        default=0.5, gt=0, le=1, description="health under which a region is left alone"
    )
    judged_seconds: float = Field(
        default=5.0, gt=0, le=60, description="how far back requests count for a region's health"
    )
    judged_requests_min: int = Field(
        default=5, ge=1, description="requests in that time needed to judge by them"
    )
    slow_seconds: float = Field(
        default=10.0, gt=0, description="an answer that begins later counts against the region"
    )
    patience_seconds: float = Field(
        default=0.75, ge=0, le=4, description="how long its health must be too low"
    )
    rest_seconds_first: float = Field(
        default=5.0, gt=0, description="how long it is left alone; doubles while it relapses"
    )
    rest_seconds_max: float = Field(default=60.0, gt=0, description="longest such rest")
    return_seconds: float = Field(
        default=30.0, gt=0, description="time in which its share grows back"
    )
    probe_seconds: float = Field(
        default=0.25, gt=0, le=1, description="time between looks at every server's readiness"
    )
    probes_missed_max: int = Field(
        default=3, ge=1, description="looks without a good answer in a row that eject a server"
    )

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [self.name, *(region.name for region in self.others)]
        if len(set(names)) < len(names):
            raise ValueError(f"regions have the same name: {', '.join(sorted(names))}")
        if not any((self.weight, *(region.weight for region in self.others))):
            raise ValueError("every region has weight 0")
        if self.rest_seconds_max < self.rest_seconds_first:
            raise ValueError("rest_seconds_max is below rest_seconds_first")
        return self

    def places(self, all_places: int) -> list[int]:
        """Requests that each region may have in work, its own first; together `all_places`."""
        given = [self.concurrency_max, *(region.concurrency_max for region in self.others)]
        left = all_places - sum(number for number in given if number is not None)
        open_shares = sum(number is None for number in given)
        equal = left // open_shares if open_shares else 0
        return [equal if number is None else number for number in given]
