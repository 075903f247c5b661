"""Check digits of numbers that people and payments carry; knows nothing of texts."""

import hashlib
import re
from datetime import date

BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
BASE58_RIPPLE = "rpshnaf39wBUDNEGHJKLM4PQRST7VWXYZ2bcdeCg65jkm8oFqi1tuvAxyz"
BECH32 = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
BECH32_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
BECH32_CONSTANTS = (1, 0x2BC830A3)
CN_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)
CN_ID_CHECK = "10X98765432"
DOUBLED = str.maketrans("0123456789", "0246813579")
"""Twice a digit, its own digits added."""
MRZ_WEIGHTS = (7, 3, 1)
IBAN_LENGTHS = {
    "AD": 24, "AE": 23, "AL": 28, "AT": 20, "AZ": 28, "BA": 20, "BE": 16, "BG": 22, "BH": 22,
    "BI": 27, "BR": 29, "BY": 28, "CH": 21, "CR": 22, "CY": 28, "CZ": 24, "DE": 22, "DJ": 27,
    "DK": 18, "DO": 28, "EE": 20, "EG": 29, "ES": 24, "FI": 18, "FK": 18, "FO": 18, "FR": 27,
    "GB": 22, "GE": 22, "GI": 23, "GL": 18, "GR": 27, "GT": 28, "HN": 28, "HR": 21, "HU": 28,
    "IE": 22, "IL": 23, "IQ": 23, "IS": 26, "IT": 27, "JO": 30, "KW": 30, "KZ": 20, "LB": 28,
    "LC": 32, "LI": 21, "LT": 20, "LU": 20, "LV": 21, "LY": 25, "MC": 27, "MD": 24, "ME": 22,
    "MK": 19, "MN": 20, "MR": 27, "MT": 31, "MU": 30, "NI": 28, "NL": 18, "NO": 15, "OM": 23,
    "PK": 24, "PL": 28, "PS": 29, "PT": 25, "QA": 29, "RO": 24, "RS": 22, "RU": 33, "SA": 24,
    "SC": 31, "SD": 18, "SE": 24, "SI": 19, "SK": 24, "SM": 27, "SO": 23, "ST": 25, "SV": 28,
    "TL": 23, "TN": 24, "TR": 26, "UA": 29, "VA": 22, "VG": 24, "XK": 20, "YE": 30,
}  # fmt: skip
"""Characters of an IBAN by country (SWIFT IBAN registry)."""


def luhn(number: str) -> bool:
    """Tell whether the digits of `number` pass the Luhn check (ISO/IEC 7812-1)."""
    digits = number if number.isdecimal() else re.sub("[^0-9]", "", number)
    return sum((digits[-1::-2] + digits[-2::-2].translate(DOUBLED)).encode()) % 10 == (
        8 * len(digits) % 10  # each digit's character code is 48 more than the digit
    )


def iban(number: str) -> bool:
    """Tell whether an IBAN without separators has its country's length and check (ISO 13616)."""
    upper = number.upper()
    if IBAN_LENGTHS.get(upper[:2]) != len(upper):
        return False
    return int("".join(str(int(character, 36)) for character in upper[4:] + upper[:4])) % 97 == 1


def cn_id_card(number: str) -> bool:
    """Tell whether 18 characters are a Chinese resident number (GB 11643): date and check."""
    if not calendar_date(number[6:10], number[10:12], number[12:14]):
        return False
    total = sum(int(digit) * weight for digit, weight in zip(number, CN_ID_WEIGHTS, strict=False))
    return CN_ID_CHECK[total % 11] == number[17].upper()


def calendar_date(year: str, month: str, day: str) -> bool:
    """Tell whether three numbers are a day between 1850 and 2100."""
    try:
        return 1850 <= date(int(year), int(month), int(day)).year <= 2100
    except ValueError:
        return False


def us_ssn(number: str) -> bool:
    """Tell whether nine digits can be a US social security number (SSA: never assigned parts)."""
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in {"000", "666"} and area < "900" and group != "00" and serial != "0000"


def mrz(line: str) -> bool:
    """Tell whether the second line of a passport's machine-readable zone checks (ICAO 9303)."""
    parts = ((line[:9], line[9]), (line[13:19], line[19]), (line[21:27], line[27]))
    return all(check == str(_mrz_digit(part)) for part, check in parts)


def base58check(text: str, alphabet: str = BASE58) -> bool:
    """Tell whether a base58 address ends with its checksum (Bitcoin, Ripple, Tron and alike)."""
    number = 0
    for character in text:
        place = alphabet.find(character)
        if place < 0:
            return False
        number = number * 58 + place
    zeros = len(text) - len(text.lstrip(alphabet[0]))
    data = bytes(zeros) + number.to_bytes((number.bit_length() + 7) // 8)
    twice = hashlib.sha256(hashlib.sha256(data[:-4]).digest()).digest()
    return len(data) > 4 and twice[:4] == data[-4:]


def bech32(text: str) -> bool:
    """Tell whether a bech32 or bech32m address has its checksum (BIP 173, BIP 350)."""
    lower = text.lower()
    if text not in (lower, text.upper()):
        return False
    prefix, _, data = lower.rpartition("1")
    values = [BECH32.find(character) for character in data]
    if not prefix or min(values, default=-1) < 0:
        return False
    head = [ord(character) >> 5 for character in prefix]
    check = 1
    for value in [*head, 0, *(ord(character) & 31 for character in prefix), *values]:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for index, generator in enumerate(BECH32_GENERATOR):
            check ^= generator if top >> index & 1 else 0
    return check in BECH32_CONSTANTS


def _mrz_digit(part: str) -> int:
    values = (0 if character == "<" else int(character, 36) for character in part)
    return sum(value * MRZ_WEIGHTS[index % 3] for index, value in enumerate(values)) % 10
