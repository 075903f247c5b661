"""Detectors of e-mail addresses: plain ones, and those hidden by spaces, brackets and words."""

import re

from privacy.detectors import END, Detector, Found, before, words

LETTER = "A-Za-z\u00c0-\u024f\u0370-\u052f"
"""Letters of addresses: Latin, Greek and Cyrillic. Chinese text may touch an address."""
LOCAL = f"[{LETTER}0-9.!#$&'*=?^`{{|}}~_%+-]"
LABEL = f"[{LETTER}0-9](?:[{LETTER}0-9-]{{0,61}}[{LETTER}0-9])?"
TOP = f"(?:xn--[a-z0-9-]{{2,40}}|[{LETTER}]{{2,24}})"
OPEN, CLOSE = r"\s?[(\[{<]\s?", r"\s?[)\]}>]\s?"
AT = (
    rf"(?:\s?@\s?|%40|&#0*64;|&#x0*40;|&commat;|\\u0040|{OPEN}(?:at|@|a|艾特|圈a){CLOSE}|"
    rf"\s?艾特\s?)"
)
DOT = (
    rf"(?:\.|%2e|&#0*46;|\\u002e|{OPEN}(?:dot|\.|点|punkt){CLOSE}|\s(?:dot|punkt)\s|"
    rf"\s?点\s?|\s\.\s)"
)
EMAIL_EDGE = rf"(?:(?<![{LETTER}0-9._%+-])(?!(?<=(?<!\\)\\)[nrt])|(?<=(?<!\\)\\[nrt]))"
EMAIL = re.compile(
    rf"{EMAIL_EDGE}(?:\"[^\"\0\n]{{1,60}}\"|[{LETTER}0-9_]{LOCAL}{{0,63}}+)"
    rf"@(?:(?:{LABEL}\.){{1,8}}{TOP}|\[[0-9a-fA-F:.]{{7,45}}\])(?![{LETTER}0-9_])",
    re.IGNORECASE,
)
EMAIL_HIDDEN = re.compile(
    rf"{EMAIL_EDGE}(?P<local>[{LETTER}0-9_](?:[{LETTER}0-9._%+-]|{OPEN}dot{CLOSE}|\sdot\s)"
    rf"{{0,63}}?)"
    rf"{AT}(?:{LABEL}{DOT}){{1,5}}{TOP}(?![{LETTER}0-9_])",
    re.IGNORECASE,
)
EMAIL_SPELT = re.compile(
    rf"{EMAIL_EDGE}(?P<local>[{LETTER}0-9][{LETTER}0-9._%+-]{{0,40}}(?:\s(?:dot|punkt|point|"
    rf"underscore|dash)"
    rf"\s[{LETTER}0-9._%+-]{{1,40}}){{0,3}})"
    rf"\s(?:at|AT|ät|arroba|klammeraffe)\s(?:{LABEL}\s?(?:dot|punkt|point)\s?){{1,"
    rf"4}}{TOP}(?![{LETTER}0-9_])",
    re.IGNORECASE,
)
EMAIL_SPACED = re.compile(
    rf"{EMAIL_EDGE}(?:[{LETTER}0-9._%+-] ){{1,40}}@(?: [{LETTER}0-9-]){{1,40}}"
    rf"(?: \.(?: [{LETTER}0-9-]){{1,40}}){{1,4}}(?![{LETTER}0-9])"
)
EMAIL_AT = re.compile(
    rf"{EMAIL_EDGE}(?P<local>[A-Za-z0-9][A-Za-z0-9._%+-]{{1,40}})\s(?:at|AT)\s(?:{LABEL}\.)"
    rf"{{1,4}}{TOP}"
    rf"(?![{LETTER}0-9_])"
)
EMAIL_WORDS = words(
    r"e-?mail", r"\bmail\b", r"\bwrite\b", r"\bcontact", r"\bschreib", "邮箱", "邮件"
)
EMAIL_HASHED = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9][A-Za-z0-9._%+-]{2,63}[#*](?:qq|163|126|gmail|sina|foxmail|"
    r"outlook|hotmail|yahoo|sohu|139|yeah|aliyun|icloud)(?:\.com|\.net|\.cn|点com)" + END,
    re.IGNORECASE,
)
FILE_ENDINGS = {
    "png",
    "jpg",
    "jpeg",
    "gif",
    "svg",
    "webp",
    "css",
    "js",
    "ts",
    "html",
    "pdf",
    "txt",
    "json",
    "xml",
    "zip",
    "tgz",
    "gz",
    "exe",
    "dll",
    "ico",
    "bmp",
    "mp",
    "log",
}
NO_MAILBOX = {
    "look",
    "me",
    "us",
    "you",
    "it",
    "is",
    "are",
    "was",
    "were",
    "be",
    "available",
    "visit",
    "found",
    "live",
    "online",
    "shop",
    "buy",
    "meet",
    "arrive",
    "check",
    "here",
    "site",
    "more",
    "website",
    "page",
    "them",
    "see",
    "this",
    "that",
    "and",
    "or",
    "store",
    "sold",
    "hosted",
    "work",
    "works",
    "worked",
    "working",
    "out",
    "up",
    "down",
    "one",
    "party",
    "now",
    "today",
}
"""Words before "at example dot com" that speak of a place and name no mailbox."""


def check_email(match: "re.Match[str]") -> Found | None:
    """Refuse file names such as icon@2x.png."""
    start, end = match.span()
    return None if _ending(match.group()) in FILE_ENDINGS else (start, end, 1.0)


def check_hidden_email(match: "re.Match[str]") -> Found | None:
    """Refuse "look at example dot com": a place, not a mailbox."""
    start, end = match.span()
    if _ending(match.group()) in FILE_ENDINGS or match["local"].lower() in NO_MAILBOX:
        return None
    return start, end, 0.8


def check_email_at(match: "re.Match[str]") -> Found | None:
    """Accept "name at example.org" where the name is no plain word, or mail is spoken of."""
    start, end = match.span()
    telling = re.search(r"[\d._+]", match["local"]) or EMAIL_WORDS.search(before(match, start, 40))
    return check_hidden_email(match) if telling else None


def _ending(address: str) -> str:
    return re.split(r"[^a-z]", address.lower().rstrip("])>} "))[-1]


DETECTORS = (
    Detector("EMAIL_ADDRESS", ("@",), EMAIL, check_email, 72, 260),
    Detector(
        "EMAIL_ADDRESS",
        (
            r"\s@",
            r"@\s",
            r"%40",
            r"&#0*64;",
            r"&#x0*40;",
            "&commat;",
            r"\\u0040",
            r"[(\[{<]\s?(at|a|@)\s?[)\]}>]",
            "艾特",
            "[(\\[{<]\\s?圈a",
            r"@[^\s@]+[(\[ ](dot|punkt)",
            "点(com|cn|net)",
            r"@[^\s@]+\s?点",
        ),
        EMAIL_HIDDEN,
        check_hidden_email,
        90,
        260,
    ),
    Detector("EMAIL_ADDRESS", (r"\sat\s[a-z0-9-]+\.[a-z]",), EMAIL_AT, check_email_at, 100, 80),
    Detector(
        "EMAIL_ADDRESS",
        (r"\s(at|arroba|klammeraffe)\s[a-z0-9-]+\s?(dot|punkt|point)\s",),
        EMAIL_SPELT,
        check_hidden_email,
        260,
        140,
    ),
    Detector("EMAIL_ADDRESS", (r"\s@\s\w\s",), EMAIL_SPACED, before=90, after=160),
    Detector(
        "EMAIL_ADDRESS",
        (
            r"[#*](qq|163|126|gmail|sina|foxmail|outlook|hotmail|yahoo|sohu|139|yeah|aliyun|"
            r"icloud)(\.|点)c?",
        ),
        EMAIL_HASHED,
        before=90,
        after=20,
    ),
)
