"""Valid values that Faker does not make: checksummed numbers, keys and tokens, from a seed."""

import base64
import hashlib
import json
import random
import string

from privacy.checksums import BASE58, BASE58_RIPPLE, BECH32, CN_ID_CHECK, CN_ID_WEIGHTS

ALNUM = string.ascii_letters + string.digits
URL_SAFE = ALNUM + "-_"
HEX = "0123456789abcdef"


def draw(rng: random.Random, alphabet: str, count: int) -> str:
    """Return `count` characters of an alphabet."""
    return "".join(rng.choices(alphabet, k=count))


def luhn_complete(digits: str) -> str:
    """Append the Luhn check digit."""
    total = 0
    for index, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 if index % 2 == 0 else 1)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


def card(rng: random.Random) -> str:
    """Return a card number of a large issuer, without separators."""
    prefix, length = rng.choice(
        [
            ("4", 16),
            ("51", 16),
            ("55", 16),
            ("2345", 16),
            ("34", 15),
            ("37", 15),
            ("6011", 16),
            ("65", 16),
            ("3528", 16),
            ("36", 14),
            ("62", 16),
            ("4", 13),
            ("6759", 12),
        ]
    )
    return luhn_complete(prefix + draw(rng, string.digits, length - len(prefix) - 1))


def bank_card(rng: random.Random) -> str:
    """Return a UnionPay debit card's 19 digits."""
    prefix = rng.choice(["622202", "621700", "622848", "621661", "623052"])
    return luhn_complete(prefix + draw(rng, string.digits, 12))


def grouped(number: str, separator: str) -> str:
    """Divide a card number as it is printed."""
    sizes = (4, 6, 5) if len(number) == 15 else (4,) * (len(number) // 4 + 1)
    parts, start = [], 0
    for size in sizes:
        parts.append(number[start : start + size])
        start += size
    return separator.join(part for part in parts if part)


def iban(rng: random.Random) -> str:
    """Return an IBAN of one of eight countries."""
    country, form = rng.choice(
        [
            ("DE", "d" * 18),
            ("GB", "aaaa" + "d" * 14),
            ("FR", "d" * 23),
            ("NL", "aaaa" + "d" * 10),
            ("CH", "d" * 17),
            ("ES", "d" * 20),
            ("AT", "d" * 16),
            ("NO", "d" * 11),
        ]
    )
    body = "".join(
        draw(rng, string.digits if kind == "d" else string.ascii_uppercase, 1) for kind in form
    )
    number = int("".join(str(int(character, 36)) for character in body + country + "00"))
    return f"{country}{98 - number % 97:02d}{body}"


def cn_id(rng: random.Random) -> str:
    """Return a Chinese resident number."""
    area = rng.choice(["110101", "310115", "440305", "510104", "330106", "420111"])
    day = f"{rng.randint(1940, 2015)}{rng.randint(1, 12):02d}{rng.randint(1, 28):02d}"
    body = area + day + draw(rng, string.digits, 3)
    total = sum(int(digit) * weight for digit, weight in zip(body, CN_ID_WEIGHTS, strict=True))
    return body + CN_ID_CHECK[total % 11]


def ssn(rng: random.Random) -> str:
    """Return the nine digits of an assignable US social security number."""
    area = rng.choice([number for number in range(1, 900) if number != 666])
    return f"{area:03d}{rng.randint(1, 99):02d}{rng.randint(1, 9999):04d}"


def crypto(rng: random.Random) -> str:
    """Return a Bitcoin, Litecoin, Tron, Dogecoin, Ripple or Ethereum address."""
    kind = rng.choice(["btc", "p2sh", "ltc", "trx", "doge", "xrp", "eth", "bech32", "taproot"])
    if kind == "eth":
        return "0x" + draw(rng, HEX, 40)
    if kind in ("bech32", "taproot"):
        return _bech32(rng, taproot=kind == "taproot")
    version = {"btc": 0, "p2sh": 5, "ltc": 48, "trx": 65, "doge": 30, "xrp": 0}[kind]
    data = bytes([version]) + rng.randbytes(20)
    data += hashlib.sha256(hashlib.sha256(data).digest()).digest()[:4]
    alphabet = BASE58_RIPPLE if kind == "xrp" else BASE58
    number, text = int.from_bytes(data), ""
    while number:
        number, rest = divmod(number, 58)
        text = alphabet[rest] + text
    return alphabet[0] * (len(data) - len(data.lstrip(b"\0"))) + text


def _bech32(rng: random.Random, taproot: bool) -> str:
    """Complete a segregated-witness address by the reference algorithm of BIP 173 and 350."""
    program = [rng.randrange(32) for _ in range(51 if taproot else 31)] + [0]
    values = [1 if taproot else 0, *program]
    expanded = [3, 3, 0, 2, 3, *values, 0, 0, 0, 0, 0, 0]
    check = 1
    for value in expanded:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for index, term in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= term if top >> index & 1 else 0
    check ^= 0x2BC830A3 if taproot else 1
    tail = [check >> 5 * (5 - index) & 31 for index in range(6)]
    return "bc1" + "".join(BECH32[value] for value in values + tail)


def api_key(rng: random.Random) -> str:
    """Return a key in the form of one of many providers."""
    upper = string.ascii_uppercase + string.digits
    forms = [
        ("AKIA", upper, 16),
        ("ghp_", ALNUM, 36),
        ("github_pat_", ALNUM, 82),
        ("glpat-", URL_SAFE, 20),
        ("AIza", URL_SAFE, 35),
        ("sk_live_", ALNUM, 24),
        ("rk_live_", ALNUM, 24),
        ("hf_", ALNUM, 34),
        ("sk-proj-", ALNUM, 48),
        ("sk-ant-api03-", URL_SAFE, 93),
        ("npm_", ALNUM, 36),
        ("SK", HEX, 32),
        ("dop_v1_", HEX, 64),
        ("dapi", HEX, 32),
        ("shpat_", HEX, 32),
        ("LTAI5t", ALNUM, 18),
        ("AKID", ALNUM, 32),
        ("gsk_", ALNUM, 52),
        ("GOCSPX-", URL_SAFE, 28),
        ("xoxb-", string.digits, 12),
        ("pypi-AgEIcHlwaS5vcmc", URL_SAFE, 60),
        ("hvs.", ALNUM, 24),
        ("glsa_", ALNUM, 41),
        ("dckr_pat_", ALNUM, 27),
        ("sq0atp-", ALNUM, 22),
        ("key-", HEX, 32),
    ]
    prefix, alphabet, count = rng.choice(forms)
    middle = draw(rng, alphabet, count - 1) + rng.choice(
        ALNUM if alphabet == URL_SAFE else alphabet
    )
    tail = "-" + draw(rng, ALNUM, 24) if prefix == "xoxb-" else ""
    if prefix == "SK":
        return prefix + middle
    return prefix + middle + tail


def jwt(rng: random.Random) -> str:
    """Return a signed JSON web token of no issuer."""
    head = {"alg": rng.choice(["HS256", "RS256", "ES256"]), "typ": "JWT"}
    body = {"sub": draw(rng, string.digits, 10), "iat": rng.randint(10**9, 2 * 10**9)}
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=")
        for part in (head, body)
    ]
    return ".".join([*parts, draw(rng, URL_SAFE, 43)])


def private_key(rng: random.Random) -> str:
    """Return a block in the form of a PEM private key."""
    label = rng.choice(["RSA PRIVATE KEY", "PRIVATE KEY", "EC PRIVATE KEY", "OPENSSH PRIVATE KEY"])
    lines = "\n".join(draw(rng, ALNUM + "+/", 64) for _ in range(rng.randint(3, 12)))
    return f"-----BEGIN {label}-----\n{lines}\n-----END {label}-----"
