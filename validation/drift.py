"""How the new rows differ from the earlier ones: slices, labels, languages, lengths, new words.

Drift informs: a new domain is normal. It fails only over hard limits. Measured with Evidently.
"""

import os
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Evidence, Figure, Record
from core.words import script, words
from validation.evidence import evidence, inconclusive, outcome_of, percent
from validation.texts import asked, letters

DRIFT = "drift"
FREE_TEXT = "(free text)"


class DriftConfig(BaseModel):
    """Hard limits, over which the gate fails, and the distance from which drift is mentioned.

    Distances of shares are Jensen-Shannon's with natural logarithms: 0 is equal, 0.83 is nothing
    in common; a day that is 83 % one new domain reads 0.67.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    allow_first: bool = Field(
        default=True, description="the very first snapshot, which has no reference, passes"
    )
    slice_distance_max: float = Field(
        default=0.82, gt=0, description="largest distance of the shares of slices"
    )
    label_distance_max: float = Field(
        default=0.82, gt=0, description="largest distance of the shares of labels"
    )
    language_distance_max: float = Field(
        default=0.6, gt=0, description="largest distance of the shares of scripts (languages)"
    )
    length_ratio_max: float = Field(
        default=8.0,
        gt=1,
        description="how many times longer or shorter the median prompt may become (characters)",
    )
    duplicate_share_max: float = Field(
        default=0.5, ge=0, le=1, description="largest share of rows that repeat another new row"
    )
    novelty_max: float = Field(
        default=0.9, ge=0, le=1, description="largest mean share of words never seen before"
    )
    notice_distance: float = Field(
        default=0.1, gt=0, description="distance from which the summary mentions a drift"
    )
    rows_min: int = Field(default=20, ge=1, description="rows of each side needed to judge at all")
    rows_max: int = Field(
        default=20000, ge=100, description="rows of each side looked at (a seeded sample)"
    )
    labels_max: int = Field(default=300, ge=2, description="most frequent labels kept apart")
    seed: int = Field(default=0, description="seed of that sample")


def drift_gate(
    config: DriftConfig,
    current: Sequence[Record],
    reference: Sequence[Record],
    report: Path | None = None,
    first: bool = False,
) -> Evidence:
    """Judge the new rows against earlier ones and write Evidently's HTML report.

    `first` says that there is no earlier snapshot at all; only then may an empty reference pass.
    Cost: about 1 s for 10,000 rows, after some seconds for the first import of Evidently.
    """
    if not reference and first and config.allow_first and len(current) >= config.rows_min:
        return evidence(
            DRIFT, "pass", "first snapshot, no reference", figures={"rows": len(current)}
        )
    for name, rows in (("new", current), ("reference", reference)):
        if len(rows) < config.rows_min:
            problem = f"{len(rows)} {name} rows, {config.rows_min} needed"
            return inconclusive(DRIFT, problem)
    rows, earlier = _sampled(config, current), _sampled(config, reference)
    kept = _frequent_labels(config, rows, earlier)
    vocabulary = {word for record in earlier for word in words(asked(record.messages))}
    ours = describe(rows, kept, vocabulary)
    theirs = describe(earlier, kept, vocabulary)
    distances = _measure(config, ours, theirs, report)
    figures: dict[str, Figure] = {
        "rows": len(current),
        "reference_rows": len(reference),
        **{f"{column}_distance": value for column, value in distances.items()},
        "length_ratio": _ratio(median(ours["length"]), median(theirs["length"])),
        "duplicate_share": _mean(ours["duplicate"]),
        "novelty": _mean(ours["novelty"]),
        "new_label_share": _new_share(ours["label"], theirs["label"]),
        "new_slice_share": _new_share(ours["slice"], theirs["slice"]),
    }
    failures, doubts = _over_limits(config, figures)
    drifted = [name for name, value in distances.items() if value > config.notice_distance]
    summary = (
        f"drifted: {', '.join(drifted) or 'nothing'}; {percent(_share(figures, 'new_slice_share'))}"
        f" of {len(current)} rows in new slices, {percent(_share(figures, 'novelty'))} new words"
    )
    tables = {
        name: _shares(ours[column], theirs[column])
        for name, column in (("slices", "slice"), ("languages", "language"))
    }
    path = str(report) if report is not None else None
    outcome = outcome_of(failures, doubts)
    return evidence(DRIFT, outcome, summary, failures + doubts, figures, tables, path)


def describe(
    rows: Sequence[Record], labels: set[str], vocabulary: set[str]
) -> dict[str, list[Any]]:
    """One list per descriptor: slice, label, language, length (characters), duplicate, novelty.

    `novelty` is the share of a prompt's words that are not in `vocabulary`; every CJK character
    is a word, so Chinese is measured as well as English.
    """
    seen: set[str] = set()
    columns: dict[str, list[Any]] = {name: [] for name in ("duplicate", "novelty")}
    for record in rows:
        text = asked(record.messages)
        key = letters(text)
        columns["duplicate"].append(float(key in seen))
        seen.add(key)
        found = words(text)
        unseen = sum(word not in vocabulary for word in found)
        columns["novelty"].append(unseen / len(found) if found else 0.0)
    columns["slice"] = [record.slice_name for record in rows]
    columns["label"] = [_label(record.response, labels) for record in rows]
    columns["language"] = [script(asked(record.messages)) for record in rows]
    columns["length"] = [float(len(asked(record.messages))) for record in rows]
    return columns


def _measure(
    config: DriftConfig,
    ours: Mapping[str, list[Any]],
    theirs: Mapping[str, list[Any]],
    report: Path | None,
) -> dict[str, float]:
    """Run Evidently: the distance of each column, and the report as HTML."""
    os.environ.setdefault("DO_NOT_TRACK", "true")
    import pandas
    from evidently import DataDefinition, Dataset, Report
    from evidently.metrics import ValueDrift

    shares, numbers = ["slice", "label", "language"], ["length", "novelty"]
    definition = DataDefinition(categorical_columns=shares, numerical_columns=numbers)
    new, old = (
        Dataset.from_pandas(
            pandas.DataFrame({name: columns[name] for name in shares + numbers}),
            data_definition=definition,
        )
        for columns in (ours, theirs)
    )
    metrics = [
        ValueDrift(column=name, method=method, threshold=config.notice_distance)
        for names, method in ((shares, "jensenshannon"), (numbers[:1], "wasserstein"))
        for name in names
    ]
    run = Report(metrics).run(new, old)
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        run.save_html(str(report))
    values = {item["config"]["column"]: item["value"] for item in run.dict()["metrics"]}
    return {name: float(values[name]) for name in (*shares, "length")}


def _over_limits(config: DriftConfig, figures: Mapping[str, Figure]) -> tuple[list[str], list[str]]:
    """Reasons to fail, and reasons to doubt: a limit whose figure could not be computed."""
    limits = {
        "slice_distance": config.slice_distance_max,
        "label_distance": config.label_distance_max,
        "language_distance": config.language_distance_max,
        "length_ratio": config.length_ratio_max,
        "duplicate_share": config.duplicate_share_max,
        "novelty": config.novelty_max,
    }
    failures, doubts = [], []
    for name, limit in limits.items():
        value = _share(figures, name)
        if value > limit:
            failures.append(f"{name.replace('_', ' ')} {value:.2f} is over the limit {limit:g}")
        elif not value <= limit:
            doubts.append(f"{name.replace('_', ' ')} could not be computed")
    return failures, doubts


def _sampled(config: DriftConfig, rows: Sequence[Record]) -> list[Record]:
    if len(rows) <= config.rows_max:
        return list(rows)
    return random.Random(config.seed).sample(list(rows), config.rows_max)


def _frequent_labels(config: DriftConfig, *sides: Sequence[Record]) -> set[str]:
    """Answers that occur again are labels; what is said only once is free text."""
    counts = Counter(record.response for rows in sides for record in rows)
    return {label for label, count in counts.most_common(config.labels_max) if count > 1}


def _label(response: str, labels: set[str]) -> str:
    return response if response in labels else FREE_TEXT


def _shares(
    ours: Sequence[str], theirs: Sequence[str], rows_max: int = 50
) -> dict[str, dict[str, Figure]]:
    new, old = Counter(ours), Counter(theirs)
    names = sorted(new | old, key=lambda name: -max(new[name], old[name]))[:rows_max]
    return {
        name: {"share": new[name] / len(ours), "reference_share": old[name] / len(theirs)}
        for name in sorted(names)
    }


def _new_share(ours: Sequence[str], theirs: Sequence[str]) -> float:
    known = set(theirs)
    return sum(value not in known for value in ours) / len(ours)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _ratio(one: float, other: float) -> float:
    """How many times the larger is the smaller; an empty text counts as one character."""
    low, high = sorted((max(1.0, one), max(1.0, other)))
    return high / low


def _share(figures: Mapping[str, Figure], name: str) -> float:
    value = figures[name]
    return float(value) if isinstance(value, int | float) else float("nan")
