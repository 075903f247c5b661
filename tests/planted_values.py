"""Personal values for tests to plant in a day's files, and the texts to search for afterwards.

No value is anybody's: documentation ranges, published test numbers, examples of their issuers.
"""

import json
from typing import Any

CARRIERS = {
    "mia.weber@example.com": "write to mia.weber@example.com please",
    "pat_77@mail.example.co.uk": "or to ｐａｔ_77@mail.example.co.uk",
    "138-0013-8000": "call 138-0013-8000 today",
    "+44 20 7946 0018": "ring +44 20 7946 0018 first",
    "4111 1111 1111 1111": "the card 4111 1111 1111 1111",
    "6222021234567890128": "银行卡6222021234567890128",
    "11010519491231002X": "身份证11010519491231002X",
    "DE89370400440532013000": "to DE89370400440532013000, now",
    "219-09-9999": "it is 219-09-9999",
    "AKIAIOSFODNN7EXAMPLE": "key AKIAIOSFODNN7EXAMPLE",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789": "the ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "s3cr3tPassw0rd": "postgres://app:s3cr3tPassw0rd@db/x",
    "203.0.113.77": "from 203.0.113.77",
    "00:1A:2b:3c:4d:5e": "nic 00:1A:2b:3c:4d:5e",
    "1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa": "coin 1A1zP1eP5QGefi2DMPTfTL5SLmv7DivfNa",
    "粤B12345D": "车牌粤B12345D",
    "E12345678": "护照号E12345678",
    "Wilhelmina O'Sullivan": "My name is Wilhelmina O'Sullivan, hello",
}
"""Each value and the text in which it is planted; one is written in full width there."""
VALUES = [*CARRIERS, "ｐａｔ_77@mail.example.co.uk"]
PLANTED_ID = "planted-"


def good_rows(row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return rows like `row` that pass the contract: a value in each text, and one as each id."""
    rows = []
    for number, carrier in enumerate(CARRIERS.values()):
        text = f"{row['text']} {number} {carrier}"
        rows.append({**row, "id": f"{PLANTED_ID}{number}", "text": text})
        rows.append({**row, "id": carrier, "text": f"{row['text']} number {number} of the ids"})
    return rows


def refused_rows() -> list[dict[str, Any]]:
    """Return rows that the contract refuses, with a value where nobody would look for one."""
    deep = [
        {"id": f"refused-{number}", "text": 7, "note": {"deep": [carrier]}, carrier: number}
        for number, carrier in enumerate(CARRIERS.values())
    ]
    hidden = [
        {"id": f"hidden-{number}", "text": "\0".join(carrier), "note": "\x08".join(carrier)}
        for number, carrier in enumerate(CARRIERS.values())
    ]
    return [*deep, *hidden]


def broken_lines() -> list[bytes]:
    """Return lines that are no JSON, and lines that are no UTF-8."""
    no_json = [f'{{"text": "{carrier}'.encode() for carrier in CARRIERS.values()]
    escaped = [json.dumps({"text": carrier})[:-1].encode() for carrier in CARRIERS.values()]
    no_utf8 = [b"\xff\xfe " + carrier.encode() for carrier in CARRIERS.values()]
    wide = [
        json.dumps({"text": carrier}, ensure_ascii=False).encode(coding).replace(b"\n", b"")
        for carrier in CARRIERS.values()
        for coding in ("utf-16-le", "utf-16-be", "utf-32-le")
    ]
    return [*no_json, *escaped, *no_utf8, *wide]
