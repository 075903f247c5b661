"""Whether the compiled bundle answers like the reference model that was judged.

Knows both only as callables that answer prompts.
"""

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Evidence, Figure, Record
from core.digests import digest_bytes
from validation.evidence import evidence, inconclusive, percent, points
from validation.quality import Scores

PARITY = "parity"


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


def parity_records(config: ParityConfig, records: Sequence[Record]) -> list[Record]:
    """Choose the records to compare: always the same ones for the same set, from all slices."""

    def place(record: Record) -> str:
        return digest_bytes(record.record_id.encode())

    chosen = sorted(records, key=place)[: config.prompts]
    return sorted(chosen, key=lambda record: (record.slice_name, place(record)))


def parity_gate(config: ParityConfig, bundle: Scores, reference: Scores) -> Evidence:
    """Judge the bundle's greedy answers and scores against the reference's, prompt by prompt."""
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
    return evidence(PARITY, "fail" if reasons else "pass", summary, reasons, figures)
