"""The gateway's limits and time-outs: one frozen value, from a YAML file when one is given."""

from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import ConfigurationError
from observability.audit import AuditConfig
from serving.gateway.guard_config import GuardConfig
from serving.gateway.region_config import RegionsConfig


class GatewayConfig(BaseModel):
    """Every number that the gateway decides by. Times are seconds, sizes bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    connections_max: int = Field(
        default=4096, ge=1, description="open client connections; one more is answered 429"
    )
    idle_seconds_max: float = Field(
        default=75.0, gt=0, description="a connection without a request is closed after this"
    )
    head_seconds_max: float = Field(
        default=10.0, gt=0, description="time for a request's head to arrive (408 after)"
    )
    head_bytes_max: int = Field(
        default=32768, ge=1024, description="largest request head: line and headers (431 above)"
    )
    body_seconds_max: float = Field(
        default=20.0, gt=0, description="time for a request's body to arrive (408 after)"
    )
    body_bytes_max: int = Field(
        default=1 << 20, ge=1024, description="largest request body (413 above)"
    )
    bodies_bytes_max: int = Field(
        default=256 << 20, ge=1024, description="all request bodies in memory (429 above)"
    )
    concurrency_max: int = Field(
        default=256, ge=1, description="requests in work at once; further ones wait"
    )
    waiting_max: int = Field(
        default=512, ge=0, description="requests that may wait for a place (429 above)"
    )
    waiting_seconds_max: float = Field(
        default=10.0, gt=0, description="longest wait for a place (429 after)"
    )
    deadline_seconds: float = Field(
        default=60.0,
        gt=0,
        description="longest time for a request; a client may ask for less (504 after)",
    )
    hold_seconds_max: float = Field(
        default=30.0, ge=0, description="longest wait for a ready endpoint (503 after)"
    )
    connect_seconds_max: float = Field(
        default=1.0, gt=0, description="time for a connection to an endpoint"
    )
    silence_seconds_max: float = Field(
        default=45.0, gt=0, description="longest silence of an endpoint, its first byte included"
    )
    sends_max: int = Field(
        default=2, ge=1, le=5, description="times that one request may be sent to an endpoint"
    )
    endpoint_concurrency_max: int = Field(
        default=256,
        ge=1,
        description="requests that one endpoint may have at once; further ones wait for a place",
    )
    endpoint_waiting_max: int = Field(
        default=64, ge=0, description="requests that may wait for an arm's endpoints (429 above)"
    )
    retry_share_max: float = Field(
        default=0.2,
        ge=0,
        le=1,
        description="share of a service's requests in 10 s that may be sent again after work on "
        "them may have begun",
    )
    retries_per_second_min: float = Field(
        default=10.0, ge=0, description="so many a second may be sent again in any case"
    )
    ramp_seconds: float = Field(
        default=10.0,
        ge=0,
        description="time in which an endpoint that came back gets its whole share again",
    )
    hedge_seconds: float = Field(
        default=0.0,
        ge=0,
        description="a deterministic request without an answer for this long is sent to a second "
        "endpoint as well; 0: never. Not while a canary runs",
    )
    buffer_bytes_max: int = Field(
        default=1 << 20,
        ge=0,
        description="an answer up to this size is sent when it is whole, so that it can be retried",
    )
    eject_seconds_first: float = Field(
        default=0.5, gt=0, description="rest of a failed endpoint before its readiness is asked"
    )
    eject_seconds_max: float = Field(
        default=2.0, gt=0, description="longest rest; it doubles while the endpoint stays unready"
    )
    probe_seconds_max: float = Field(default=1.0, gt=0, description="time for a readiness answer")
    suspect_seconds: float = Field(
        default=2.0, gt=0, description="an endpoint silent for this long is asked for readiness"
    )
    hung_probes: int = Field(
        default=4, ge=1, description="unanswered probes in a row that make a silent endpoint hung"
    )
    routes_poll_seconds: float = Field(
        default=0.025, gt=0, le=1, description="time between looks at the routes file"
    )
    drain_seconds_max: float = Field(
        default=30.0, gt=0, description="after SIGTERM, longest wait for running requests"
    )
    cache_seconds: float = Field(
        default=300.0,
        ge=0,
        description="time that an answer to a deterministic request is given again; 0: never",
    )
    cache_bytes_max: int = Field(
        default=64 << 20, ge=0, description="kept answers in memory, all together"
    )
    cache_url: str = Field(
        default="",
        pattern=r"^((redis|rediss|unix)://\S+)?$",
        description="a Redis that keeps the answers instead, for several gateways; its password "
        "comes from SERIN_CACHE_PASSWORD",
    )
    cache_call_seconds_max: float = Field(
        default=0.1, gt=0, description="longest wait for that Redis; it then rests for a second"
    )
    policy_poll_seconds: float = Field(
        default=0.25,
        gt=0,
        le=1,
        description="time between asking predictors for the safety policy that they apply",
    )
    policy_seconds_max: float = Field(
        default=2.0,
        gt=0,
        description="time that what they said counts; after it no kept answer is given",
    )
    series_max: int = Field(
        default=32, ge=2, description="revisions whose counters are kept after they left the routes"
    )
    series_keep_seconds: float = Field(
        default=3600.0, ge=0, description="time that the counters of such a revision are kept"
    )
    settling_max: int = Field(
        default=200_000,
        ge=1,
        description="draws of a service that may wait to be settled in order; while there are so "
        "many (a rate times the deadline), further draws are no observations",
    )
    conversations_max: int = Field(
        default=200_000,
        ge=0,
        description="conversations remembered per comparison, so that each is observed once; "
        "further ones are no observations",
    )
    scored_max: int = Field(
        default=200_000,
        ge=1,
        description="scored answers remembered per comparison, so that each counts once "
        "(503 above)",
    )
    conversation_key: str = Field(
        default="serin",
        description="key of the hash that sends a conversation to an arm; a secret keeps "
        "clients from choosing theirs",
    )
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of stable's answered requests that are sent to the canary as well",
    )
    shadow_concurrency_max: int = Field(
        default=2, ge=1, le=64, description="shadow calls in work at once, scoring included"
    )
    shadow_waiting_max: int = Field(
        default=16,
        ge=0,
        le=1024,
        description="shadow calls that may wait; further ones are not made",
    )
    shadow_seconds_max: float = Field(
        default=10.0, gt=0, description="longest time for a shadow call"
    )
    shadow_busy_max: int = Field(
        default=4, ge=0, description="client requests in work at the canary above which it rests"
    )
    shadow_bytes_max: int = Field(
        default=65_536, ge=1024, description="largest request with its answer that is shadowed"
    )
    shadow_prompts_max: int = Field(
        default=100_000,
        ge=0,
        description="scored prompts remembered per comparison, so that each counts once; further "
        "ones are no observations",
    )
    shadow_scorer_url: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="where {messages, answer} is posted for a {score} from 0 to 1",
    )
    shadow_scorer_seconds_max: float = Field(
        default=5.0, gt=0, description="longest time for a score"
    )
    prompt_share: float = Field(
        default=0.1,
        ge=0,
        le=1,
        description="share of requests whose prompts are counted by script, length and hashed "
        "words, all prompts together, so that a drift is seen; 0: none",
    )
    guard: GuardConfig = Field(
        default=GuardConfig(), description="keys, bans, long inputs and degradation"
    )
    regions: RegionsConfig = Field(
        default=RegionsConfig(), description="where else the models are served"
    )
    audit: AuditConfig = Field(
        default=AuditConfig(), description="how answers of the gateway's own are recorded"
    )
    seed: int | None = Field(default=None, description="seed of the draw, for tests only")

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        if self.eject_seconds_max < self.eject_seconds_first:
            raise ValueError("eject_seconds_max is below eject_seconds_first")
        if self.bodies_bytes_max < self.body_bytes_max:
            raise ValueError("bodies_bytes_max is below body_bytes_max")
        places = self.regions.places(self.concurrency_max)
        if min(places) < 1 or sum(places) > self.concurrency_max:
            raise ValueError("the regions' concurrency_max do not fit into concurrency_max")
        return self


def read_config(file: Path | None) -> GatewayConfig:
    """Return the configuration in `file` (YAML), or the defaults without one.

    Raises ConfigurationError naming the file and the field that is wrong.
    """
    if file is None:
        return GatewayConfig()
    try:
        values: Any = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"--config {file} must hold one mapping of names to values")
    try:
        return GatewayConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "values"
        raise ConfigurationError(f"--config {file}, {name}: {first['msg']}") from error
