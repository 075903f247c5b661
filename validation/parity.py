"""Whether the compiled bundle answers like the reference model that was judged.

Knows both only by their answers, scores and logits on the same prompts; starts neither.
"""

import math
from collections.abc import Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Evidence, Figure, Record
from core.digests import digest_bytes
from validation.evidence import evidence, inconclusive, percent, points
from validation.quality import Scores

PARITY = "parity"
TRIES = "precisions"
COMPARED = ("identical_share", "score_difference", "logit_difference")


class ParityConfig(BaseModel):
    """How far a compiled bundle may differ from the reference."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identical_share_min: float = Field(
        default=0.97, ge=0, le=1, description="share of greedy answers that must be identical"
    )
    score_difference_max: float = Field(
        default=0.005, ge=0, le=1, description="largest difference of the mean task scores"
    )
    prompts: int = Field(default=200, ge=1, description="prompts to compare")
    prompts_min: int = Field(default=50, ge=1, description="prompts needed to judge at all")
    logit_difference_max: float = Field(
        default=2.0, gt=0, description="largest difference of a logit on the fixed prompts"
    )
    logit_prompts: int = Field(
        default=8, ge=0, description="prompts whose logits are compared; 0 compares none"
    )


def parity_records(config: ParityConfig, records: Sequence[Record]) -> list[Record]:
    """Choose the records to compare: always the same ones for the same set, from all slices."""

    def place(record: Record) -> str:
        return digest_bytes(record.record_id.encode())

    chosen = sorted(records, key=place)[: config.prompts]
    return sorted(chosen, key=lambda record: (record.slice_name, place(record)))


def logit_records(config: ParityConfig, chosen: Sequence[Record]) -> list[Record]:
    """Choose some of the compared records, evenly spread, for the costlier look at logits."""
    count = min(config.logit_prompts, len(chosen))
    return [chosen[index * len(chosen) // count] for index in range(count)]


def parity_gate(
    config: ParityConfig,
    bundle: Scores,
    reference: Scores,
    logit_differences: Sequence[float] | None = None,
) -> Evidence:
    """Judge the bundle's greedy answers and scores against the reference's, prompt by prompt.

    `logit_differences` are the largest ones of each fixed prompt; None where an engine has none.
    """
    count = len(reference.answers)
    if len(bundle.answers) != count or len(bundle.values) != len(reference.values):
        return inconclusive(
            PARITY, f"the bundle gave {len(bundle.answers)} answers, the reference {count}"
        )
    if count < config.prompts_min or len(reference.values) != count:
        return inconclusive(PARITY, f"{count} prompts compared, {config.prompts_min} needed")
    pairs = zip(bundle.answers, reference.answers, strict=True)
    identical = sum(ours.strip() == theirs.strip() for ours, theirs in pairs) / count
    difference = (sum(bundle.values) - sum(reference.values)) / count
    figures: dict[str, Figure] = {
        "prompts": count,
        "identical_share": identical,
        "identical_share_min": config.identical_share_min,
        "bundle_score": bundle.mean,
        "reference_score": reference.mean,
        "score_difference": difference,
        "score_difference_max": config.score_difference_max,
    }
    summary = (
        f"{percent(identical)} of {count} answers identical to the reference, "
        f"task score {points(difference)}"
    )
    reasons = _answer_reasons(config, identical, difference)
    if logit_differences:
        # max() would lose a NaN that is not the first.
        largest = math.nan if math.isnan(sum(logit_differences)) else max(logit_differences)
        figures["logit_prompts"] = len(logit_differences)
        figures["logit_difference"] = largest
        figures["logit_difference_max"] = config.logit_difference_max
        summary += f", logits within {largest:.3g}"
        if not largest <= config.logit_difference_max:
            reasons.append(
                f"a logit differs by {largest:.3g}, {config.logit_difference_max:g} allowed"
            )
    return evidence(PARITY, "fail" if reasons else "pass", summary, reasons, figures)


def with_tries(
    found: Evidence, precision: str, details: Mapping[str, Figure], earlier: Evidence | None
) -> Evidence:
    """Add the row of this try to those of the refused ones before it, and their reasons.

    `precision` names the try, `details` say more about its bundle, `earlier` is what this returned
    for the last refused one. A pass keeps the refusals in its table.
    """
    rows = dict(earlier.tables[TRIES]) if earlier is not None else {}
    summary = f"{precision}: {found.summary}"
    if rows:
        summary += f"; refused before: {', '.join(rows)}"
    compared = {name: found.figures.get(name) for name in COMPARED}
    why = "; ".join(found.reasons)
    rows[precision] = {"outcome": found.outcome, **compared, **details, "reasons": why}
    reasons = [f"{precision}: {reason}" for reason in found.reasons]
    if earlier is not None and found.outcome != "pass":
        reasons = [*earlier.reasons, *reasons]
    return evidence(
        found.gate, found.outcome, summary, reasons, found.figures, {**found.tables, TRIES: rows}
    )


def _answer_reasons(config: ParityConfig, identical: float, difference: float) -> list[str]:
    reasons = []
    if identical < config.identical_share_min:
        reasons.append(
            f"{percent(identical)} of the answers are identical, "
            f"{percent(config.identical_share_min)} needed"
        )
    if abs(difference) > config.score_difference_max:
        reasons.append(
            f"task score differs by {points(difference)}, "
            f"{points(config.score_difference_max)[1:]} allowed"
        )
    return reasons
