"""Which rows are trained on when all are too many: by quality, diversity, quotas and a seed.

Pure: the same rows and settings give the same choice, in whatever order the rows come.
"""

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from xxhash import xxh3_64_intdigest

from core.clusters import components, near_pairs
from core.sketches import Array, sketch_texts
from lake.config import SelectionConfig

OVERSAMPLE = 4
"""Rows of a slice that are weighed for one that is chosen."""
WORD = re.compile(r"\w+")
WORDS_MIN, WORDS_ENOUGH = 1, 5
LETTERS_SHARE_MIN, REPEATED_SHARE_MAX = 0.6, 0.5
PACKED_SHARE_MIN, PACKED_TEXT_MIN = 0.2, 200


@dataclass(frozen=True, slots=True)
class Selected:
    """What a selection came to, for the manifest. `slices`: {name: (rows before, rows chosen)}.

    `weighed` rows were drawn for a closer look, `low_quality` of those were below the limit, and
    the others fell into `clusters` of near duplicates.
    """

    settings: Mapping[str, Any]
    rows_before: int
    rows_chosen: int
    weighed: int
    low_quality: int
    clusters: int
    slices: Mapping[str, tuple[int, int]]


@dataclass(frozen=True, slots=True)
class Draw:
    """Which share of each slice's rows is weighed at all, told from a row's digest alone.

    Of the held-out rows a share of `held_out` stays.
    """

    seed: int
    training: Mapping[str, float]
    held_out: Mapping[str, float]

    def takes(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row is drawn: the same answer wherever it is asked."""
        shares = self.held_out if row["held_out"] else self.training
        chance = _chance(self.seed, "draw", row["content_digest"])
        return chance < shares.get(row["slice_name"], 1.0)


def plan_draw(config: SelectionConfig, slices: Mapping[str, int]) -> Draw:
    """Plan the draw of OVERSAMPLE times the training rows that fill each slice's quota."""
    wanted = {
        name: quota / slices[name] for name, quota in quotas(config, slices).items() if slices[name]
    }
    weighed = {name: min(1.0, OVERSAMPLE * share) for name, share in wanted.items()}
    return Draw(config.seed, weighed, wanted)


def quotas(config: SelectionConfig, slices: Mapping[str, int]) -> dict[str, int]:
    """Split the budget over the slices, none getting more than it has.

    First each slice gets `slice_rows_min`; the rest goes by `slice_shares`, where a slice is
    named, and else by size. What a slice cannot use goes to the others.
    """
    budget = min(config.rows_max or sum(slices.values()), sum(slices.values()))
    given = {name: 0 for name in sorted(slices)}
    least = {name: min(count, config.slice_rows_min) for name, count in slices.items()}
    if sum(least.values()) <= budget:
        given.update(least)
    whole = sum(slices.values()) or 1
    weights = {name: config.slice_shares.get(name, count / whole) for name, count in slices.items()}
    # Each round fills a slice or spends the budget.
    for _ in range(len(given) + 1):
        open_ = [name for name in given if given[name] < slices[name] and weights[name] > 0]
        left = budget - sum(given.values())
        if not left or not open_:
            break
        total = sum(weights[name] for name in open_)
        exact = {name: left * weights[name] / total for name in open_}
        rounded = {name: int(exact[name]) for name in open_}
        by_rest = sorted(open_, key=lambda name: (rounded[name] - exact[name], name))
        for name in by_rest[: left - sum(rounded.values())]:
            rounded[name] += 1
        for name in open_:
            given[name] = min(slices[name], given[name] + rounded[name])
    return given


def select(
    config: SelectionConfig, rows: Sequence[Mapping[str, Any]], before: Mapping[str, int]
) -> tuple[Array, Selected]:
    """Choose among drawn rows (columns as stored); return a mask and what it came to.

    `before` are all rows by slice. Of each cluster of near duplicates the best rows come first:
    a second one is chosen only when the quota cannot be filled without it.
    """
    scores = np.array([quality(row["prompt"], row["response"]) for row in rows])
    labels = _clusters(rows, config.cluster_similarity_min)
    good = scores >= config.quality_min
    digests = [row["content_digest"] for row in rows]
    order = sorted(np.flatnonzero(good).tolist(), key=lambda row: (-scores[row], digests[row]))
    ranks: dict[int, int] = {}
    seen: Counter[int] = Counter()
    for row in order:
        ranks[row] = seen[labels[row]]
        seen[labels[row]] += 1
    keys: dict[str, list[tuple[int, float, str, int]]] = defaultdict(list)
    for row in order:
        if config.cluster_rows_max is None or ranks[row] < config.cluster_rows_max:
            # A draw without replacement weighted by quality (Efraimidis, Spirakis 2006).
            luck = _chance(config.seed, "choose", digests[row]) ** (1 / max(scores[row], 1e-6))
            keys[rows[row]["slice_name"]].append((ranks[row], -luck, digests[row], row))
    available = {name: len(found) for name, found in keys.items()}
    chosen = np.zeros(len(rows), dtype=bool)
    for name, quota in quotas(config, available).items():
        for *_, row in sorted(keys[name])[:quota]:
            chosen[row] = True
    counted = Counter(row["slice_name"] for row, taken in zip(rows, chosen, strict=True) if taken)
    return chosen, Selected(
        settings=config.model_dump(mode="json"),
        rows_before=sum(before.values()),
        rows_chosen=int(chosen.sum()),
        weighed=len(rows),
        low_quality=int((~good).sum()),
        clusters=len(seen),
        slices={name: (before[name], counted[name]) for name in sorted(before)},
    )


def quality(prompt: str, response: str) -> float:
    """Score a row from 0 to 1 by signs of broken or empty text (after Gopher's rules, Rae 2021).

    Letters among the characters, repeated words, how far a long text can be packed, and length.
    """
    text = f"{prompt}\n{response}"
    words = WORD.findall(text.lower())
    if len(words) < WORDS_MIN or not response.strip():
        return 0.0
    score = min(1.0, 0.5 + len(words) / (2 * WORDS_ENOUGH))
    dense = "".join(text.split())
    letters = sum(map(str.isalnum, dense)) / len(dense)
    score *= min(1.0, letters / LETTERS_SHARE_MIN)
    if len(words) > WORDS_ENOUGH:
        repeated = 1 - len(set(words)) / len(words)
        score *= min(1.0, (1 - repeated) / (1 - REPEATED_SHARE_MAX))
    raw = text.encode()
    if len(raw) >= PACKED_TEXT_MIN:
        packed = len(zlib.compress(raw, 1)) / len(raw)
        score *= min(1.0, packed / PACKED_SHARE_MIN)
    return score


def _clusters(rows: Sequence[Mapping[str, Any]], similarity_min: float) -> list[int]:
    """Return for each row the first row (by digest) of its cluster of near duplicates."""
    order = sorted(range(len(rows)), key=lambda row: rows[row]["content_digest"])
    texts = [f"{rows[row]['prompt']}\n{rows[row]['response']}" for row in order]
    sketches = sketch_texts(texts)
    pairs = near_pairs(sketches.bands, sketches.signatures, similarity_min)
    groups = components(len(rows), pairs.tolist())
    labels = [0] * len(rows)
    for place, row in enumerate(order):
        labels[row] = order[groups[place]]
    return labels


def _chance(seed: int, purpose: str, digest: str) -> float:
    """Return a number in [0, 1) that follows from seed, purpose and digest alone."""
    return xxh3_64_intdigest(f"{purpose} {seed} {digest}".encode()) / 2.0**64
