"""Whether training rows repeat evaluation rows: exactly, or nearly (sketches, then Jaccard)."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np

from core.contracts import Evidence, Figure, Record
from core.sketches import BANDS, Array, TextSketches, similarity, sketch_texts
from validation.evidence import evidence, inconclusive, percent
from validation.leakage_config import LEAKAGE, LeakageConfig
from validation.texts import asked, letters, shingles

BATCH_ROWS = 5000
MARGIN = 0.06
"""Three standard errors of the estimate by which pairs are chosen for their exact similarity."""
SAME_KEY_MAX = 200
"""Most evaluation rows compared with a training row for one band key."""
PAIRS_CHUNK = 1 << 15


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """The gate's evidence, and the ids of training rows that must be left out (policy remove)."""

    evidence: Evidence
    remove: frozenset[str]

    def clean(self, training: Iterable[Record]) -> list[Record]:
        """The training rows without those to be left out."""
        return [record for record in training if record.record_id not in self.remove]


def leakage_gate(
    config: LeakageConfig, training: Iterable[Record], evaluation: Sequence[Record]
) -> LeakageReport:
    """Find training rows whose prompt repeats an evaluation row's prompt.

    Standing (system) instructions are not compared. Of the pairs at a similarity of 0.85 the
    sketches find more than 99.9 %; every near pair is confirmed by its exact Jaccard similarity.
    Holds the evaluation rows and BATCH_ROWS training rows.
    """
    index = _Evaluation(config, evaluation)
    rows, exact, near = 0, set[str](), set[str]()
    leaked: set[int] = set()
    remaining = iter(training)
    while batch := list(islice(remaining, BATCH_ROWS)):
        rows += len(batch)
        for record, places, is_exact in index.repetitions(batch):
            (exact if is_exact else near).add(record.record_id)
            leaked |= places
    if not rows or not evaluation:
        found = "evaluation" if rows else "training"
        return LeakageReport(inconclusive(LEAKAGE, f"no {found} rows to compare"), frozenset())
    return _judged(config, rows, len(evaluation), exact, near - exact, len(leaked))


def _judged(
    config: LeakageConfig,
    rows: int,
    evaluation_rows: int,
    exact: set[str],
    near: set[str],
    leaked: int,
) -> LeakageReport:
    """Return the verdict on what was found. Pure."""
    remove = frozenset(exact | near)
    leak_share = leaked / evaluation_rows
    removed_share = len(remove) / rows
    figures: dict[str, Figure] = {
        "training_rows": rows,
        "evaluation_rows": evaluation_rows,
        "exact": len(exact),
        "near": len(near),
        "leaked_share": leak_share,
        "leaking_training_share": removed_share,
        "leaked_share_after": 0.0 if config.policy == "remove" else leak_share,
        "policy": config.policy,
    }
    counts = f"{len(exact)} exact and {len(near)} near repetitions of evaluation rows in training"
    reasons = []
    if config.policy == "block" and leak_share > config.leak_share_max:
        reasons.append(
            f"{percent(leak_share)} of the evaluation rows are in training, "
            f"{percent(config.leak_share_max)} allowed"
        )
    if config.policy == "remove" and removed_share > config.removed_share_max:
        reasons.append(
            f"{percent(removed_share)} of the training rows repeat evaluation rows, "
            f"{percent(config.removed_share_max)} may be removed"
        )
    removed = config.policy == "remove" and not reasons
    summary = f"{counts}{', left out' if removed and remove else ''}"
    outcome = evidence(LEAKAGE, "fail" if reasons else "pass", summary, reasons, figures)
    return LeakageReport(outcome, remove if removed else frozenset())


class _Evaluation:
    """The evaluation rows' prompts, ready for comparison."""

    def __init__(self, config: LeakageConfig, evaluation: Sequence[Record]) -> None:
        self._width, self._least = config.shingle_characters, config.similarity_min
        self._texts = [letters(asked(record.messages)) for record in evaluation]
        self._known: dict[str, set[int]] = defaultdict(set)
        for place, (record, text) in enumerate(zip(evaluation, self._texts, strict=True)):
            self._known["prompt " + text].add(place)
            self._known["id " + record.record_id].add(place)
        self._sketches = self._sketched(self._texts)
        flat = self._sketches.bands.ravel()
        self._owners = np.argsort(flat)
        self._keys = flat[self._owners]
        self._owners //= BANDS
        self._shingles = cache(lambda place: shingles(self._texts[place], self._width))

    def repetitions(self, batch: Sequence[Record]) -> Iterator[tuple[Record, set[int], bool]]:
        """Yield each repeating row, the places of the rows it repeats, and whether exactly."""
        texts = [letters(asked(record.messages)) for record in batch]
        rest: list[int] = []
        for place, (record, text) in enumerate(zip(batch, texts, strict=True)):
            ids = self._known.get("id " + record.record_id, set())
            places = self._known.get("prompt " + text, set()) | ids
            if places:
                yield record, places, True
            elif len(text) >= self._width:
                rest.append(place)
        near: dict[int, set[int]] = defaultdict(set)
        for own, theirs in self._candidates(self._sketched([texts[place] for place in rest])):
            ours = shingles(texts[rest[own]], self._width)
            if _jaccard(ours, self._shingles(theirs)) >= self._least:
                near[rest[own]].add(theirs)
        for place, places in near.items():
            yield batch[place], places, False

    def _sketched(self, texts: Sequence[str]) -> TextSketches:
        return sketch_texts(texts, self._width, self._width)

    def _candidates(self, sketches: TextSketches) -> Iterator[tuple[int, int]]:
        """Yield pairs (row of the batch, evaluation row) that the sketches hold for similar."""
        first = np.searchsorted(self._keys, sketches.bands.ravel(), side="left")
        last = np.searchsorted(self._keys, sketches.bands.ravel(), side="right")
        counts = np.minimum(last - first, SAME_KEY_MAX)
        ours: Array = np.repeat(np.arange(len(counts)) // BANDS, counts)
        starts = np.repeat(first - np.cumsum(counts) + counts, counts)
        theirs = self._owners[starts + np.arange(len(starts))]
        pairs = np.unique(np.stack([ours, theirs], axis=1), axis=0)
        for start in range(0, len(pairs), PAIRS_CHUNK):
            one, other = pairs[start : start + PAIRS_CHUNK].T
            alike = similarity(sketches.signatures[one], self._sketches.signatures[other])
            near = alike >= self._least - MARGIN
            yield from zip(one[near].tolist(), other[near].tolist(), strict=True)


def _jaccard(one: set[str], other: set[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
