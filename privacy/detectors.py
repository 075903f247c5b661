"""What a detector is: byte patterns that wake it, an exact pattern, and a check of each match.

The words around a match are its context; texts are folded and joined by NUL.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

EDGE = r"(?:(?<![0-9A-Za-z_])|(?<=(?<!\\)\\[nrt]))"
"""No letter or digit before; the letter of an escaped line break in JSON does not count."""
NUMBER_EDGE = r"(?:(?<![0-9A-Za-z_])(?<!\d[.,])|(?<=(?<!\\)\\[nrt]))"
END = r"(?![0-9A-Za-z_])"
NUMBER_END = r"(?![0-9A-Za-z_])(?!\.\d)"
CONTEXT_BEFORE, CONTEXT_AFTER = 48, 24

OTHER_NUMBERS = re.compile(
    r"(?:\b(?:ean|gtin|isbn|issn|upc|imei|barcode|tracking|order|invoice|part|model|item|"
    r"article|artikel"
    r"|serial|ticket|flight|commit|build|case|batch|lot|sku|bestellung|bestellnummer|"
    r"rechnung|auftrag"
    r"|aktenzeichen|sendung|timestamp)(?: ?(?:no|nr|number|nummer|id|code)\b\.?)?"
    r"|订单(?:编?号)?|工单号?|运?单号|条码|编号|批次|型号|流水号|验证码)[ \t:：#\"]{0,"
    r"4}(?:is |ist |[为是])?$",
    re.IGNORECASE,
)
"""Words right in front of a number that say it is neither a phone's nor a card's."""

Found = tuple[int, int, float]
Check = Callable[["re.Match[str]"], Found | None]


@dataclass(frozen=True, slots=True)
class Detector:
    """Finds one type of sensitive data.

    `triggers` are byte patterns; around the end of each hit the exact `pattern` looks `before` and
    `after` characters far. `check` returns (start, end, score in 0..1), or None to refuse.
    """

    type: str
    triggers: tuple[str, ...]
    pattern: "re.Pattern[str]"
    check: Check = field(default=lambda match: certain(match))
    before: int = 80
    after: int = 80
    needs: "re.Pattern[str] | None" = None
    """What every match contains: where it is not, the slower `pattern` is not tried."""


def bounds(match: "re.Match[str]") -> tuple[int, int]:
    """Return where the value is: the group `value` where the pattern has one, else the match."""
    return match.span("value") if "value" in match.re.groupindex else match.span()


def certain(match: "re.Match[str]") -> Found:
    """Accept a match whose form alone is proof."""
    return (*bounds(match), 1.0)


def scored(score: float) -> Check:
    """Return a check that accepts with a fixed score."""
    return lambda match: (*bounds(match), score)


def before(match: "re.Match[str]", start: int, characters: int = CONTEXT_BEFORE) -> str:
    """Return the text in front of `start`, at most so many characters."""
    return match.string[max(0, start - characters) : start].rpartition("\0")[2]


def after(match: "re.Match[str]", end: int, characters: int = CONTEXT_AFTER) -> str:
    """Return the text behind `end`, at most so many characters."""
    return match.string[end : end + characters].partition("\0")[0]


def words(*expressions: str) -> "re.Pattern[str]":
    """Return a pattern for any of the words, upper or lower case."""
    return re.compile("|".join(expressions), re.IGNORECASE)


def in_context(
    wanted: "re.Pattern[str]",
    score: float,
    allowed: Callable[[str], bool] = lambda text: True,
    reach: int = CONTEXT_BEFORE,
    reach_after: int = CONTEXT_AFTER,
) -> Check:
    """Return a check that accepts values which are `allowed` and stand beside a wanted word."""

    def check(match: "re.Match[str]") -> Found | None:
        start, end = bounds(match)
        near = wanted.search(before(match, start, reach))
        if near is None and reach_after:
            near = wanted.search(after(match, end, reach_after))
        if near is None or not allowed(match.string[start:end]):
            return None
        return start, end, score

    return check


def otherwise_named(match: "re.Match[str]", start: int) -> bool:
    """Tell whether the words right in front name another kind of number, such as an order's."""
    return OTHER_NUMBERS.search(before(match, start, 32)) is not None


def digits_of(text: str) -> str:
    """Return only the decimal digits."""
    return "".join(character for character in text if "0" <= character <= "9")
