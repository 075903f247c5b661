"""Recall and precision of found spans against labelled ones, type by type, with every miss."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.support.pii_corpus import Labelled

Found = tuple[str, int, int]
EXCERPT_CHARACTERS = 40


@dataclass
class TypeScore:
    """Counts of one type on one corpus."""

    labelled: int = 0
    found: int = 0
    uncovered: int = 0
    predicted: int = 0
    right: int = 0
    misses: list[str] = field(default_factory=list)
    false_positives: list[str] = field(default_factory=list)

    def row(self) -> dict[str, Any]:
        """Return the counts and the two shares; None where nothing was counted."""
        return {
            "labelled": self.labelled,
            "recall": round(self.found / self.labelled, 5) if self.labelled else None,
            "not_covered_by_any_type": self.uncovered,
            "predicted": self.predicted,
            "precision": round(self.right / self.predicted, 5) if self.predicted else None,
            "misses": self.misses,
            "false_positives": self.false_positives,
        }


def score(
    corpus: Sequence[Labelled], found: Iterable[Sequence[Found]], types: Sequence[str]
) -> dict[str, TypeScore]:
    """Count by type. A label is found when a span of its type covers it whole.

    A finding is right when it touches a label of its type; any other is a false positive.
    """
    scores = {name: TypeScore() for name in types}
    for document, spans in zip(corpus, found, strict=True):
        for name, start, end in document.spans:
            if name not in scores:
                continue
            covering = {type_ for type_, first, last in spans if first <= start and end <= last}
            scores[name].labelled += 1
            scores[name].found += name in covering
            scores[name].uncovered += not covering
            if name not in covering:
                scores[name].misses.append(f"{document.locale}: {document.text}")
        for type_, first, last in spans:
            if type_ not in scores:
                continue
            right = any(
                type_ == name and first < end and start < last
                for name, start, end in document.spans
            )
            scores[type_].predicted += 1
            scores[type_].right += right
            if not right:
                lead = document.text[max(0, first - EXCERPT_CHARACTERS) : first]
                scores[type_].false_positives.append(
                    f"{document.locale}: {lead}>>{document.text[first:last]}<<"
                )
    return scores


def pooled(scores: Mapping[str, TypeScore], types: Sequence[str]) -> tuple[float, float]:
    """Return recall and precision over several types together."""
    chosen = [scores[name] for name in types]
    labelled, predicted = sum(s.labelled for s in chosen), sum(s.predicted for s in chosen)
    return (
        sum(s.found for s in chosen) / labelled if labelled else 1.0,
        sum(s.right for s in chosen) / predicted if predicted else 1.0,
    )
