"""Who is let in, and how much is asked at once: the guard's part of the gateway's limits."""

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from serving.gateway.addresses import networks


class GuardConfig(BaseModel):
    """Keys, bans, long inputs and degradation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    keys_required: bool = Field(
        default=False, description="refuse everybody while keys.yaml is missing"
    )
    trusted_proxies: tuple[str, ...] = Field(
        default=(), description="networks whose X-Forwarded-For is believed"
    )
    ban_strikes_per_minute: int = Field(
        default=100,
        ge=1,
        description="blocked requests or failed authentications of one address; one more bans it",
    )
    filtered_strikes_per_minute: int = Field(
        default=5,
        ge=1,
        description="while the request filter is on, an address with so many is refused until they "
        "are a minute old",
    )
    ban_seconds: float = Field(default=600.0, gt=0, description="how long a ban lasts")
    ban_exempt: tuple[str, ...] = Field(
        default=("127.0.0.0/8", "::1/128"), description="networks that are never banned"
    )
    addresses_max: int = Field(
        default=20_000, ge=1, description="addresses whose strikes are remembered"
    )
    input_tokens_long: int = Field(
        default=5000, ge=1, description="an input is long above this many tokens"
    )
    input_bytes_per_token: float = Field(
        default=4.0, gt=0, description="how a request's length in tokens is estimated"
    )
    input_long_share_max: float = Field(
        default=0.30,
        gt=0,
        le=1,
        description="share of long inputs above which the filter refuses them",
    )
    input_long_share_clear: float = Field(
        default=0.15, ge=0, le=1, description="share below which it lets them pass again"
    )
    input_requests_min: int = Field(
        default=20, ge=1, description="requests within a minute needed to judge their lengths"
    )
    degraded_max_tokens: int = Field(
        default=64, ge=1, description="longest answer while degraded, in tokens"
    )
    degraded_priority_min: int = Field(
        default=5, ge=0, le=9, description="while degraded and busy, lower priorities are refused"
    )
    degraded_busy_share: float = Field(
        default=0.5, ge=0, le=1, description="share of the places in work that counts as busy"
    )
    look_seconds: float = Field(
        default=0.25, gt=0, le=10, description="time between looks at the files of bans and mode"
    )

    @field_validator("trusted_proxies", "ban_exempt")
    @classmethod
    def _are_networks(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        networks(texts)
        return texts

    @model_validator(mode="after")
    def _thresholds_fit(self) -> Self:
        if self.input_long_share_clear > self.input_long_share_max:
            raise ValueError("input_long_share_clear is above input_long_share_max")
        return self
