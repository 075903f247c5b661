"""Do like prompts get like answers? Nearest neighbours inside one day: no model, no earlier data.

A day whose answers were shuffled disagrees with itself, so it cannot vouch for itself.
"""

import re
import unicodedata
import zlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from core.contracts import Record
from core.digests import digest_bytes
from lake.config import EvaluationConfig

BLOCK_ROWS = 512
DIMENSIONS = 1 << 18
WORD = re.compile(r"[^\W_\u3400-\u9fff]+|[\u3400-\u9fff]")
LABEL_WORDS_MAX = 8
LABEL_ROWS_MIN = 3.0
"""Answers are labels when they are short and each stands on this many rows on average."""
CHANCE_PAIRS = 4000
CHANCE_QUANTILE = 0.95

Floats = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True, slots=True)
class SliceConsistency:
    """How far a slice's rows agree with their nearest neighbours in the day.

    `agreement` is the share of neighbour pairs whose answers agree: labels are equal, free texts
    are more alike than 95 % of answers drawn at random. `pairs` is the number of such pairs.
    """

    outcome: Literal["consistent", "inconsistent", "unknown"]
    agreement: float
    pairs: int
    rows: int
    free_text: bool


def slice_consistency(
    rows: Sequence[Record], slices: Sequence[str], config: EvaluationConfig
) -> dict[str, SliceConsistency]:
    """Judge each of `slices` by the neighbours of its rows among all `rows` of the day.

    Too few neighbours to tell is `unknown`, which counts no more than `inconsistent`. Cost: one
    sparse product of the prompts' TF-IDF vectors (2,000 rows: 0.1 s), at most
    `config.rows_checked_max` rows.
    """
    chosen = _sample(rows, config)
    if len(chosen) < 2:
        return {name: SliceConsistency("unknown", 0.0, 0, len(chosen), False) for name in slices}
    free_text = not _are_labels([row.response for row in chosen])
    agree = _free_text_agreement(chosen, config) if free_text else _label_agreement(chosen)
    least = config.free_text_similarity_min if free_text else config.similarity_min
    found: dict[str, list[bool]] = defaultdict(list)
    for first, second in _neighbour_pairs([row.prompt for row in chosen], config.neighbours, least):
        if chosen[first].slice_name in slices:
            found[chosen[first].slice_name].append(agree(first, second))
    counts = Counter(row.slice_name for row in chosen)
    return {name: _judged(found[name], counts[name], free_text, config) for name in slices}


def _judged(
    agreed: list[bool], rows: int, free_text: bool, config: EvaluationConfig
) -> SliceConsistency:
    share = sum(agreed) / len(agreed) if agreed else 0.0
    least = config.free_text_consistency_min if free_text else config.consistency_min
    outcome: Literal["consistent", "inconsistent", "unknown"] = "unknown"
    if len(agreed) >= config.pairs_min:
        outcome = "consistent" if share >= least else "inconsistent"
    return SliceConsistency(outcome, round(share, 4), len(agreed), rows, free_text)


def _sample(rows: Sequence[Record], config: EvaluationConfig) -> list[Record]:
    if len(rows) <= config.rows_checked_max:
        return list(rows)
    keyed = sorted(rows, key=lambda row: digest_bytes(f"{config.seed}:{row.record_id}".encode()))
    return keyed[: config.rows_checked_max]


def _are_labels(responses: Sequence[str]) -> bool:
    long = sum(len(WORD.findall(response)) > LABEL_WORDS_MAX for response in responses)
    return len(responses) >= LABEL_ROWS_MIN * len(set(responses)) and long * 20 <= len(responses)


def _label_agreement(rows: Sequence[Record]) -> Any:
    labels = [row.response.casefold() for row in rows]
    return lambda first, second: labels[first] == labels[second]


def _free_text_agreement(rows: Sequence[Record], config: EvaluationConfig) -> Any:
    vectors = _vectors([row.response for row in rows])
    draw = np.random.default_rng(config.seed)
    ends = draw.integers(0, len(rows), size=(2, CHANCE_PAIRS))
    left, right = ends[:, ends[0] != ends[1]]
    products = vectors[left].multiply(vectors[right]).sum(axis=1)
    limit = float(np.quantile(np.asarray(products).ravel(), CHANCE_QUANTILE))

    def agree(first: int, second: int) -> bool:
        return float(vectors[first].multiply(vectors[second]).sum()) > limit

    return agree


def _neighbour_pairs(texts: Sequence[str], neighbours: int, least: float) -> list[tuple[int, int]]:
    """Return (row, neighbour) for each row's nearest texts with a cosine of at least `least`."""
    vectors = _vectors(texts)
    columns = vectors.T.tocsr()
    count = min(neighbours, len(texts) - 1)
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(texts), BLOCK_ROWS):
        block: Floats = (vectors[start : start + BLOCK_ROWS] @ columns).toarray()
        for offset, alike in enumerate(block):
            alike[start + offset] = -1.0
            nearest = np.argpartition(-alike, count - 1)[:count]
            pairs += [(start + offset, int(other)) for other in nearest if alike[other] >= least]
    return pairs


def _vectors(texts: Sequence[str]) -> Any:
    """Return unit TF-IDF vectors of words and word pairs (CJK characters are words), hashed."""
    from scipy import sparse

    places: list[int] = []
    ends = [0]
    for text in texts:
        words = WORD.findall(unicodedata.normalize("NFKC", text).casefold())
        grams = {*words, *(f"{one} {two}" for one, two in zip(words, words[1:], strict=False))}
        places += {zlib.crc32(gram.encode()) % DIMENSIONS for gram in grams}
        ends.append(len(places))
    ones = np.ones(len(places), dtype=np.float32)
    matrix = sparse.csr_matrix((ones, places, ends), shape=(len(texts), DIMENSIONS))
    seen = np.bincount(matrix.indices, minlength=DIMENSIONS)
    rarity = np.log((1 + len(texts)) / (1 + seen)).astype(np.float32)
    weighted = matrix @ sparse.diags(rarity)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    return (sparse.diags(1 / np.maximum(norms, 1e-9)) @ weighted).tocsr()
