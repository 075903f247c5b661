"""Detectors of keys that open something: providers' API keys, tokens, JWT and private keys."""

import base64
import json
import math
import re
from collections import Counter

from privacy.detectors import EDGE, Detector, Found, bounds

PROVIDER_KEYS = (
    r"(?:AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]{16}",  # Amazon
    r"gh[pousr]_[A-Za-z0-9]{36,255}",
    r"github_pat_[A-Za-z0-9_]{36,255}",
    r"gl(?:pat|dt|rt|ptt|ft|soat|cbt|oas)-[A-Za-z0-9_.=-]{20,64}",
    r"xox[abeoprs]-[A-Za-z0-9-]{10,250}",
    r"xapp-\d-[A-Za-z0-9-]{20,250}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,500}",
    r"GOCSPX-[A-Za-z0-9_-]{28}",
    r"(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16,247}",
    r"whsec_[A-Za-z0-9+/=]{24,64}",
    r"sk-ant-[A-Za-z0-9_-]{24,200}",
    r"sk-or-v1-[0-9a-f]{64}",
    r"sk-(?:proj|svcacct|admin|None)-[A-Za-z0-9_-]{20,250}",
    r"sk-[A-Za-z0-9]{20,64}",
    r"hf_[A-Za-z0-9]{30,40}",
    r"api_org_[A-Za-z0-9]{30,40}",
    r"npm_[A-Za-z0-9]{36}",
    r"pypi-[A-Za-z0-9_-]{50,500}",
    r"rubygems_[0-9a-f]{48}",
    r"crates?_?io?_[A-Za-z0-9]{32}",
    r"(?:AC|SK)[0-9a-f]{32}",
    r"SG\.[A-Za-z0-9_-]{16,32}\.[A-Za-z0-9_-]{16,64}",
    r"key-[0-9a-f]{32}",
    r"[0-9a-f]{32}-us\d{1,2}",
    r"do[opr]_v1_[0-9a-f]{64}",
    r"[MNO][A-Za-z0-9_-]{23,25}\.[A-Za-z0-9_-]{6}\.[A-Za-z0-9_-]{27,38}",  # Discord
    r"\d{8,10}:[A-Za-z0-9_-]{35}",  # Telegram
    r"(?:AccountKey|SharedAccessKey)=[A-Za-z0-9+/]{40,88}={0,2}",
    r"dapi[0-9a-f]{32}(?:-\d)?",
    r"shp(?:at|ca|pa|ss)_[0-9a-fA-F]{32}",
    r"sq0(?:atp|csp|idp)-[A-Za-z0-9_-]{22,43}",
    r"EAAA[A-Za-z0-9_-]{60}",
    r"sl\.[A-Za-z0-9_-]{100,200}",
    r"ATATT3[A-Za-z0-9_=-]{60,250}",
    r"lin_api_[A-Za-z0-9]{40}",
    r"(?:secret|ntn)_[A-Za-z0-9]{43,50}",
    r"PMAK-[0-9a-f]{24}-[0-9a-f]{34}",
    r"dp\.(?:pt|st|ct|sa)\.[A-Za-z0-9._-]{40,60}",
    r"hv[sbr]\.[A-Za-z0-9_-]{24,300}",
    r"gl(?:sa|c)_[A-Za-z0-9_+/=]{32,200}",
    r"dckr_(?:pat|oat)_[A-Za-z0-9_-]{27,40}",
    r"LTAI[A-Za-z0-9]{12,24}",
    r"AKID[A-Za-z0-9]{32}",
    r"gsk_[A-Za-z0-9]{40,64}",
    r"r8_[A-Za-z0-9]{37}",
    r"xai-[A-Za-z0-9]{60,100}",
    r"pplx-[A-Za-z0-9]{40,64}",
    r"sb[pt]_[0-9a-f]{40}",
    r"sntry[su]_[A-Za-z0-9_+/=]{40,250}",
    r"NR(?:AK|JS)-[A-Za-z0-9]{19,27}",
    r"[A-Za-z0-9]{14}\.atlasv1\.[A-Za-z0-9_=-]{60,70}",
    r"AGE-SECRET-KEY-1[0-9A-Z]{58}",
    r"fo1_[A-Za-z0-9_-]{43}",
    r"FlyV1 fm\d_[A-Za-z0-9+/=,_-]{80,500}",
    r"rnd_[A-Za-z0-9]{28,40}",
    r"vercel_[A-Za-z0-9]{24,40}",
    r"figd_[A-Za-z0-9_-]{40,60}",
    r"tfp_[A-Za-z0-9_]{40,70}",
    r"pat[A-Za-z0-9]{14}\.[0-9a-f]{64}",
    r"nvapi-[A-Za-z0-9_-]{60,80}",
    r"fw_[A-Za-z0-9]{24}",
    r"https://hooks\.slack\.com/(?:services|workflows)/[A-Za-z0-9/_+-]{20,120}",
    r"https://(?:discord|discordapp)\.com/api/webhooks/\d{17,20}/[A-Za-z0-9_-]{60,80}",
)
"""Keys whose own form names the provider (the providers' documentation, secret scanners' rules)."""
KEY_HEADS = (
    r"\b(AKIA|ASIA|ABIA|ACCA|AROA|AIDA)[A-Z0-9]",
    r"gh[pousr]_[a-z0-9]",
    r"github_pat_",
    r"gl(pat|dt|rt|ptt|ft|soat|cbt|oas)-",
    r"xox[abeoprs]-",
    r"xapp-\d",
    "AIza[a-z0-9_-]{6}",
    r"ya29\.",
    "GOCSPX-",
    r"(sk|rk|pk)_(live|test)_",
    "whsec_",
    r"\bsk-[a-z0-9]",
    r"\bhf_[a-z0-9]{8}",
    "api_org_",
    "npm_[a-z0-9]{8}",
    "pypi-[a-z0-9]{8}",
    "rubygems_",
    "cio_[a-z0-9]{8}",
    "crates?_io",
    r"\b(AC|SK)[0-9a-f]{32}",
    r"SG\.[a-z0-9_-]{16}",
    r"key-[0-9a-f]{32}",
    r"[0-9a-f]{32}-us\d",
    r"do[opr]_v1_",
    r"[a-z0-9_-]{9}\.[a-z0-9_-]{6}\.[a-z0-9_-]{9}",
    r"\d{8}:[a-z0-9_-]{9}",
    "AccountKey=",
    "AccessKey=",
    "dapi[0-9a-f]{8}",
    "shp(at|ca|pa|ss)_",
    "sq0(atp|csp|idp)-",
    r"\bEAAA[a-z0-9_-]{20}",
    r"\bsl\.[a-z0-9_-]{20}",
    "ATATT3",
    "lin_api_",
    r"(secret|ntn)_[a-z0-9]{20}",
    "PMAK-",
    r"dp\.(pt|st|ct|sa)\.",
    r"\bhv[sbr]\.",
    r"gl(sa|c)_",
    "dckr_",
    "LTAI[a-z0-9]{4}",
    "AKID[a-z0-9]{8}",
    "gsk_[a-z0-9]{8}",
    r"\br8_[a-z0-9]{8}",
    "xai-[a-z0-9]{8}",
    "pplx-",
    r"\bsb[pt]_",
    "sntry[su]_",
    "NR(AK|JS)-",
    "atlasv1",
    "AGE-SECRET",
    "fo1_",
    "FlyV1 fm",
    r"\brnd_[a-z0-9]{8}",
    "vercel_[a-z0-9]{8}",
    "figd_",
    "tfp_[a-z0-9]{8}",
    r"\bpat[a-z0-9]{14}\.",
    "nvapi-",
    r"\bfw_[a-z0-9]{8}",
    r"hooks\.slack\.com/",
    "api/webhooks/",
)
API_KEY = re.compile(EDGE + "(?:" + "|".join(PROVIDER_KEYS) + ")" + r"(?![A-Za-z0-9_])")
KEY_NAME = (
    r"(?:api|access|secret|auth|private|client|consumer|encryption|signing|master|account|app|"
    r"aws_secret_access|azure_client)[ _.-]?(?:access[ _-]?)?(?:key|token|secret)(?:[ _-]?id)?"
    r"|apikey|authtoken|bearer|secret|token|x-api-key|密钥|令牌"
)
ASSIGNED = re.compile(
    rf"(?:{KEY_NAME})[\"'`]?(?:\s{{0,3}}(?::=|=>|[:=]|\bis\b|为|是)\s{{0,3}}|\s)[\"'`]?"
    r"(?:bearer |basic |token )?(?P<value>[A-Za-z0-9_+/~.\-]{16,512}={0,2})(?![A-Za-z0-9_])",
    re.IGNORECASE,
)
ASSIGNED_HEADS = (
    r"(key|token|secret|bearer|id|密钥|令牌)[\"'`]?([\s:=>]|is|为|是)+[\"'`]?[a-z0-9_+/~.\-]{12}",
    r"[:=][\s\"'`]*(bearer|basic|token) [a-z0-9_+/~.\-]{12}",
)
ENTROPY_BITS_MIN = 3.2
JWT = re.compile(
    EDGE
    + r"(?P<head>eyJ[A-Za-z0-9_-]{10,1000})\.eyJ[A-Za-z0-9_-]{4,8000}\.[A-Za-z0-9_-]{0,2000}"
    + r"(?![A-Za-z0-9_-])"
)
PEM_LABEL = r"(?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?"
PRIVATE_KEY = re.compile(
    rf"-----BEGIN {PEM_LABEL}-----(?:(?!-----)[\x01-\x7f]){{0,20000}}+"
    rf"(?:-----END {PEM_LABEL}-----)?"
)
PUTTY_KEY = re.compile(r"PuTTY-User-Key-File-\d:[\x01-\x7f]{0,6000}?Private-MAC: [0-9a-f]{40,64}")
PEM_REACH = 20_200


def check_assigned(match: "re.Match[str]") -> Found | None:
    """Accept a named value that looks drawn at random: letters and digits of enough entropy."""
    start, end = bounds(match)
    value = match["value"]
    counts = Counter(value).values()
    bits = -sum(count / len(value) * math.log2(count / len(value)) for count in counts)
    mixed = re.search("[A-Za-z]", value) and re.search(r"\d", value)
    if bits < ENTROPY_BITS_MIN or not mixed or re.fullmatch(r"[a-z]+(?:[_.-][a-z0-9]+)+", value):
        return None
    return start, end, 0.8


def check_jwt(match: "re.Match[str]") -> Found | None:
    """Accept where the first part decodes to a JSON object with an algorithm or type."""
    head = match["head"]
    try:
        content = json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))
    except ValueError:
        return None
    known = isinstance(content, dict) and {"alg", "typ", "kid", "enc", "cty"} & content.keys()
    return (*match.span(), 1.0) if known else None


DETECTORS = (
    Detector("API_KEY", KEY_HEADS, API_KEY, before=120, after=520),
    Detector("API_KEY", ASSIGNED_HEADS, ASSIGNED, check_assigned, 80, 520),
    Detector("JWT", (r"\.eyJ",), JWT, check_jwt, 1010, 10_100),
    Detector(
        "PRIVATE_KEY",
        (r"-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY",),
        PRIVATE_KEY,
        before=60,
        after=PEM_REACH,
    ),
    Detector("PRIVATE_KEY", (r"PuTTY-User-Key-File-\d",), PUTTY_KEY, before=24, after=6200),
)
