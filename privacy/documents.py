"""Detectors of identity: resident and social security numbers, passports, plates, birth dates."""

import re

from privacy.checksums import calendar_date, cn_id_card, mrz, us_ssn
from privacy.detectors import (
    EDGE,
    END,
    NUMBER_EDGE,
    NUMBER_END,
    Detector,
    Found,
    after,
    before,
    bounds,
    digits_of,
    in_context,
    words,
)

CN_ID = re.compile(
    NUMBER_EDGE + r"(?=[1-9](?:[ -]?\d){5}[ -]?(?:1[ -]?[89]|2[ -]?0))"
    r"(?=(?P<value>[1-9](?:[ -]?\d){16}[ -]?[0-9Xx])(?![0-9A-Za-z_]))"
)
CN_ID_OLD = re.compile(NUMBER_EDGE + r"[1-9]\d{14}" + NUMBER_END)
CN_ID_WORDS = words("身份证", "证件号", r"\bid\b", "identity card")
SSN_DIVIDED = re.compile(
    r"(?<![0-9A-Za-z_-])(?<!\d[.,])\d{3}-\d{2}-\d{4}(?![0-9A-Za-z_-])|(?<=\\n)"
    r"\d{3}-\d{2}-\d{4}(?![0-9A-Za-z_-])"
)
SSN_PLAIN = re.compile(NUMBER_EDGE + r"\d{3}[ .]?\d{2}[ .]?\d{4}" + NUMBER_END)
SSN_WORDS = words(
    r"\bssn\b", r"\bs\.s\.n", r"social[ -]security", r"\bss ?#", "社会安全号", "社安号"
)
PASSPORT = re.compile(
    EDGE + r"(?P<value>(?=[A-Z0-9]*\d)[A-Z0-9]{2}[ ]?[A-Z0-9]{3,7}[ ]?[A-Z0-9]{0,3}(?<![ ])|"
    r"\d{9}|[A-Z]{1,2}[ ]?\d{7,8})" + END
)
PASSPORT_WORDS = words(
    r"passport", r"reisepass", r"\bpass(?:-?nr|nummer)", "护照", "通行证", "passeport"
)
MRZ = re.compile(
    r"P[A-Z<][A-Z<]{42}(?:\s|\\n){1,3}(?P<second>[A-Z0-9<]{9}\d[A-Z<]{3}\d{7}[MFX<]\d{7}[A-Z"
    r"0-9<]{16})"
)
PROVINCES = "京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼使领港澳"
PLATE_CN = re.compile(
    rf"[{PROVINCES}][ ]?[A-HJ-Z][ ·•・.\-]?(?:[DF](?:[A-HJ-NP-Z0-9]\d{{4}})|\d{{5}}[DF]|"
    rf"[A-HJ-NP-Z0-9]{{4}}[A-HJ-NP-Z0-9挂学警港澳使领])"
    r"(?![0-9A-Za-z_])"
)
PLATE_GB = re.compile(EDGE + r"[A-HJ-PR-Y][A-HJ-PR-Y][0-9]{2}[ ]?[A-HJ-PR-Z]{3}" + END)
PLATE_DE = re.compile(
    r"(?<![0-9A-Za-zÄÖÜäöüß_-])[A-ZÄÖÜ][A-ZÄÖÜa-zäöü]{0,2}[ -]{1,3}[A-Z]{1,2}[ -]?[1-9]\d{0,"
    r"3}[EH]?(?![0-9A-Za-z_-])"
)
PLATE_ANY = re.compile(
    EDGE
    + r"(?P<value>(?=[A-Z0-9 •-]*\d)[A-Z0-9]{1,4}[ •-]?[A-Z0-9]{1,5}(?:[ •-]?[A-Z0-9]{1,4})?)"
    + END
)
PLATE_WORDS = words(
    r"licen[cs]e plate",
    r"number plate",
    r"\bplate\b",
    r"\bplates\b",
    r"\bregistration\b",
    r"\bvehicle reg",
    r"car reg",
    r"kennzeichen",
    r"nummernschild",
    "车牌",
)
PLATE_LABEL = re.compile(
    r"(?:licen[cs]e plate|number plate|plate|plates|registration(?: (?:plate|mark))?|vehicle reg|"
    r"kennzeichen|nummernschild|车牌号?码?)(?: ?(?:no|nr|number|nummer)\.?)?[ :：#]{0,"
    r"3}(?:is |was |ist |lautet |是|为)?"
    r"[ \"]?$",
    re.IGNORECASE,
)
MONTH = (
    r"(?:jan(?:uary|uar)?|feb(?:ruary|ruar)?|mar(?:ch)?|mär(?:z)?|apr(?:il)?|may|mai|june?|juni?|"
    r"july?|juli?|aug(?:ust)?|sept?(?:ember)?|o[ck]t(?:ober)?|nov(?:ember)?|de[cz](?:ember)?)\.?"
)
DATE = re.compile(
    NUMBER_EDGE + r"(?P<value>"
    r"(?P<y1>(?:18|19|20)\d{2})(?P<s1>[-/. ]{1,2})(?P<m1>\d{1,2})(?P=s1)(?P<d1>\d{1,2})"
    r"|(?P<d2>\d{1,2})(?P<s2>[-/. ]{1,2})(?P<m2>\d{1,2})(?P=s2)(?P<y2>(?:18|19|20)?\d{2})"
    r"|(?P<y3>(?:18|19|20)\d{2})(?P<m3>[01]\d)(?P<d3>[0-3]\d)"
    r"|(?P<y4>(?:18|19|20)?\d{2}) ?年 ?(?P<m4>\d{1,2}) ?月 ?(?P<d4>\d{1,2}) ?[日号]?"
    rf"|\d{{1,2}}(?:st|nd|rd|th)?\.?[ -](?:of )?{MONTH},?[ -](?:(?:18|19|20)\d{{2}}|'?\d{{2}})"
    rf"|{MONTH} ?\d{{1,2}}(?:st|nd|rd|th)?,? (?:18|19|20)\d{{2}}"
    rf"|(?:18|19|20)\d{{2}}[ -]{MONTH}[ -]\d{{1,2}}"
    r"|[一二][零〇一二三四五六七八九]{3}年[一二三四五六七八九十]{1,"
    r"2}月[一二三四五六七八九十]{1,3}[日号]"
    r")(?![0-9A-Za-z_])",
    re.IGNORECASE,
)
BIRTH_WORDS = words(
    r"\bborn\b",
    r"\bd\.?o\.?b\b",
    r"date[ _-]of[ _-]birth",
    r"birth[ -]?da(?:y|te)",
    r"\bbirth\b",
    r"\bgeb(?:oren|\.)",
    r"\*\s?$",
    r"geburtsdatum",
    r"geburtstag",
    "出生",
    "生日",
    "生于",
)
BIRTH_HEADS = (
    "born",
    r"d\.?o\.?b",
    "birth",
    r"geb(oren|\.|urt)",
    "出生",
    "生日",
    "生于",
)


def check_cn_id(match: "re.Match[str]") -> Found | None:
    """Accept eighteen characters with a birth date and the right check character."""
    start, end = bounds(match)
    value = match["value"].replace(" ", "").replace("-", "")
    return (start, end, 1.0) if cn_id_card(value) else None


def old_cn_id(text: str) -> bool:
    """Tell whether fifteen digits carry a birth date of the twentieth century."""
    return calendar_date("19" + text[6:8], text[8:10], text[10:12])


def check_divided_ssn(match: "re.Match[str]") -> Found | None:
    """Accept the dashed form of an assignable number."""
    return (*match.span(), 0.9) if us_ssn(digits_of(match.group())) else None


def check_mrz(match: "re.Match[str]") -> Found | None:
    """Accept both lines of a passport's machine-readable zone."""
    return (*match.span(), 1.0) if mrz(match["second"]) else None


def check_passport(match: "re.Match[str]") -> Found | None:
    """Accept six to nine letters and digits behind the word passport, unless they are a date."""
    start, end = bounds(match)
    value = match["value"].replace(" ", "")
    digits = digits_of(value)
    if not 6 <= len(value) <= 9 or len(digits) < 4:
        return None
    if len(value) == 8 and value.isdigit() and calendar_date(value[:4], value[4:6], value[6:]):
        return None
    lead = before(match, start, 40)
    near = PASSPORT_WORDS.search(lead) or PASSPORT_WORDS.search(after(match, end, 16))
    return (start, end, 0.85) if near else None


def check_plate(match: "re.Match[str]") -> Found | None:
    """Accept four to nine letters and digits right behind a word for the plate."""
    start, end = bounds(match)
    near = PLATE_LABEL.search(before(match, start, 40))
    size = len(re.sub("[ •-]", "", match["value"]))
    if near is None or not 4 <= size <= 9:
        return None
    # "Registration 2025" is a year or a number of any kind; a plate there has letters.
    vague = near.group().lower().startswith(("registration", "vehicle"))
    return (start, end, 0.7) if re.search("[A-Z]", match["value"]) or not vague else None


def check_british_plate(match: "re.Match[str]") -> Found | None:
    """Accept beside a word for the plate; without one only the printed form with its space."""
    start, end = match.span()
    near = PLATE_WORDS.search(before(match, start)) or PLATE_WORDS.search(after(match, end))
    printed = " " in match.group()
    return (start, end, 0.85 if near else 0.6) if near or printed else None


def check_german_plate(match: "re.Match[str]") -> Found | None:
    """Accept beside a word for the plate; without one the form is no proof."""
    start, end = match.span()
    near = PLATE_WORDS.search(before(match, start)) or PLATE_WORDS.search(after(match, end))
    return (start, end, 0.8) if near else None


def check_birth(match: "re.Match[str]") -> Found | None:
    """Accept a calendar date close behind a word for birth."""
    start, end = bounds(match)
    lead = before(match, start, 32)
    if not (
        BIRTH_WORDS.search(lead) or re.match(r"\s?(?:出生|生日|born|geboren)", after(match, end, 8))
    ):
        return None
    for index in "1234":
        year, month, day = match[f"y{index}"], match[f"m{index}"], match[f"d{index}"]
        if year is not None:
            full = year if len(year) == 4 else "19" + year
            fits = calendar_date(full, month, day) or calendar_date(full, day, month)
            return (start, end, 0.85) if fits else None
    return start, end, 0.85


DETECTORS = (
    Detector("CN_ID_CARD", (r"\d([ -]?\d){16}[ -]?[0-9x]",), CN_ID, check_cn_id, 40, 8),
    Detector("CN_ID_CARD", (r"\d{15}",), CN_ID_OLD, in_context(CN_ID_WORDS, 0.8, old_cn_id), 24, 8),
    Detector("US_SSN", (r"\d{3}-\d{2}-\d{4}",), SSN_DIVIDED, check_divided_ssn, 16, 8),
    Detector(
        "US_SSN",
        (r"\bssn\b", r"s\.s\.n", r"social[ -]security", r"\bss ?#", "社会安全号", "社安号"),
        SSN_PLAIN,
        in_context(SSN_WORDS, 0.85, lambda text: us_ssn(digits_of(text))),
        40,
        72,
    ),
    Detector(
        "PASSPORT",
        ("passport", "reisepass", r"pass(-?nr|nummer)", "护照", "通行证", "passeport"),
        PASSPORT,
        check_passport,
        40,
        64,
    ),
    Detector("PASSPORT", (r"\bP[A-Z<][A-Z]{4}[A-Z<]*<<",), MRZ, check_mrz, 60, 120),
    Detector(
        "LICENSE_PLATE", (rf"[{PROVINCES}] ?[A-Z].?[A-Z0-9]{{4}}",), PLATE_CN, before=24, after=8
    ),
    Detector(
        "LICENSE_PLATE", (r"[A-Z]{2}[0-9]{2} ?[A-Z]{3}",), PLATE_GB, check_british_plate, 16, 8
    ),
    Detector(
        "LICENSE_PLATE",
        ("plate", "kennzeichen", "nummernschild", "车牌", "registration", "car reg", "vehicle reg"),
        PLATE_DE,
        check_german_plate,
        32,
        72,
    ),
    Detector(
        "LICENSE_PLATE",
        ("plate", "kennzeichen", "nummernschild", "车牌", "registration", "vehicle reg"),
        PLATE_ANY,
        check_plate,
        8,
        64,
    ),
    Detector("DATE_OF_BIRTH", BIRTH_HEADS, DATE, check_birth, 48, 64, re.compile("[0-9一二]")),
)
