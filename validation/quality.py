"""Answer quality on evaluation records: candidate against stable, overall, per slice, forgetting.

Knows a model only as a callable that answers prompts.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Answer, Evidence, Figure, Record
from core.words import normal_form, words
from validation.evidence import evidence, inconclusive, outcome_of, percent, points
from validation.intervals import Comparison, compare, token_f1, wilson

QUALITY = "quality"
FORGETTING = "forgetting"


class QualityConfig(BaseModel):
    """How good a candidate must be, and how much worse than stable it may be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: Literal["auto", "exact", "token_f1"] = Field(
        default="auto",
        description="score of one answer; auto: exact match for short wanted answers, "
        "token F1 for free text",
    )
    free_text_words_min: int = Field(
        default=12, ge=1, description="wanted answers with at least so many words are free text"
    )
    score_min: float = Field(
        default=0.5, ge=0, le=1, description="mean score that every candidate must reach"
    )
    tolerance: float = Field(
        default=0.02, ge=0, le=1, description="how much lower than stable's the mean score may be"
    )
    improvement_min: float | None = Field(
        default=None, description="demanded gain of the mean score over stable; empty: none"
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="confidence of each one-sided judgement"
    )
    records_min: int = Field(
        default=50, ge=1, description="evaluation records needed to judge at all"
    )
    slice_records_min: int = Field(
        default=20, ge=1, description="records of a slice needed to judge it by itself"
    )
    slice_tolerance: float = Field(
        default=0.1, ge=0, le=1, description="how much lower than stable's a slice may be"
    )
    new_slice_score_min: float = Field(
        default=0.3, ge=0, le=1, description="score that a slice never seen before must reach"
    )
    batch_prompts: int = Field(default=256, ge=1, description="prompts handed over at once")


class ForgettingConfig(BaseModel):
    """How much a candidate may lose on what stable already knew."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    slice_drop_max: float = Field(
        default=0.06, ge=0, le=1, description="largest drop of one earlier slice"
    )
    drop_max: float = Field(
        default=0.04, ge=0, le=1, description="largest drop of all earlier slices together"
    )
    confidence: float = Field(
        default=0.95, gt=0.5, lt=1, description="confidence that a drop is real"
    )
    records_min: int = Field(
        default=50, ge=1, description="records of earlier slices needed to judge at all"
    )
    slice_records_min: int = Field(
        default=20, ge=1, description="records of a slice needed to judge it by itself"
    )


@dataclass(frozen=True, slots=True)
class Scores:
    """A model's answers to the evaluation records and their scores in 0..1, in record order."""

    answers: tuple[str, ...]
    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Mean score; None without answers."""
        return sum(self.values) / len(self.values) if self.values else None


def score(
    config: QualityConfig,
    records: Sequence[Record],
    answer: Answer,
    on_progress: Callable[[int, int], None] | None = None,
) -> Scores:
    """Ask a model all records, in batches, and score its answers against the wanted ones.

    A model that gives fewer answers than prompts ends it: the gates then see too few scores.
    `on_progress(done, records)` is called after each batch.
    """
    answers: list[str] = []
    for start in range(0, len(records), config.batch_prompts):
        batch = records[start : start + config.batch_prompts]
        given = list(answer([record.messages for record in batch]))
        answers.extend(given)
        if on_progress is not None:
            on_progress(len(answers), len(records))
        if len(given) != len(batch):
            break
    pairs = zip(answers, records, strict=False)
    return Scores(
        tuple(answers), tuple(score_one(config, given, record.response) for given, record in pairs)
    )


def score_one(config: QualityConfig, answer: str, wanted: str) -> float:
    """Score one answer in 0..1 by the configured metric, after normalisation of both texts."""
    wanted_words = words(wanted)
    free_text = len(wanted_words) >= config.free_text_words_min
    if config.metric == "token_f1" or (config.metric == "auto" and free_text):
        return token_f1(words(answer), wanted_words)
    return float(normal_form(answer) == normal_form(wanted))


def quality_gate(
    config: QualityConfig,
    records: Sequence[Record],
    candidate: Scores,
    stable: Scores | None,
    new_slices: Collection[str] = (),
) -> Evidence:
    """Judge the candidate's scores against the floor, and against stable's unless there is none.

    Pass: the floor is reached and the lower end of the difference's interval is within the
    tolerance. Fail: below the floor, or the upper end is outside it. Between: inconclusive.
    `new_slices` are slices that stable was never trained on: they have a floor of their own.
    """
    if problem := _unusable(records, candidate, stable, config.records_min):
        return inconclusive(QUALITY, problem, {"records": len(records)})
    mean = sum(candidate.values) / len(records)
    low, high = wilson(sum(candidate.values), len(records), 2 * config.confidence - 1)
    figures: dict[str, Figure] = {
        "records": len(records),
        "score": mean,
        "score_low": low,
        "score_high": high,
        "score_min": config.score_min,
    }
    failures, doubts = [], []
    if mean < config.score_min:
        failures.append(f"score {percent(mean)} is below the floor of {percent(config.score_min)}")
    if stable is not None:
        whole = compare(candidate.values, stable.values, 2 * config.confidence - 1)
        figures |= _figures(whole) | {"tolerance": config.tolerance}
        failed, doubted = _against_stable(config, whole)
        failures += failed
        doubts += doubted
    slices = _slices(records, candidate, stable, config.confidence)
    failures += _bad_slices(config, slices, set(new_slices), stable is not None)
    rows = {
        name: _row(item, stable is not None, config.confidence) | {"new": name in set(new_slices)}
        for name, item in sorted(slices.items())
    }
    text = f"score {percent(mean)} on {len(records)} records"
    if stable is not None:
        text += f", stable {percent(stable.mean)} ({points(mean - (stable.mean or 0.0))})"
    else:
        text += ", no stable version to compare with"
    outcome = outcome_of(failures, doubts)
    return evidence(QUALITY, outcome, text, failures + doubts, figures, {"slices": rows})


def forgetting_gate(
    config: ForgettingConfig,
    records: Sequence[Record],
    candidate: Scores,
    stable: Scores | None,
    earlier_slices: Collection[str],
) -> Evidence:
    """Judge what the candidate lost on `earlier_slices`, those that stable was trained on.

    A slice fails when its drop is over the budget and significant (exact sign test, shared out
    over the slices); all together fail likewise, and are inconclusive when the interval of their
    drop reaches beyond the budget. Without a stable version nothing can be forgotten: pass.
    """
    if stable is None:
        return evidence(FORGETTING, "pass", "first version: nothing to forget")
    if problem := _unusable(records, candidate, stable, 1):
        return inconclusive(FORGETTING, problem)
    kept = [index for index, item in enumerate(records) if item.slice_name in set(earlier_slices)]
    if len(kept) < config.records_min:
        return inconclusive(
            FORGETTING,
            f"{len(kept)} evaluation records of earlier slices, {config.records_min} needed",
        )
    earlier = [records[index] for index in kept]
    new, old = _chosen(candidate, kept), _chosen(stable, kept)
    slices = _slices(earlier, new, old, config.confidence)
    judged = {name: s for name, s in slices.items() if s.records >= config.slice_records_min}
    alpha = 1 - config.confidence
    failures = [
        f"slice {name} lost {percent(-item.difference)} (budget {percent(config.slice_drop_max)}, "
        f"{item.records} records)"
        for name, item in sorted(judged.items())
        if -item.difference > config.slice_drop_max and item.p_worse < alpha / len(judged)
    ]
    whole = compare(new.values, old.values, 2 * config.confidence - 1)
    doubts = []
    lost = f"earlier slices together lost {percent(-whole.difference)}"
    if -whole.difference > config.drop_max and whole.p_worse < alpha:
        failures.append(f"{lost} (budget {percent(config.drop_max)})")
    elif -whole.low > config.drop_max:
        doubts.append(
            f"{lost}, but {whole.records} records cannot exclude {percent(-whole.low)} "
            f"(budget {percent(config.drop_max)})"
        )
    worst = min(slices, key=lambda name: slices[name].difference)
    figures = _figures(whole) | {
        "drop": -whole.difference,
        "drop_max": config.drop_max,
        "worst_slice": worst,
        "worst_slice_drop": -slices[worst].difference,
        "slices_judged": len(judged),
    }
    rows = {name: _row(item, True, config.confidence) for name, item in sorted(slices.items())}
    text = (
        f"{points(whole.difference)} on {len(slices)} earlier slices, worst {worst} "
        f"{points(slices[worst].difference)}"
    )
    outcome = outcome_of(failures, doubts)
    return evidence(FORGETTING, outcome, text, failures + doubts, figures, {"slices": rows})


def _unusable(
    records: Sequence[Record], candidate: Scores, stable: Scores | None, records_min: int
) -> str:
    """Why these scores cannot be judged; empty when they can."""
    if len(records) < records_min:
        return f"{len(records)} evaluation records, {records_min} needed"
    for name, scores in (("candidate", candidate), ("stable", stable)):
        if scores is not None and len(scores.values) != len(records):
            return f"{name} gave {len(scores.values)} answers to {len(records)} prompts"
    return ""


def _against_stable(config: QualityConfig, whole: Comparison) -> tuple[list[str], list[str]]:
    text = f"{points(whole.difference)} against stable ({points(whole.low)} to {points(whole.high)}"
    text += f" on {whole.records} records)"
    failures, doubts = [], []
    if whole.high < -config.tolerance:
        failures.append(f"{text}: beyond the tolerance of {percent(config.tolerance)}")
    elif whole.low < -config.tolerance:
        doubts.append(
            f"{text}: more evaluation records or a larger tolerance than "
            f"{percent(config.tolerance)} would decide"
        )
    gain = config.improvement_min
    if gain is not None and whole.difference < gain:
        failures.append(f"{text}: an improvement of {percent(gain)} is demanded")
    return failures, doubts


def _bad_slices(
    config: QualityConfig,
    slices: Mapping[str, Comparison],
    new_slices: set[str],
    has_stable: bool,
) -> list[str]:
    judged = {name: s for name, s in slices.items() if s.records >= config.slice_records_min}
    alpha = (1 - config.confidence) / max(1, len(judged))
    found = []
    for name, item in sorted(judged.items()):
        if name in new_slices and item.candidate < config.new_slice_score_min:
            found.append(
                f"new slice {name} scores {percent(item.candidate)}, "
                f"{percent(config.new_slice_score_min)} demanded"
            )
        elif (
            has_stable
            and name not in new_slices
            and -item.difference > config.slice_tolerance
            and item.p_worse < alpha
        ):
            found.append(
                f"slice {name}: {points(item.difference)} against stable, "
                f"{percent(config.slice_tolerance)} allowed"
            )
    return found


def _slices(
    records: Sequence[Record], candidate: Scores, stable: Scores | None, confidence: float
) -> dict[str, Comparison]:
    """Compare per slice; without stable the candidate stands in for it."""
    other = stable or candidate
    groups: dict[str, list[int]] = {}
    for index, record in enumerate(records):
        groups.setdefault(record.slice_name, []).append(index)
    return {
        name: compare(
            _chosen(candidate, indices).values, _chosen(other, indices).values, 2 * confidence - 1
        )
        for name, indices in groups.items()
    }


def _chosen(scores: Scores, indices: Sequence[int]) -> Scores:
    return Scores(
        tuple(scores.answers[index] for index in indices),
        tuple(scores.values[index] for index in indices),
    )


def _figures(item: Comparison) -> dict[str, Figure]:
    return {
        "stable_score": item.stable,
        "difference": item.difference,
        "difference_low": item.low,
        "difference_high": item.high,
        "better": item.wins,
        "worse": item.losses,
        "p_worse": item.p_worse,
    }


def _row(item: Comparison, has_stable: bool, confidence: float) -> dict[str, Figure]:
    low, high = wilson(item.candidate * item.records, item.records, 2 * confidence - 1)
    row: dict[str, Figure] = {
        "records": item.records,
        "candidate": item.candidate,
        "low": low,
        "high": high,
    }
    if has_stable:
        row |= {
            "stable": item.stable,
            "difference": item.difference,
            "difference_low": item.low,
            "difference_high": item.high,
        }
    return row
