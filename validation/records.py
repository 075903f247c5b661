"""The record contract: which rows may enter the lake, as a Great Expectations suite.

Judges rows in the lake's form (record_id, created_at, slice_name, roles, prompt, response); knows
neither files nor tables.
"""

import functools
import logging
import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Rejection

ROLES = re.compile(r"(system,)?user(,assistant,user)*")
TEXT_FIELDS = ("record_id", "slice_name", "prompt", "response")


class RecordContract(BaseModel):
    """The limits of the record contract."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_characters_max: int = Field(default=20_000, ge=1, description="longest prompt")
    response_characters_max: int = Field(default=20_000, ge=1, description="longest answer")
    name_characters_max: int = Field(default=200, ge=1, description="longest record id and slice")
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
        Rule("time", "the time is not ISO 8601", "in", values=("parsed", "absent")),
        Rule("time_ahead", "the time lies in the future", "between",
             high=contract.future_seconds_max),
    )  # fmt: skip


def describe(row: dict[str, Any], now_seconds: float) -> dict[str, str | float | None]:
    """Return what the rules look at: types, lengths without outer white space, time.

    Values that cannot be measured are None, which only the rule about their type reports.
    """
    described: dict[str, str | float | None] = {}
    for name in TEXT_FIELDS:
        value = row.get(name)
        described[f"{name}_type"] = type(value).__name__
        described[f"{name}_length"] = len(value.strip()) if isinstance(value, str) else None
    roles = row.get("roles")
    fits = isinstance(roles, str) and ROLES.fullmatch(roles) is not None
    described["roles"] = "allowed" if fits else "refused"
    described["time"], seconds = _parsed(row.get("created_at"))
    described["time_ahead"] = None if seconds is None else seconds - now_seconds
    return described


def check_rows(
    rows: Sequence[dict[str, Any]], contract: RecordContract | None = None
) -> list[Rejection]:
    """Return the rows that break the contract, by index, with every broken rule as the reason."""
    if not rows:
        return []
    import pandas as pd

    contract = contract or RecordContract()
    now_seconds = time.time()
    frame = pd.DataFrame([describe(row, now_seconds) for row in rows])
    for rule in rules(contract):
        if rule.kind == "between":
            # A column without any value would be typed `object`, which cannot be compared.
            frame[rule.column] = frame[rule.column].astype("float64")
    result = _definition(contract).run(
        batch_parameters={"dataframe": frame},
        result_format={"result_format": "COMPLETE"},
    )
    reasons: dict[int, list[str]] = {}
    for found in result.results:
        exception = found.exception_info or {}
        if exception.get("raised_exception"):
            raise RuntimeError(f"the record contract failed: {exception['exception_message']}")
        for index in found.result.get("unexpected_index_list") or ():
            reasons.setdefault(int(index), []).append(found.expectation_config.meta["reason"])
    return [Rejection(index, "; ".join(reasons[index])) for index in sorted(reasons)]


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


@functools.cache
def _definition(contract: RecordContract) -> Any:
    """Build the validation once a process: making the context costs more than a batch."""
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    import great_expectations.expectations as gxe

    logging.getLogger("great_expectations.data_context.types.base").setLevel(logging.WARNING)
    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = {"globally": False}
    batch = (
        context.data_sources.add_pandas("records")
        .add_dataframe_asset("rows")
        .add_batch_definition_whole_dataframe("batch")
    )
    suite = gx.ExpectationSuite(name="record contract")
    for rule in rules(contract):
        meta = {"reason": rule.reason}
        if rule.kind == "in":
            expectation = gxe.ExpectColumnValuesToBeInSet(
                column=rule.column, value_set=list(rule.values), meta=meta
            )
        else:
            expectation = gxe.ExpectColumnValuesToBeBetween(
                column=rule.column, min_value=rule.low, max_value=rule.high, meta=meta
            )
        suite.add_expectation(expectation)
    suite = context.suites.add(suite)
    definition = gx.ValidationDefinition(name="records", data=batch, suite=suite)
    return context.validation_definitions.add(definition)
