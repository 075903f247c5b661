"""Detectors of what machines are called: IP and MAC addresses, and URLs that carry a password."""

import ipaddress
import re

from privacy.detectors import EDGE, END, Detector, Found, before, words

IPV4 = re.compile(
    r"(?:(?<![0-9A-Za-z_])(?<!\d\.)|(?<=(?<!\\)\\[nrt]))\d{1,3}(?:\[?\.\]?\d{1,3})"
    r"{3}(?![0-9A-Za-z_])(?!\.\d)"
)
IPV6 = re.compile(
    r"(?:(?<![0-9A-Za-z_.])|(?<=(?<!\\)\\[nrt]))(?=[0-9a-f:]{0,45}[0-9])"
    r"(?:[0-9a-f]{1,4}:|:(?=:)|(?<=:):){1,8}"
    r"(?:(?:\d{1,3}\.){3}\d{1,3}|[0-9a-f]{1,4})?(?P<zone>%[0-9a-z_.]{1,16})?(?![0-9A-Za-z_])",
    re.IGNORECASE,
)
MAC = re.compile(
    EDGE + r"(?<!-)(?<![0-9a-f]{4}\.)(?:[0-9a-f]{2}:(?:[0-9a-f]{2}:){4}[0-9a-f]{2}|"
    r"[0-9a-f]{2}-(?:[0-9a-f]{2}-){4}[0-9a-f]{2}"
    r"|[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4})(?![:-]?[0-9a-f]{2}(?:[:-]|\b))(?!\.[0-9a-f])" + END,
    re.IGNORECASE,
)
MAC_BARE = re.compile(EDGE + r"[0-9a-f]{12}" + END, re.IGNORECASE)
MAC_WORDS = words(r"\bmac\b", r"hardware address", r"ethernet", r"hwaddr", r"bssid", "物理地址")
VERSION_WORDS = words(
    r"\bv(?:er(?:sion)?)?\.? ?$",
    r"\bversion(?:en| is| number)?[: ]*$",
    r"\brelease[: ]*$",
    r"\bfirmware[: ]*$",
    r"\bbuild[: ]*$",
    r"\bsection[: ]*$",
    r"\bchapter[: ]*$",
    r"版本(?:号)?[:： ]*$",
    r"\bdriver[: ]*$",
    r"§ ?$",
    r"\boid[: ]*$",
)
SECRET_PARAMETER = (
    r"(?:access_?token|auth_?token|api_?key|apikey|token|secret|client_secret|password|passwd|pwd"
    r"|sig|signature|x-amz-signature|sessionid|session_id|refresh_token|id_token|code)"
)
URL_CREDENTIALS = re.compile(
    r"(?<![A-Za-z0-9+.-])[a-z][a-z0-9+.-]{1,20}://[^\s\0/@:\"'<>]{0,128}:[^\s\0/@\"'<>]{1,256}"
    r"@[^\s\0\"'<>，。；）)\]}]{1,512}",
    re.IGNORECASE,
)
URL_SECRET = re.compile(
    r"(?<![A-Za-z0-9+.-])[a-z][a-z0-9+.-]{1,20}://[^\s\0\"'<>?]{1,512}\?"
    rf"(?:[^\s\0\"'<>&]{{0,256}}&){{0,16}}?{SECRET_PARAMETER}=[^\s\0\"'<>&]{{6,}}"
    r"[^\s\0\"'<>，。；）)\]}]{0,1024}",
    re.IGNORECASE,
)
TRAILING = ".,;:!?)]}'\""


def check_ipv4(match: "re.Match[str]") -> Found | None:
    """Refuse parts over 255, leading zeros, and version or section numbers."""
    start, end = match.span()
    parts = re.split(r"\[?\.\]?", match.group())
    if any(int(part) > 255 or (len(part) > 1 and part[0] == "0") for part in parts):
        return None
    return None if VERSION_WORDS.search(before(match, start, 20)) else (start, end, 0.95)


def check_ipv6(match: "re.Match[str]") -> Found | None:
    """Accept what the standard library parses; short forms need the look of an address."""
    start = match.start()
    value = match.group().split("%")[0]
    if _within_groups(match, start, 4):
        return None
    if value.startswith(":::"):
        start, value = start + 1, value[1:]
    if value.endswith(":") and not value.endswith("::"):
        value = value[:-1]
    if not value.endswith(":") or len(value) > 2:
        try:
            ipaddress.IPv6Address(value)
        except ValueError:
            return None
    groups = [group for group in value.split(":") if group]
    long_group = any(len(group) >= 3 for group in groups)
    alone = value == "::1" or value.lower().startswith("::ffff:")
    if not (len(groups) >= 4 or alone or (long_group and "::" in value)):
        return None
    zone = match["zone"] or ""
    return start, start + len(value) + len(zone), 0.95


def check_mac(match: "re.Match[str]") -> Found | None:
    """Refuse the tail of a longer row of groups."""
    if _within_groups(match, match.start(), 2):
        return None
    return *match.span(), 0.9 if re.fullmatch(r"[\d.]+", match.group()) else 1.0


def check_bare_mac(match: "re.Match[str]") -> Found | None:
    """Accept twelve hexadecimal digits right behind a word for the address."""
    near = MAC_WORDS.search(before(match, match.start(), 24))
    return (*match.span(), 0.7) if near else None


def check_url(match: "re.Match[str]") -> Found:
    """Leave out the punctuation of the sentence around."""
    return match.start(), match.start() + len(match.group().rstrip(TRAILING)), 1.0


def _within_groups(match: "re.Match[str]", start: int, digits_max: int) -> bool:
    """Tell whether a hexadecimal group and a colon stand in front: the value began earlier."""
    lead = re.search(r"(\w*):$", before(match, start, 16))
    return bool(lead and re.fullmatch(rf"[0-9a-fA-F]{{0,{digits_max}}}", lead[1]))


DETECTORS = (
    Detector(
        "IP_ADDRESS", (r"\d\[?\.\]?\d{1,3}\[?\.\]?\d{1,3}\[?\.\]?\d",), IPV4, check_ipv4, 24, 24
    ),
    Detector(
        "IP_ADDRESS",
        (r"[0-9a-f]{1,4}:[0-9a-f]{0,4}:[0-9a-f]{0,4}:", r"::[0-9a-f]", r"[0-9a-f]::"),
        IPV6,
        check_ipv6,
        64,
        64,
    ),
    Detector(
        "MAC_ADDRESS",
        (r"[0-9a-f]{2}([:-][0-9a-f]{2}){5}", r"[0-9a-f]{4}\.[0-9a-f]{4}\.[0-9a-f]{4}"),
        MAC,
        check_mac,
        32,
        16,
    ),
    Detector(
        "MAC_ADDRESS",
        (r"\bmac\b", "hardware address", "hwaddr", "bssid", "物理地址"),
        MAC_BARE,
        check_bare_mac,
        16,
        48,
    ),
    Detector("URL", (r"://[^\s/@]*@",), URL_CREDENTIALS, check_url, 440, 520),
    Detector("URL", (rf"[?&]{SECRET_PARAMETER}=",), URL_SECRET, check_url, 1400, 1400),
)
