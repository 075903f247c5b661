"""Detectors of payment cards, bank accounts and crypto-currency addresses."""

import re

from privacy.checksums import BASE58_RIPPLE, IBAN_LENGTHS, base58check, bech32, iban, luhn
from privacy.detectors import (
    EDGE,
    END,
    NUMBER_EDGE,
    Detector,
    Found,
    after,
    before,
    bounds,
    digits_of,
    otherwise_named,
    words,
)

CARD_DIGITS_MIN, CARD_DIGITS_MAX = 12, 19
CARD = re.compile(
    NUMBER_EDGE + r"(?=[2-69]|1[ .-]?8|8[ .-]?[12]|0604)(?=(?P<value>\d(?:[ .-]?\d){11,18}))"
)
BRANDS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})$"  # Visa
    r"|(?:5[1-5]\d{14}|(?:222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12})$"  # Mastercard
    r"|3[47]\d{13}$"  # American Express
    r"|(?:6011|64[4-9]\d|65\d\d)\d{12,15}$"  # Discover
    r"|(?:30[0-5]\d|3095|36\d\d|3[89]\d\d)\d{10,15}$"  # Diners Club
    r"|35\d{14,17}$|(?:2131|1800)\d{11}$"  # JCB
    r"|(?:50|5[6-8]|67)\d{10,17}$|(?:0604|6304|6390)\d{8,15}$"  # Maestro
    r"|62\d{14,17}$"  # UnionPay
    r"|220[0-4]\d{12,15}$|9792\d{12}$"  # Mir, Troy
    r"|(?:60|81|82|508)\d{13,14}$"  # RuPay
)
CARD_WORDS = words(
    r"\bcard\b",
    r"\bcredit",
    r"\bdebit",
    r"\bvisa\b",
    r"master ?card",
    r"\bamex\b",
    r"kredit",
    r"karte\b",
    r"卡号",
    r"银行卡",
    r"信用卡",
    r"储蓄卡",
    r"借记卡",
    r"账号",
    r"account",
)
SEPARATORS = re.compile("[ .-]")
UNIONPAY_PREFIX = "62"
MONERO_LENGTH = 95
IBAN = re.compile(
    EDGE + r"(?=(?P<value>[A-Z]{2}[ -]?\d[ -]?\d(?:[ -]?[A-Z0-9]){11,31}))", re.IGNORECASE
)
BASE58_CLASS = "[1-9A-HJ-NP-Za-km-z]"
BASE58_ADDRESS = re.compile(
    EDGE + rf"(?:[13LMDT9Amn]{BASE58_CLASS}{{24,33}}|[5KLc]{BASE58_CLASS}{{50,51}}"
    rf"|r{BASE58_CLASS}{{24,34}}|[48]{BASE58_CLASS}{{94}}(?:{BASE58_CLASS}{{11}})?)" + END
)
BECH32_ADDRESS = re.compile(
    EDGE + r"(?:bc|tb|ltc|bcrt)1[02-9ac-hj-np-z]{11,87}" + END, re.IGNORECASE
)
ETHEREUM = re.compile(EDGE + r"0x[0-9a-fA-F]{40}" + END)
CARDANO = re.compile(EDGE + r"addr1[02-9ac-hj-np-z]{50,100}" + END)
SOLANA = re.compile(EDGE + rf"{BASE58_CLASS}{{32,44}}" + END)
SOLANA_WORDS = words(r"solana", r"\bsol\b", r"phantom", r"wallet", "钱包")


def check_card(match: "re.Match[str]") -> Found | None:
    """Find the longest run of whole groups that is a card number of a known issuer."""
    start = match.start("value")
    candidate = match["value"]
    text = match.string
    end = start + len(candidate)
    if text[end : end + 1].isdigit():
        candidate = _shorter(candidate)
    while candidate:
        digits = SEPARATORS.sub("", candidate)
        if len(digits) < CARD_DIGITS_MIN:
            return None
        if luhn(digits) and len(set(digits)) > 1:
            end = start + len(candidate)
            known = BRANDS.match(digits) is not None
            named = known or CARD_WORDS.search(before(match, start, 32)) is not None
            if named and not re.match(r"[A-Za-z_]|\.\d", text[end : end + 2]):
                score = 0.95 if known else 0.75
                return None if otherwise_named(match, start) else (start, end, score)
        candidate = _shorter(candidate)
    return None


def check_bank_card(match: "re.Match[str]") -> Found | None:
    """Accept card numbers of Chinese banks: UnionPay's longer ones, or named a bank card."""
    found = check_card(match)
    if found is None:
        return None
    start, end, score = found
    digits = digits_of(match.string[start:end])
    union = digits.startswith(UNIONPAY_PREFIX) and len(digits) > 16
    named = re.search("银行卡|储蓄卡|借记卡", before(match, start, 16))
    return (start, end, score + 0.01) if union or named else None


def check_iban(match: "re.Match[str]") -> Found | None:
    """Accept exactly as many characters as the country's IBANs have, with the right check."""
    start = match.start("value")
    raw = match["value"]
    wanted = IBAN_LENGTHS.get(raw[:2].upper(), 0)
    plain = 0
    for place, character in enumerate(raw):
        plain += character.isalnum()
        if plain == wanted:
            end = start + place + 1
            value = re.sub("[ -]", "", raw[: place + 1])
            ends = re.match(END, match.string[end : end + 1])
            return (start, end, 1.0) if ends and iban(value) else None
    return None


def check_base58(match: "re.Match[str]") -> Found | None:
    """Accept base58 with its checksum: Bitcoin and alike, Tron, Ripple, and private keys.

    Monero's addresses have another checksum (Keccak): their length and alphabet must do.
    """
    value = match.group()
    valid = (
        len(value) >= MONERO_LENGTH
        or base58check(value)
        or (value[0] == "r" and base58check(value, BASE58_RIPPLE))
    )
    return (*match.span(), 1.0) if valid else None


def check_bech32(match: "re.Match[str]") -> Found | None:
    """Accept segregated-witness addresses with their checksum."""
    return (*match.span(), 1.0) if bech32(match.group()) else None


def check_solana(match: "re.Match[str]") -> Found | None:
    """Accept 32 to 44 base58 characters of mixed kind beside a word for the wallet."""
    start, end = bounds(match)
    value = match.group()
    mixed = re.search("[a-z]", value) and re.search("[A-Z]", value) and re.search(r"\d", value)
    near = SOLANA_WORDS.search(before(match, start)) or SOLANA_WORDS.search(after(match, end))
    return (start, end, 0.7) if mixed and near else None


def _shorter(candidate: str) -> str:
    """Drop the last group of digits; "" when there is only one."""
    last = max(candidate.rfind(" "), candidate.rfind("."), candidate.rfind("-"))
    return candidate[:last] if last > 0 else ""


DETECTORS = (
    Detector("CREDIT_CARD", (r"\d([ .-]?\d){11}",), CARD, check_card, 48, 32),
    Detector(
        "CN_BANK_CARD",
        (r"6[ .-]?2([ .-]?\d){15}", "银行卡", "储蓄卡", "借记卡"),
        CARD,
        check_bank_card,
        48,
        64,
    ),
    Detector(
        "IBAN_CODE",
        (r"\b[a-z]{2}[ -]?\d[ -]?\d([ -]?[a-z0-9]){11}", r"n[a-z]{2}\d\d([ -]?[a-z0-9]){11}"),
        IBAN,
        check_iban,
        40,
        64,
    ),
    Detector("CRYPTO", (r"[1-9a-z]{25}",), BASE58_ADDRESS, check_base58, 120, 120),
    Detector("CRYPTO", (r"(bc|tb|ltc|bcrt)1[02-9a-z]{11}",), BECH32_ADDRESS, check_bech32, 24, 96),
    Detector("CRYPTO", (r"0x[0-9a-f]{9}",), ETHEREUM, before=16, after=48),
    Detector("CRYPTO", ("addr1[02-9a-z]{8}",), CARDANO, before=16, after=104),
    Detector("CRYPTO", (r"solana|phantom|wallet|\bsol\b|钱包",), SOLANA, check_solana, 64, 96),
)
