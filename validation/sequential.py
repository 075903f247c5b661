"""Anytime-valid tests by betting: evidence that may be looked at after every request.

Knows increments, shares and tolerances; knows nothing of latency, counters or releases.
Source: Waudby-Smith & Ramdas, "Estimating means of bounded random variables by betting" (JRSS-B
2024); Ville's inequality bounds the probability that a fair bettor ever multiplies her stake by K.
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from core.errors import InputError

FRACTIONS: tuple[float, ...] = (0.9, 0.6, *(0.5 * 2.0**-power for power in range(1, 11)))
"""Bet sizes as fractions of the largest safe bet; the wealth is the mean over all of them."""
PAY_OFFS_REMEMBERED = 4096  # 0/1 outcomes at a handful of shares give a handful of pay-offs


def log_mean_exp(values: Sequence[float]) -> float:
    """Return log(mean(exp(values))) without overflow; -inf for an empty sequence."""
    return log_sum_exp(values) - math.log(len(values)) if values else -math.inf


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log(sum(exp(values))) without overflow; -inf for an empty sequence."""
    top = max(values, default=-math.inf)
    if math.isinf(top):
        return top
    return top + math.log(math.fsum(math.exp(value - top) for value in values))


@dataclass(slots=True)
class DifferenceTest:
    """Bets on E[b | canary] - E[b | stable] being above (roll back) or below (promote) `tolerance`.

    b in 0..1 is badness. Request i goes to the canary with the known probability p_i; with a centre
    m_i fixed before it, Z_i = A (b - m)/p - (1 - A)(b - m)/(1 - p) - d has a mean of at most 0 when
    the canary is within tolerance. The evidence to roll back restarts with weight 1/(s(s+1)), the
    rest held as cash, so that a late fault does not have to win back what was lost before it
    (Shin, Ramdas & Rinaldo, e-detectors). All wealth is kept as logarithms.
    """

    tolerance: float
    _against: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))
    _for: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))
    _starts: list[tuple[float, ...]] = field(default_factory=lambda: [(0.0,) * len(FRACTIONS)])
    _requests: int = 0
    _differences: float = 0.0

    def observe(
        self,
        share: float,
        canary: bool,
        badness: float | None,
        centre: float = 0.0,
        times: int = 1,
    ) -> None:
        """Feed one request: its declared canary share, its arm and its badness in 0..1.

        `times` feeds as many equal ones. An unknown badness (None) counts as whatever weakens
        each bet most: missing values neither roll back a good canary nor promote a bad one.
        """
        if not (0.0 <= centre <= 1.0 and (badness is None or 0.0 <= badness <= 1.0)):
            raise InputError(f"badness {badness} and centre {centre} must lie in 0..1")
        _check_share(share)
        weight = 1 / share if canary else -1 / (1 - share)
        mildest, worst = (0.0, 1.0) if canary else (1.0, 0.0)
        against = mildest if badness is None else badness
        promoting = worst if badness is None else badness
        self._bet_against(share, weight * (against - centre) - self.tolerance, centre, times)
        self._bet_for(share, weight * (promoting - centre) - self.tolerance, centre, times)
        if badness is not None:
            self._count(weight * (badness - centre), times)

    def observe_counts(self, share: float, canary_bad: int, stable_bad: int, good: int) -> None:
        """Feed 0/1 outcomes of a stretch of constant share; their order does not matter.

        `good` counts the requests of both arms that were not bad. The centre is 0.
        """
        if min(canary_bad, stable_bad, good) < 0:
            raise InputError("counts cannot be negative")
        _check_share(share)
        outcomes = ((1 / share, canary_bad), (-1 / (1 - share), stable_bad), (0.0, good))
        for weight, times in outcomes:
            self._bet_against(share, weight - self.tolerance, 0.0, times)
            self._bet_for(share, weight - self.tolerance, 0.0, times)
            self._count(weight, times)

    def restart(self) -> None:
        """Open a fresh bet against the canary from now on, beside those that run."""
        self._starts.append(tuple(self._against))

    @property
    def log_against(self) -> float:
        """Log evidence to roll back: an e-process when the canary is within tolerance."""
        parts = [-math.log(len(self._starts) + 1)]
        for number, start in enumerate(self._starts, 1):
            grown = [now - then for now, then in zip(self._against, start, strict=True)]
            parts.append(log_mean_exp(grown) - math.log(number * (number + 1)))
        return log_sum_exp(parts)

    @property
    def log_for(self) -> float:
        """Log evidence to promote: an e-process when the canary is out of tolerance."""
        return log_mean_exp(self._for)

    @property
    def difference(self) -> float | None:
        """Estimate of E[b | canary] - E[b | stable], each request weighted by 1 / its arm's share
        (Horvitz & Thompson 1952); None before the first request."""
        return self._differences / self._requests if self._requests else None

    def requests_left(self, log_goal: float) -> int | None:
        """Requests until `log_for` reaches a goal at its pace so far; None while it has none."""
        grown = self.log_for
        if grown >= log_goal:
            return 0
        return math.ceil((log_goal - grown) * self._requests / grown) if grown > 0 else None

    def _count(self, difference: float, times: int) -> None:
        self._requests += times
        self._differences += times * difference

    def _bet_against(self, share: float, increment: float, centre: float, times: int) -> None:
        bound = max((1 - centre) / (1 - share), centre / share) + self.tolerance
        _multiply(self._against, increment / bound, times)

    def _bet_for(self, share: float, increment: float, centre: float, times: int) -> None:
        bound = max((1 - centre) / share, centre / (1 - share)) - self.tolerance
        _multiply(self._for, -increment / bound, times)


@dataclass(slots=True)
class PairedTest:
    """The paired design of shadow requests: the same prompt, answered and scored for both versions.

    The increment Z = (b_canary - b_stable) - d of one prompt lies in [-1 - d, 1 - d] and has a mean
    of at most 0, given all earlier prompts, when the canary is within tolerance: prod(1 + f Z / B)
    with B = 1 + d is then a test martingale for each f, and so is their mean (for promotion
    prod(1 - f Z / B) with B = 1 - d, when it is out of tolerance). No arm is drawn, so nothing is
    divided by a share: it bets at share 0 too. What it rests on instead is that prompts which are
    scored are not chosen by how either version answers them, and that each counts once.
    """

    tolerance: float
    _against: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))
    _for: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))
    pairs: int = 0
    _differences: float = 0.0

    def observe(self, canary_badness: float, stable_badness: float, times: int = 1) -> None:
        """Feed one request answered by both versions, each badness in 0..1; `times` equal ones."""
        if not (0.0 <= canary_badness <= 1.0 and 0.0 <= stable_badness <= 1.0):
            raise InputError("badness must lie in 0..1")
        if times < 0:
            raise InputError("counts cannot be negative")
        difference = canary_badness - stable_badness
        increment = difference - self.tolerance
        _multiply(self._against, increment / (1 + self.tolerance), times)
        _multiply(self._for, -increment / (1 - self.tolerance), times)
        self.pairs += times
        self._differences += times * difference

    @property
    def log_against(self) -> float:
        """Log evidence to roll back."""
        return log_mean_exp(self._against)

    @property
    def log_for(self) -> float:
        """Log evidence to promote."""
        return log_mean_exp(self._for)

    @property
    def difference(self) -> float | None:
        """Mean of canary's badness minus stable's; None before the first pair."""
        return self._differences / self.pairs if self.pairs else None


@dataclass(slots=True)
class ShareTest:
    """Bets, both ways, that the canary's share of the draws is not the declared one."""

    _more: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))
    _fewer: list[float] = field(default_factory=lambda: [0.0] * len(FRACTIONS))

    def observe_counts(self, share: float, canary: int, stable: int) -> None:
        """Feed draws of a stretch of constant declared share."""
        _check_share(share)
        if min(canary, stable) < 0:
            raise InputError("counts cannot be negative")
        odds = (1 - share) / share
        for index, fraction in enumerate(FRACTIONS):
            self._more[index] += canary * math.log1p(fraction * odds)
            self._more[index] += stable * math.log1p(-fraction)
            self._fewer[index] += canary * math.log1p(-fraction)
            self._fewer[index] += stable * math.log1p(fraction / odds)

    @property
    def log_against(self) -> float:
        """Log evidence that the declared share is not what happens."""
        return log_mean_exp([*self._more, *self._fewer])


def _check_share(share: float) -> None:
    if not 0.0 < share < 1.0:
        raise InputError(f"a share of {share} leaves one arm without requests: nothing to judge")


def _multiply(log_wealth: list[float], pay_off: float, times: int) -> None:
    """Multiply each bettor's wealth by (1 + fraction x pay_off), `times` times over."""
    if times == 0:
        return
    for index, gain in enumerate(_log_gains(pay_off)):
        log_wealth[index] += times * gain


@functools.lru_cache(maxsize=PAY_OFFS_REMEMBERED)
def _log_gains(pay_off: float) -> tuple[float, ...]:
    return tuple(math.log1p(fraction * pay_off) for fraction in FRACTIONS)
