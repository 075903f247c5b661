"""Whether training rows repeat evaluation rows: exactly, or nearly (MinHash, then Jaccard)."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from core.contracts import Evidence, Figure, Record
from validation.evidence import evidence, inconclusive, percent
from validation.texts import asked, letters, shingles

LEAKAGE = "leakage"
PERMUTATIONS = 128
BAND_ROWS = 8
SEED = 42
BATCH_ROWS = 5000


class LeakageConfig(BaseModel):
    """What counts as a repetition, and what happens to training rows that repeat evaluation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    policy: Literal["remove", "block"] = Field(
        default="remove",
        description="remove: leaked rows are left out of training; block: the gate fails",
    )
    similarity_min: float = Field(
        default=0.85,
        ge=0.6,
        le=1,
        description="Jaccard similarity of character shingles from which prompts are the same",
    )
    shingle_characters: int = Field(default=3, ge=2, le=9, description="length of a shingle")
    leak_share_max: float = Field(
        default=0.001, ge=0, le=1, description="share of evaluation rows leaked (policy block)"
    )
    removed_share_max: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="share of training rows that may be removed before the gate fails",
    )


@dataclass(frozen=True, slots=True)
class LeakageReport:
    """The gate's evidence, and the ids of training rows that must be left out (policy remove)."""

    evidence: Evidence
    remove: frozenset[str]

    def clean(self, training: Sequence[Record]) -> list[Record]:
        """The training rows without those to be left out."""
        return [record for record in training if record.record_id not in self.remove]


def leakage_gate(
    config: LeakageConfig, training: Sequence[Record], evaluation: Sequence[Record]
) -> LeakageReport:
    """Find training rows whose prompt repeats an evaluation row's prompt.

    Standing (system) instructions are not compared. Recall for a pair at similarity_min 0.85 is
    99 % (16 bands of 8 rows); every near pair is confirmed by its exact Jaccard similarity.
    """
    if not training or not evaluation:
        found = "training" if not training else "evaluation"
        return LeakageReport(inconclusive(LEAKAGE, f"no {found} rows to compare"), frozenset())
    exact = _exact_matches(training, evaluation)
    near = _near_matches(config, training, evaluation, exact)
    leaked = {place for places in (*exact.values(), *near.values()) for place in places}
    remove = frozenset(exact) | frozenset(near)
    leak_share = len(leaked) / len(evaluation)
    removed_share = len(remove) / len(training)
    figures: dict[str, Figure] = {
        "training_rows": len(training),
        "evaluation_rows": len(evaluation),
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


Matches = dict[str, set[int]]
"""{training id: places of the evaluation rows that it repeats}."""


def _exact_matches(training: Sequence[Record], evaluation: Sequence[Record]) -> Matches:
    """Equal prompts, and equal record ids."""
    known: dict[str, set[int]] = defaultdict(set)
    for place, record in enumerate(evaluation):
        known["prompt " + letters(asked(record.messages))].add(place)
        known["id " + record.record_id].add(place)
    matches: Matches = {}
    for record in training:
        prompt = "prompt " + letters(asked(record.messages))
        places = known.get(prompt, set()) | known.get("id " + record.record_id, set())
        if places:
            matches[record.record_id] = places
    return matches


def _near_matches(
    config: LeakageConfig,
    training: Sequence[Record],
    evaluation: Sequence[Record],
    exact: Matches,
) -> Matches:
    """Nearly equal prompts of training rows that are not in `exact`."""
    index: dict[tuple[int, ...], list[int]] = defaultdict(list)
    sets = [shingles(asked(record.messages), config.shingle_characters) for record in evaluation]
    for place, keys in enumerate(_band_keys(sets)):
        for key in keys:
            index[key].append(place)
    rest = [record for record in training if record.record_id not in exact]
    matches: Matches = {}
    for start in range(0, len(rest), BATCH_ROWS):
        batch = rest[start : start + BATCH_ROWS]
        ours = [shingles(asked(item.messages), config.shingle_characters) for item in batch]
        for record, own, keys in zip(batch, ours, _band_keys(ours), strict=True):
            near = {place for key in keys for place in index.get(key, ())}
            same = {x for x in near if _jaccard(own, sets[x]) >= config.similarity_min}
            if same:
                matches[record.record_id] = same
    return matches


def _band_keys(sets: Sequence[set[str]]) -> list[list[tuple[int, ...]]]:
    """Band keys per set: two sets of Jaccard s share one with probability 1 - (1 - s^8)^16."""
    from rensa import RMinHash

    digests = RMinHash.digests_from_token_sets([sorted(s) for s in sets], PERMUTATIONS, SEED)
    return [
        [(band, *digest[band : band + BAND_ROWS]) for band in range(0, PERMUTATIONS, BAND_ROWS)]
        for digest in digests
    ]


def _jaccard(one: set[str], other: set[str]) -> float:
    shared = len(one & other)
    return shared / (len(one) + len(other) - shared)
