"""Detectors of phone numbers: international, national, spaced and spelt out."""

import re

from privacy.detectors import (
    NUMBER_EDGE,
    NUMBER_END,
    Detector,
    Found,
    after,
    before,
    bounds,
    digits_of,
    otherwise_named,
    words,
)

EXTENSION = (
    r"(?:[ ,;]{0,2}(?:x|ext\.?|extension|durchwahl|#|转|分机|-(?=\d{1,6}(?!\d)))[ :]?\d{1,6})?"
)
GAP = r"[ ().\-/]{0,3}"
PHONE_WORDS = words(
    r"phone",
    r"\btel\b",
    r"\bmobile?\b",
    r"\bcell\b",
    r"\bcall(?:s|ed|ing)?\b",
    r"\bfax\b",
    r"\bcontact",
    r"\btext\b",
    r"whats ?app",
    r"\bsms\b",
    r"\bring\b",
    r"\breach\b",
    r"\bdial",
    r"telefon",
    r"\bhandy",
    r"\bmobil",
    r"rufen",
    r"\banruf",
    r"erreich",
    r"rückruf",
    "电话",
    "手机",
    "联系",
    "致电",
    "拨打",
    "座机",
    "热线",
    "传真",
    "微信",
    "打给",
)
PHONE_LABEL = (
    r"(?:phone|tel|mobile|cell|fax|telefon|handy|telephone|whats ?app|电话|手机|座机|热线|传真)"
    r"(?: ?(?:no|nr|number|nummer|号码?|是|为)\b\.?)?[.:：#)\]]{0,2}(?: is| ist)?[ \t\"]{0,3}"
)
INTERNATIONAL = re.compile(
    r"(?:(?<![0-9A-Za-z_+])(?<!\d[.,])|(?<=(?<!\\)\\[nrt]))"
    rf"(?=(?P<value>\(?(?:\+ ?|00(?=[ .-]?[1-9]))[ .-]?[1-9](?:{GAP}\d){{6,14}}{EXTENSION})"
    rf"{NUMBER_END})",
    re.IGNORECASE,
)
NATIONAL = re.compile(
    NUMBER_EDGE + r"(?<!-)(?P<value>(?:"
    r"(?:\+?1[ .-]?)?(?:\(\d{3}\) ?-?|\d{3}[ .-])\d{3}[ .-]\d{4}"  # North America
    r"|\(0\d{1,5}\)[ /-]?\d{2,8}(?:[ -]?\d{1,6}){0,3}"  # (area) subscriber
    r"|(?!\d{3}-\d\d-\d{4})0[1-9]\d{1,4}[ /-]\d{3,8}(?:[ -]\d{2,6}){0,3}"  # area subscriber
    r"|0[1-9](?:[ .-]\d{2}){4}"  # pairs
    r"|0[1-9]\d{0,4}(?: \d{2,4}){2,4}"  # trunk zero, groups
    r"|400[ -]?\d{3,4}[ -]\d{3,4}"  # Chinese service number
    rf"){EXTENSION}){NUMBER_END}(?!-\d)",
    re.IGNORECASE,
)
MOBILE_CN = re.compile(
    NUMBER_EDGE + r"(?P<value>(?:\(?(?:\+?86|0086)\)?[ -]?)?(?:"
    r"1[3-9]\d(?:[ .-]?\d{4}){2}|1[3-9]\d{2}[ .-]?\d{3}[ .-]?\d{4}|1[3-9]\d[ .-]\d{3}[ .-]\d{5}"
    r"|1[ .-][3-9](?:[ .-]\d){9}))" + NUMBER_END + r"(?![ -]\d(?!\d))"
)
BARE = re.compile(NUMBER_EDGE + rf"(?P<value>0?[1-9]\d{{8,10}}{EXTENSION})" + NUMBER_END)
LABELLED = re.compile(
    rf"(?<![A-Za-z]){PHONE_LABEL}(?P<value>[(+]?\d(?:{GAP}\d){{5,14}}{EXTENSION})" + NUMBER_END,
    re.IGNORECASE,
)
CHINESE_DIGITS = re.compile(
    r"(?<![零〇一二三四五六七八九幺0-9])[一幺1][ -]?[三四五六七八九3-9](?:[ "
    r"-]?[零〇一二三四五六七八九幺0-9]){9}"
    r"(?![零〇一二三四五六七八九幺十百千万0-9])"
)
DIGIT_WORD = (
    "zero|oh|one|two|three|four|five|six|seven|eight|nine|null|eins|zwei|zwo|drei|"
    "vier|fünf|sechs|sieben|acht|neun"
)
SPELT = re.compile(
    rf"(?<![A-Za-z])(?:plus )?(?:(?:double |triple )?(?:{DIGIT_WORD})[ ,-]{{1,2}}){{6,"
    rf"14}}(?:{DIGIT_WORD})(?![A-Za-z])",
    re.IGNORECASE,
)
UNNAMED = re.compile(r"0[1-9]\d{8,9}(?!\d)|01[567]\d{9}(?!\d)")
"""Undivided national numbers that need no word for a phone: trunk zero, a usual length."""
REGIONS = ("US", "GB", "DE", "CN", "FR")
EXTENSION_START = re.compile(r"[ ,;]{0,2}(?:x|e|d|#|转|分机)", re.IGNORECASE)
SSN_FORM = re.compile(r"\d{3}([ -])\d{2}\1\d{4}$")
PHONE_DIGITS_MIN = 7
TRUNK_DIGITS_MIN = 10
"""Fewest digits of a number that starts with 00 and a country code."""


def check_international(match: "re.Match[str]") -> Found | None:
    """Accept what has a possible length for its country; drop trailing groups until it has."""
    start, end = bounds(match)
    value = match.string[start:end]
    if value.startswith("0") and (
        SSN_FORM.match(value)
        or len(digits_of(value)) < TRUNK_DIGITS_MIN
        or otherwise_named(match, start)
    ):
        return None
    while len(digits_of(value)) >= PHONE_DIGITS_MIN:
        if _possible(value):
            if value.startswith("(") and ")" not in value:
                start += 1
            return start, start + len(value.rstrip(" ().-/")), 0.95
        shorter = re.match(r"(.*\d)[ ().\-/]+\d+$", value)
        if shorter is None:
            return None
        value = shorter[1]
    return None


def check_national(match: "re.Match[str]") -> Found | None:
    """Accept by length; dates and ranges have too few digits."""
    start, end = bounds(match)
    digits = digits_of(EXTENSION_START.split(match.string[start:end])[0])
    wanted = 8 <= len(digits) <= 16 and not otherwise_named(match, start)
    return (start, end, 0.75) if wanted else None


def check_bare(match: "re.Match[str]") -> Found | None:
    """Accept undivided digits beside a word for a phone, or with a valid trunk-zero number."""
    start, end = bounds(match)
    value = match.string[start:end]
    if otherwise_named(match, start):
        return None
    near = PHONE_WORDS.search(before(match, start, 40)) or PHONE_WORDS.search(after(match, end, 16))
    if near is not None:
        return start, end, 0.7
    if UNNAMED.match(value) and _valid(digits_of(value)):
        return start, end, 0.6
    return None


def check_spelt(match: "re.Match[str]") -> Found | None:
    """Accept number words beside a word for a phone, or ten of them and more."""
    start, end = match.span()
    near = PHONE_WORDS.search(before(match, start)) or PHONE_WORDS.search(after(match, end))
    many = len(re.findall(DIGIT_WORD, match.group(), re.IGNORECASE)) >= 10
    return (start, end, 0.7) if near or many else None


def labelled(match: "re.Match[str]") -> Found:
    """Accept what stands right behind a label such as "Tel.:"."""
    return (*bounds(match), 0.8)


def _possible(value: str) -> bool:
    """Tell whether a number with its country code has a length that the country uses."""
    main = EXTENSION_START.split(value)[0].replace("(0)", "")
    digits = digits_of(main)
    international = "+" in main
    number = "+" + (digits if international else digits[2:])
    if not international and len(digits) == len(main):
        return _parses(number, strictly=True)
    # A trunk zero may have been left standing, as in +49 030 1234567.
    return _parses(number) or _parses(re.sub(r"^(\+\d\d)0", r"\1", number))


def _valid(digits: str) -> bool:
    return any(_parses(digits, region, strictly=True) for region in REGIONS)


def _parses(number: str, region: str | None = None, strictly: bool = False) -> bool:
    import phonenumbers

    try:
        parsed = phonenumbers.parse(number, region)
    except phonenumbers.NumberParseException:
        return False
    test = phonenumbers.is_valid_number if strictly else phonenumbers.is_possible_number
    return bool(test(parsed))


DETECTORS = (
    Detector(
        "PHONE_NUMBER",
        (r"\+ ?[ .-]?[1-9]", r"\b00[ .-]?[1-9](\D{0,3}\d){6}", r"n00[1-9](\D{0,3}\d){6}"),
        INTERNATIONAL,
        check_international,
        32,
        64,
    ),
    Detector(
        "PHONE_NUMBER",
        (
            r"\d[ ().\-/]{1,2}\d{3}[ .-]\d{4}",
            r"0\d{1,5}\)?[ /.-]\d{2}",
            r"0\d{1,5}\)\d{2}",
            "400[ -]?\\d{3}",
            r"\)\d{3}-\d{4}",
        ),
        NATIONAL,
        check_national,
        48,
        48,
    ),
    Detector(
        "PHONE_NUMBER",
        (
            r"1[3-9]\d[ .-]?\d[ .-]?\d[ .-]?\d[ .-]?\d[ .-]?\d{4}",
            r"1[ .-][3-9][ .-]\d[ .-]\d[ .-]\d[ .-]\d[ .-]\d",
        ),
        MOBILE_CN,
        labelled,
        40,
        32,
    ),
    Detector("PHONE_NUMBER", (r"\d{9}",), BARE, check_bare, 16, 24),
    Detector(
        "PHONE_NUMBER",
        (
            r"(phone|tel|mobile|cell|fax|fon|handy|app|话|机|线|传真|号|码|number|nummer|nr|"
            r"no|为|is|ist|是)[^a-z0-9]+\d",
        ),
        LABELLED,
        labelled,
        48,
        64,
    ),
    Detector(
        "PHONE_NUMBER",
        (r"[一幺三四五六七八九零〇二0-9][ -]?[零〇一二三四五六七八九幺]",),
        CHINESE_DIGITS,
        labelled,
        24,
        24,
    ),
    Detector(
        "PHONE_NUMBER",
        (
            r"(one|two|three|four|six|seven|eight|nine|zero|oh|null|eins|zwei|drei|vier|"
            r"sechs|sieben|acht|neun)[ ,-]+(one|two|three|four|five|six|seven|eight|nine|"
            r"zero|oh|null|eins|zwei|drei|vier|sechs|sieben|acht|neun)[ ,-]",
        ),
        SPELT,
        check_spelt,
        60,
        200,
    ),
)
