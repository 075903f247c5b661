"""Intervals and tests for shares and paired differences; plain mathematics, no model, no data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist


def z_value(confidence: float) -> float:
    """The two-sided normal quantile of a confidence level, 1.96 for 0.95."""
    return NormalDist().inv_cdf(0.5 + confidence / 2)


def wilson(successes: float, count: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927); (0, 1) for no observations.

    A mean of scores in [0, 1] may stand for the share: its interval is then wider than needed.
    """
    if count <= 0:
        return 0.0, 1.0
    z = z_value(confidence)
    share = successes / count
    middle = share + z * z / (2 * count)
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired scores in [0, 1] of a candidate and stable on the same records.

    `low..high` is the two-sided interval of candidate - stable; `p_worse` the one-sided exact
    probability of so many losses against wins if both were equally good.
    """

    records: int
    candidate: float
    stable: float
    wins: int
    losses: int
    low: float
    high: float
    p_worse: float

    @property
    def difference(self) -> float:
        """Mean score of the candidate minus that of stable."""
        return self.candidate - self.stable


def compare(
    candidate: Sequence[float], stable: Sequence[float], confidence: float = 0.95
) -> Comparison:
    """Compare paired scores; an empty pair gives the widest interval and NaN means.

    The interval is Bonett and Price's (2012) for paired shares, which is Wald's after adding one
    win and one loss; the same addition is used for scores between 0 and 1. The test is the exact
    sign test, for 0/1 scores McNemar's.
    """
    differences = [new - old for new, old in zip(candidate, stable, strict=True)]
    count = len(differences)
    if not count:
        return Comparison(0, math.nan, math.nan, 0, 0, -1.0, 1.0, 1.0)
    wins = sum(value > 0 for value in differences)
    losses = sum(value < 0 for value in differences)
    mean = sum(differences) / (count + 2)
    square = (sum(value * value for value in differences) + 2) / (count + 2)
    spread = z_value(confidence) * math.sqrt(max(0.0, square - mean * mean) / (count + 2))
    return Comparison(
        records=count,
        candidate=sum(candidate) / count,
        stable=sum(stable) / count,
        wins=wins,
        losses=losses,
        low=max(-1.0, mean - spread),
        high=min(1.0, mean + spread),
        p_worse=sign_test(losses, wins + losses),
    )


def sign_test(losses: int, decided: int) -> float:
    """P(at least `losses` of `decided` fair coin throws): small when losses outweigh wins."""
    if decided <= 0:
        return 1.0
    # log space: 2^-decided underflows for many thousands of records
    logs = [_log_choose(decided, k) - decided * math.log(2) for k in range(losses, decided + 1)]
    top = max(logs)
    return min(1.0, math.exp(top) * sum(math.exp(value - top) for value in logs))


def token_f1(answer: Sequence[str], wanted: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over words with their counts, as in SQuAD.

    Two empty texts agree; one empty text does not. Source: Rajpurkar et al. 2016.
    """
    if not answer or not wanted:
        return float(not answer and not wanted)
    left = list(wanted)
    shared = 0
    counts: dict[str, int] = {}
    for word in left:
        counts[word] = counts.get(word, 0) + 1
    for word in answer:
        if counts.get(word, 0) > 0:
            counts[word] -= 1
            shared += 1
    return 2 * shared / (len(answer) + len(wanted))


def _log_choose(count: int, chosen: int) -> float:
    return math.lgamma(count + 1) - math.lgamma(chosen + 1) - math.lgamma(count - chosen + 1)
