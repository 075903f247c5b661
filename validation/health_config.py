"""The health matrix as configuration: what is measured, when it counts, and what is done then.

Values only. validation/health.py decides by them, tasks/healing.py reads the figures and acts.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Metric = Literal[
    "memory_share", "request_rate", "latency_p95_seconds", "long_input_share",
    "illegal_request_share", "quality_drop_share", "client_strikes_per_minute", "predictor_exits",
    "unscanned_bytes", "routing_share_error", "prompt_drift", "daily_run_age_seconds",
    "disk_used_share", "ledger_problems",
]  # fmt: skip
Recovery = Literal[
    "alarm", "scale_out", "degrade", "filter_inputs", "filter_requests", "roll_back", "ban",
    "retrain", "clean_up",
]  # fmt: skip
Mode = Literal["act", "dry_run", "off"]
MOVES_SERVICE: frozenset[str] = frozenset(("scale_out", "roll_back", "retrain"))
"""Recoveries that wait while a release runs: they would change what it compares."""
MINUTE, HOUR, DAY = 60.0, 3600.0, 86400.0


class Condition(BaseModel):
    """One metric and its two thresholds; between them nothing changes (hysteresis)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Metric = Field(description="what is measured; a larger value is always worse")
    above: float = Field(description="breached above this")
    clear: float = Field(description="clear at or below this; not above `above`")

    @model_validator(mode="after")
    def _thresholds_fit(self) -> Self:
        if self.clear > self.above:
            raise ValueError(f"{self.metric}: clear {self.clear:g} is over above {self.above:g}")
        return self


class Row(BaseModel):
    """One line of the matrix: breached when all conditions are, clear when one is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    conditions: tuple[Condition, ...] = Field(min_length=1, description="all together")
    window_seconds: float = Field(
        default=5 * MINUTE, gt=0, description="span that counters and scores are looked at over"
    )
    for_seconds: float = Field(
        default=0, ge=0, description="breached at every look for this long before anything is done"
    )
    clear_seconds: float = Field(
        default=10 * MINUTE,
        ge=0,
        description="clear at every look for this long before the recovery is undone; twice as "
        "long after each relapse",
    )
    recovery: Recovery = Field(description="what is done")
    verify_seconds: float = Field(
        default=5 * MINUTE, ge=0, description="time in which the recovery must have helped"
    )
    cooldown_seconds: float = Field(
        default=10 * MINUTE, ge=0, description="shortest time between two recoveries of this row"
    )
    attempts_max: int = Field(default=1, ge=1, le=10, description="recoveries before escalation")
    escalation: Literal["alarm", "degrade", "roll_back"] = Field(
        default="alarm", description="what is done when no attempt has helped"
    )
    unknown_seconds: float | None = Field(
        default=10 * MINUTE, ge=0, description="no data for this long is an alarm; null: never"
    )
    mode: Mode = Field(default="act", description="act, dry_run (only tell) or off")


def _row(metric: Metric, above: float, clear: float, recovery: Recovery, **more: Any) -> Row:
    condition = Condition(metric=metric, above=above, clear=clear)
    return Row(conditions=(condition,), recovery=recovery, **more)


DEFAULT_ROWS: Mapping[str, Row] = MappingProxyType(
    {
        "memory": _row(
            "memory_share", 0.9, 0.75, "scale_out", for_seconds=5 * MINUTE, attempts_max=2,
            escalation="degrade", clear_seconds=30 * MINUTE,
        ),
        "latency": Row(
            conditions=(
                Condition(metric="latency_p95_seconds", above=1.0, clear=0.7),
                Condition(metric="request_rate", above=100.0, clear=70.0),
            ),
            window_seconds=MINUTE,
            for_seconds=MINUTE,
            recovery="degrade",
        ),
        "long_inputs": _row(
            "long_input_share", 0.3, 0.15, "filter_inputs", window_seconds=MINUTE
        ),
        "illegal_requests": _row("illegal_request_share", 0.2, 0.1, "filter_requests"),
        "quality": _row(
            "quality_drop_share", 0.15, 0.1, "roll_back", window_seconds=7 * DAY,
            verify_seconds=DAY, cooldown_seconds=DAY, unknown_seconds=None,
        ),
        "malicious_client": _row(
            "client_strikes_per_minute", 100, 50, "ban", window_seconds=MINUTE,
            clear_seconds=MINUTE, verify_seconds=2 * MINUTE, cooldown_seconds=0, attempts_max=3,
        ),
        "crash_loop": _row(
            "predictor_exits", 3, 1, "roll_back", window_seconds=10 * MINUTE,
            verify_seconds=15 * MINUTE, cooldown_seconds=30 * MINUTE,
        ),
        "audit_coverage": _row("unscanned_bytes", 0, 0, "alarm", clear_seconds=HOUR),
        "routing_share": _row(
            "routing_share_error", 0.02, 0.01, "alarm", for_seconds=2 * MINUTE
        ),
        "prompt_drift": _row(
            "prompt_drift", 0.2, 0.15, "alarm", window_seconds=DAY, verify_seconds=2 * DAY,
            cooldown_seconds=DAY, unknown_seconds=None,
        ),
        "stale_daily_run": _row(
            "daily_run_age_seconds", 26 * HOUR, 25 * HOUR, "alarm", clear_seconds=0,
            unknown_seconds=HOUR,
        ),
        "disk": _row(
            "disk_used_share", 0.9, 0.85, "clean_up", cooldown_seconds=HOUR, clear_seconds=MINUTE
        ),
        "ledger": _row("ledger_problems", 0, 0, "alarm", unknown_seconds=HOUR),
    }
)  # fmt: skip
"""What is watched unless configuration says otherwise."""


class HealthConfig(BaseModel):
    """All rows, and what their figures and recoveries need to know."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: dict[str, Row] = Field(
        default=dict(DEFAULT_ROWS),
        description="rows by name; fields given here replace those of the row's default, a new "
        "name adds a row",
    )
    dry_run: bool = Field(default=False, description="judge and tell, but do nothing")
    samples_max: int = Field(
        default=60, ge=2, description="looks kept, so that counters can be compared over a window"
    )
    replicas_max: int = Field(
        default=3, ge=1, description="most predictor processes that scaling out makes of a version"
    )
    memory_limit_bytes: int | None = Field(
        default=None,
        ge=1,
        description="resident memory that one predictor may use; empty: what the service's "
        "resources say, else all predictors together against the machine's memory",
    )
    ban_seconds: float = Field(default=600, gt=0, description="length of a ban by this matrix")
    ban_exempt: tuple[str, ...] = Field(
        default=("127.0.0.0/8", "::1/128"), description="networks that are never banned"
    )
    requests_min: int = Field(
        default=20, ge=1, description="requests in a window before shares and latencies count"
    )
    scores_min: int = Field(
        default=50, ge=1, description="scores in each of two weeks before they are compared"
    )
    probes_asked: int = Field(
        default=8, ge=0, le=100, description="labelled probes asked at a time; 0: none"
    )
    probe_seconds: float = Field(default=300, ge=0, description="time between two such times")
    drift_seconds: float = Field(
        default=3600, ge=0, description="time between two looks at live prompts' drift"
    )
    prompts_min: int = Field(
        default=200, ge=1, description="prompts on each side before their drift counts"
    )
    ledger_seconds: float = Field(
        default=600, ge=0, description="time between two checks of the whole ledger"
    )

    @model_validator(mode="before")
    @classmethod
    def _over_defaults(cls, values: Any) -> Any:
        given = values.get("rows") if isinstance(values, dict) else None
        if not isinstance(given, Mapping):
            return values
        merged: dict[str, Any] = dict(DEFAULT_ROWS)
        for name, row in given.items():
            known = DEFAULT_ROWS.get(name)
            if known is not None and isinstance(row, Mapping):
                row = {**known.model_dump(), **row}
            merged[name] = row
        return {**values, "rows": merged}
