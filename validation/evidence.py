"""How gates word what they found: figures that JSON can hold, and an outcome with its reasons.

Knows no gate.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from core.contracts import Evidence, Figure, Outcome

DECIMALS = 6
Table = Mapping[str, Mapping[str, Figure]]


def figure(value: Figure) -> Figure:
    """Round a float; NaN and infinity become None: a digest cannot hold them."""
    if isinstance(value, float):
        return round(value, DECIMALS) if math.isfinite(value) else None
    return value


def inconclusive(gate: str, reason: str, figures: Mapping[str, Figure] | None = None) -> Evidence:
    """A gate that could not judge, and why. It never passes."""
    return evidence(gate, "inconclusive", f"cannot tell: {reason}", (reason,), figures)


def evidence(
    gate: str,
    outcome: Outcome,
    summary: str,
    reasons: Iterable[str] = (),
    figures: Mapping[str, Figure] | None = None,
    tables: Mapping[str, Table] | None = None,
    report: str | None = None,
) -> Evidence:
    """Build Evidence whose numbers all fit into JSON."""
    return Evidence(
        gate=gate,
        outcome=outcome,
        summary=summary,
        reasons=tuple(reasons),
        figures=_clean(figures or {}),
        tables={
            name: {key: _clean(row) for key, row in table.items()}
            for name, table in (tables or {}).items()
        },
        report=report,
    )


def outcome_of(failures: Sequence[str], doubts: Sequence[str]) -> Outcome:
    """Fail before inconclusive before pass."""
    if failures:
        return "fail"
    return "inconclusive" if doubts else "pass"


def percent(share: float | None) -> str:
    """A share in 0..1 as people read it; "unknown" for None and NaN."""
    if share is None or not math.isfinite(share):
        return "unknown"
    return f"{share:.1%}"


def points(difference: float) -> str:
    """A difference of two shares in percentage points, signed."""
    return f"{difference * 100:+.1f} points"


def _clean(figures: Mapping[str, Figure]) -> dict[str, Figure]:
    return {name: figure(value) for name, value in figures.items()}
