"""The record contract: which rows may enter the lake, judged on every row.

Judges rows in the lake's form (record_id, created_at, slice_name, roles, prompt, response,
language); knows neither files nor tables. The same rules as a suite: contract_report.py.
"""

import functools
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Rejection

ROLES = re.compile(r"(system,)?user(,assistant,user)*")
CONTENT_FIELDS = ("prompt", "response")
TEXT_FIELDS = ("record_id", "slice_name", *CONTENT_FIELDS)
UNDECODED = "\ufffd"


class RecordContract(BaseModel):
    """The limits of the record contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_characters_max: int = Field(default=20_000, ge=1, description="longest prompt")
    response_characters_max: int = Field(default=20_000, ge=1, description="longest answer")
    name_characters_max: int = Field(default=200, ge=1, description="longest record id and slice")
    undecoded_share_max: float = Field(
        default=0.01, ge=0, le=1, description="largest share of U+FFFD characters in a text"
    )
    languages: tuple[str, ...] = Field(
        default=(), description="languages that rows may have (en, zh, ...); empty: any"
    )
    future_seconds_max: int = Field(
        default=300, ge=0, description="how far a time may lie ahead of this machine's clock"
    )


@dataclass(frozen=True, slots=True)
class Rule:
    """One expectation on a described column; `reason` is what a rejected row's owner reads."""

    column: str
    reason: str
    kind: Literal["in", "between"]
    low: float | None = None
    high: float | None = None
    values: tuple[str, ...] = ()


def rules(contract: RecordContract) -> tuple[Rule, ...]:
    """Return the rules in the order in which a row's reasons are told."""
    limits = {
        "record_id": contract.name_characters_max,
        "slice_name": contract.name_characters_max,
        "prompt": contract.prompt_characters_max,
        "response": contract.response_characters_max,
    }
    found = [
        Rule("roles", "the turns are not user and assistant in turn", "in", values=("allowed",))
    ]
    for name in TEXT_FIELDS:
        label = name.replace("_", " ")
        found += [
            Rule(f"{name}_type", f"the {label} is missing or not text", "in", values=("str",)),
            Rule(f"{name}_length", f"the {label} is empty", "between", low=1),
            Rule(
                f"{name}_length",
                f"the {label} is longer than {limits[name]} characters",
                "between",
                high=limits[name],
            ),
        ]
    return (
        *found,
        Rule("nul", "the text holds NUL characters", "in", values=("absent",)),
        Rule("undecoded_share", "the text was decoded wrongly (replacement characters)", "between",
             high=contract.undecoded_share_max),
        *([Rule("language", f"the language is none of {', '.join(contract.languages)}", "in",
                values=contract.languages)] if contract.languages else []),
        Rule("time", "the time is not ISO 8601", "in", values=("parsed", "absent")),
        Rule("time_ahead", "the time lies in the future", "between",
             high=contract.future_seconds_max),
    )  # fmt: skip


def describe(rows: Sequence[dict[str, Any]], now_seconds: float) -> dict[str, list[Any]]:
    """Return what the rules look at, by column: types, lengths without outer white space, time.

    Values that cannot be measured are None, which only the rule about their type reports.
    """
    columns: dict[str, list[Any]] = {}
    for name in TEXT_FIELDS:
        values = [row.get(name) for row in rows]
        columns[f"{name}_type"] = [type(value).__name__ for value in values]
        columns[f"{name}_length"] = [
            len(value.strip()) if isinstance(value, str) else None for value in values
        ]
    columns["roles"] = [_roles(row.get("roles")) for row in rows]
    times = [_parsed(row.get("created_at")) for row in rows]
    columns["time"] = [state for state, _ in times]
    columns["time_ahead"] = [
        None if seconds is None else seconds - now_seconds for _, seconds in times
    ]
    texts = [[row.get(name) for name in CONTENT_FIELDS] for row in rows]
    whole = "".join([text for pair in texts for text in pair if isinstance(text, str)])
    columns["nul"] = ["absent"] * len(rows)
    if "\0" in whole:
        columns["nul"] = ["present" if any(map(_has_nul, pair)) else "absent" for pair in texts]
    columns["undecoded_share"] = [0.0] * len(rows)
    if UNDECODED in whole:
        columns["undecoded_share"] = [max(map(_undecoded_share, pair)) for pair in texts]
    columns["language"] = [str(row.get("language") or "") for row in rows]
    return columns


def check_rows(
    rows: Sequence[dict[str, Any]],
    now_seconds: float | None = None,
    contract: RecordContract | None = None,
) -> list[Rejection]:
    """Return the rows that break the contract, by index, with every broken rule as the reason."""
    if not rows:
        return []
    now = time.time() if now_seconds is None else now_seconds
    return judge(describe(rows, now), contract or RecordContract())


def judge(columns: Mapping[str, Sequence[Any]], contract: RecordContract) -> list[Rejection]:
    """Return the described rows that break a rule, by index."""
    reasons: dict[int, list[str]] = {}
    for rule in rules(contract):
        for index in broken(rule, columns[rule.column]):
            reasons.setdefault(index, []).append(rule.reason)
    return [Rejection(index, "; ".join(reasons[index])) for index in sorted(reasons)]


def broken(rule: Rule, column: Sequence[Any]) -> list[int]:
    """Return where a described column breaks a rule; None breaks no rule about its size."""
    if rule.kind == "in":
        if set(column) <= set(rule.values):
            return []
        return [index for index, value in enumerate(column) if value not in rule.values]
    sizes = np.array(column, dtype=np.float64)
    outside = np.zeros(len(sizes), dtype=bool)
    if rule.low is not None:
        outside |= sizes < rule.low
    if rule.high is not None:
        outside |= sizes > rule.high
    return [int(index) for index in np.flatnonzero(outside)]


@functools.lru_cache(maxsize=4096)
def _fits(roles: str) -> str:
    return "allowed" if ROLES.fullmatch(roles) else "refused"


def _roles(roles: Any) -> str:
    return _fits(roles) if isinstance(roles, str) else "refused"


def _has_nul(value: Any) -> bool:
    return isinstance(value, str) and "\0" in value


def _undecoded_share(value: Any) -> float:
    if not isinstance(value, str) or UNDECODED not in value:
        return 0.0
    return value.count(UNDECODED) / len(value)


def _parsed(value: Any) -> tuple[str, float | None]:
    if value is None or value == "":
        return "absent", None
    if not isinstance(value, str):
        return "refused", None
    try:
        moment = datetime.fromisoformat(value)
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return "parsed", aware.timestamp()
    except (ValueError, OverflowError):
        return "refused", None
