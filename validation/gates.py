"""All gates' thresholds in one configuration, their findings in one Verdict, and it on one page."""

from collections.abc import Iterable, Mapping, Sequence

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Evidence, Figure, Outcome, Verdict
from validation.drift import DRIFT, DriftConfig
from validation.evidence import inconclusive
from validation.leakage_config import LEAKAGE, LeakageConfig
from validation.parity import PARITY, ParityConfig
from validation.quality import FORGETTING, QUALITY, ForgettingConfig, QualityConfig
from validation.safety import SAFETY, SafetyConfig

REQUIRED_GATES = (DRIFT, LEAKAGE, QUALITY, FORGETTING, PARITY, SAFETY)
MARKS: Mapping[Outcome, str] = {"pass": "pass", "fail": "**fail**", "inconclusive": "**unclear**"}
TABLE_ROWS_MAX = 60


class GatesConfig(BaseModel):
    """What a candidate is judged by before it is registered."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    drift: DriftConfig = Field(default_factory=DriftConfig, description="new data against earlier")
    leakage: LeakageConfig = Field(
        default_factory=LeakageConfig, description="evaluation rows among the training rows"
    )
    quality: QualityConfig = Field(
        default_factory=QualityConfig, description="answers against stable's"
    )
    forgetting: ForgettingConfig = Field(
        default_factory=ForgettingConfig, description="losses on what stable already knew"
    )
    parity: ParityConfig = Field(
        default_factory=ParityConfig, description="compiled bundle against the reference"
    )
    safety: SafetyConfig = Field(default_factory=SafetyConfig, description="red-team probes")
    answer_tokens_max: int = Field(
        default=128, ge=1, le=4096, description="longest answer asked for, in tokens"
    )
    required: tuple[str, ...] = Field(
        default=REQUIRED_GATES,
        min_length=1,
        description="gates that must have been judged; without its evidence nothing passes",
    )


def combine(findings: Iterable[Evidence], required: Sequence[str] = REQUIRED_GATES) -> Verdict:
    """Judge all findings together: one failure fails, one doubt or missing gate is inconclusive.

    Gates that are not in `required` count as well. With nothing required and nothing found the
    verdict is inconclusive.
    """
    found = list(findings)
    known = {item.gate for item in found}
    found += [
        inconclusive(gate, "the gate was not judged") for gate in required if gate not in known
    ]
    if not found:
        found = [inconclusive("gates", "no gate was judged")]
    outcomes = {item.outcome for item in found}
    outcome: Outcome = "pass"
    if outcomes != {"pass"}:
        outcome = "fail" if "fail" in outcomes else "inconclusive"
    return Verdict(outcome, tuple(found))


def as_markdown(verdict: Verdict) -> str:
    """Write a verdict for people: one row per gate, the reasons, then each gate's tables."""
    lines = [
        f"## Verdict: {verdict.outcome}",
        "",
        "| gate | outcome | finding |",
        "|---|---|---|",
        *(
            f"| {_cell(item.gate)} | {MARKS[item.outcome]} | {_cell(item.summary)} |"
            for item in verdict.evidence
        ),
    ]
    if verdict.reasons:
        lines += ["", "### Reasons", "", *(f"- {_cell(reason)}" for reason in verdict.reasons)]
    for item in verdict.evidence:
        for name, table in item.tables.items():
            if table:
                lines += ["", f"### {_cell(item.gate)}: {_cell(name)}", "", *_table(table)]
        if item.report is not None:
            lines += ["", f"Report of {_cell(item.gate)}: `{item.report}`"]
    lines += ["", f"Digest `{verdict.digest}`", ""]
    return "\n".join(lines)


def _table(table: Mapping[str, Mapping[str, Figure]]) -> list[str]:
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    head = ["", *(column.replace("_", " ") for column in columns)]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name, row in list(table.items())[:TABLE_ROWS_MAX]:
        cells = [_cell(name), *(_figure(row.get(column)) for column in columns)]
        lines.append(f"| {' | '.join(cells)} |")
    if len(table) > TABLE_ROWS_MAX:
        lines.append(f"| and {len(table) - TABLE_ROWS_MAX} more |{' |' * len(columns)}")
    return lines


def _figure(value: Figure) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}"
    return _cell(str(value))


def _cell(text: str) -> str:
    """Text that cannot break out of a table's cell or a line."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
