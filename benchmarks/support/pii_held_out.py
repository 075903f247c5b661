"""Texts in formats and sentences that no pattern was written from: what a stranger would type."""

import random
import re
import string
from collections.abc import Iterator
from typing import Any

from benchmarks.support import pii_values as values
from benchmarks.support.pii_corpus import LOCALES, VALUES, Labelled, label

D = string.digits
FULL_WIDTH = str.maketrans(D + "@.", "０１２３４５６７８９＠．")
PLAIN_EMAIL = re.compile(r"[\w.+-]+@[\w.-]+\.\w+$|\"[^\"]+\"@[\w.-]+$")
SENTENCES = {
    "en": (
        "hey, it's {} - cheers",
        "[{}]",
        "note to self: {}; don't lose it",
        '"{}"',
        "Before:{}",
        "<b>{}</b>",
        "see {}?",
        "* {}\n* next",
        "{}",
        "{},12/27",
    ),
    "de": (
        "hallo, es ist {} - danke",
        "({})",
        "Notiz: {}; bitte merken",
        "„{}“",
        "siehe {}?",
        "{}",
    ),
    "zh": ("你好，{}，麻烦了", "【{}】", "备注{}请记住", "“{}”", "看这个{}对吗？", "{}"),
}
SPEECH = {
    "PHONE_NUMBER": {"en": "text {} asap", "de": "mobil {}", "zh": "打{}找我"},
    "PASSPORT": {
        "en": "they scanned my passport, {}, at the gate",
        "de": "Mein Reisepass hat die Nr. {}",
        "zh": "护照号：{}",
    },
    "LICENSE_PLATE": {
        "en": "a blue van, registration {}",
        "de": "Auto mit Kennzeichen {} parkt hier",
        "zh": "{}违停了",
    },
    "DATE_OF_BIRTH": {"en": "my birthday is {}", "de": "geboren am {} in Köln", "zh": "生于{}"},
    "US_SSN": {"en": "Social Security #: {}", "de": "SSN {}", "zh": "SSN {}"},
    "PERSON": {
        "en": "Ms. {} signed the lease",
        "de": "Frau {} ist heute im Haus",
        "zh": "{}女士已签收",
    },
    "LOCATION": {"en": "our office ({}) is closed", "de": "Treffpunkt: {}", "zh": "家住{}，请上门"},
}


def _spaced(text: str) -> str:
    return " ".join(text)


def _email(rng: random.Random, fake: Any) -> str:
    user, domain = fake.user_name(), fake.domain_name()
    name, _, top = domain.rpartition(".")
    return rng.choice(
        [
            f"{user}@{domain}".upper(),
            f"{user}+news@mail.{domain}",
            f"{user}.{user}@{domain}",
            f"{user} [at] {name} [dot] {top}",
            f"{user}(AT){name}(DOT){top}",
            f"{user}@{name} dot {top}",
            f"{user} at {name} dot {top}",
            f"{user} @ {domain}",
            f"{user}@{domain}".translate(FULL_WIDTH),
            f"{user[:2]}\u200b{user[2:]}@{domain}",
            f"{user}&#64;{domain}",
            f"{user}%40{domain}",
            _spaced(f"{user}@{domain}"),
            f'"{user} x"@{domain}',
            f"{user}@{name}-2.co.{top}",
            f"_{user}@{domain}",
            f"{user}@xn--{name[:4]}-kva.{top}",
            f"{user} at {name}.{top}",
        ]
    )


def _phone(rng: random.Random, language: str) -> str:

    def d(count: int) -> str:
        return values.draw(rng, D, count)

    us, nine = f"{rng.randint(201, 989)}", f"5{d(3)}"
    world = [
        f"+91 98{d(3)} {d(5)}",
        f"+33 6 {d(2)} {d(2)} {d(2)} {d(2)}",
        f"+81-90-{d(4)}-{d(4)}",
        f"+55 (11) 9{d(4)}-{d(4)}",
        f"+61 4{d(2)} {d(3)} {d(3)}",
        f"+41 79 {d(3)} {d(2)} {d(2)}",
        f"0041 79 {d(3)} {d(2)} {d(2)}",
        f"+852 {nine} {d(4)}",
    ]
    own = {
        "en": [
            f"+1.{us}.555.{d(4)}",
            f"+1 ({us}) 555-{d(4)}",
            f"{us} 555 {d(4)}",
            f"({us})555.{d(4)}",
            f"1-{us}-555-{d(4)} ext. {d(3)}",
            f"+44 7700 900{d(3)}",
            f"07700 900 {d(3)}",
            f"020 7946 0{d(3)}",
            f"+44 (0) 20 7946 0{d(3)}",
            f"+1{us}555{d(4)}",
            f"{us}-555-{d(4)} x{d(2)}",
        ],
        "de": [
            f"+49 151 {d(8)}",
            f"0151 {d(3)} {d(2)} {d(3)}",
            f"030/{nine} {d(3)}",
            f"(030) {nine}{d(4)}",
            f"0049 89 {d(3)} {d(4)}",
            f"+49-30-{d(4)}-{d(3)}",
            f"0171-{d(7)}",
            f"+49 (89) {d(3)} {d(4)}",
        ],
        "zh": [
            f"138 {d(4)} {d(4)}",
            f"139-{d(4)}-{d(4)}",
            f"+86 186{d(8)}",
            f"0086-177-{d(4)}-{d(4)}",
            f"(+86)155 {d(4)} {d(4)}",
            f"(0755) 8{d(3)} {d(4)}",
            f"021-6{d(7)}",
            f"0571 8{d(7)}",
            f"400-{d(3)}-{d(4)}",
            f"189{d(8)}".translate(FULL_WIDTH),
            _spaced(f"135{d(8)}"),
        ],
    }[language]
    return rng.choice(own + world)


def _plate(rng: random.Random, language: str) -> str:

    def d(count: int) -> str:
        return values.draw(rng, D, count)

    def letters(count: int) -> str:
        return values.draw(rng, "ABCDEFGHJKLMNPRSTUVWXY", count)

    return rng.choice(
        {
            "en": [
                f"{letters(2)}{d(2)} {letters(3)}",
                f"{letters(2)}{d(2)}{letters(3)}",
                f"{letters(3)}-{d(4)}",
                f"{d(1)}{letters(3)}{d(3)}",
            ],
            "de": [
                f"B-{letters(2)} {rng.randint(10, 9999)}",
                f"HH {letters(2)} {rng.randint(10, 999)}E",
                f"M-{letters(1)} {rng.randint(100, 9999)}",
            ],
            "zh": [
                f"粤B{d(5)}D",
                f"京AD{d(5)}",
                f"沪A {letters(1)}{d(4)}",
                f"苏E·{d(2)}{letters(2)}{d(1)}",
                f"浙C{d(4)}学",
            ],
        }[language]
    )


def _value(name: str, rng: random.Random, fake: Any, language: str) -> str:
    drawn = (values.card(rng), values.iban(rng), values.cn_id(rng), values.ssn(rng))
    number = f"{rng.randint(1, 28)}"
    forms = _numbers(rng, fake, drawn, number) | _secrets(rng)
    return str(rng.choice((forms | _spoken(rng, fake, language, number))[name]))


def _numbers(
    rng: random.Random, fake: Any, drawn: tuple[str, str, str, str], number: str
) -> dict[str, list[str]]:
    def d(count: int) -> str:
        return values.draw(rng, D, count)

    card, iban, cn_id, ssn = drawn
    return {
        "CREDIT_CARD": [
            values.grouped(card, "."),
            values.grouped(card, "\u00a0"),
            _spaced(card),
            card.translate(FULL_WIDTH),
            values.grouped(card, "–"),
        ],
        "CN_BANK_CARD": [values.grouped(values.bank_card(rng), "-"), values.bank_card(rng)],
        "IBAN_CODE": [
            iban.lower(),
            values.grouped(iban + " ", "-").strip("- "),
            f"{iban[:4]} {iban[4:]}",
            iban.translate(FULL_WIDTH),
        ],
        "US_SSN": [f"{ssn[:3]} {ssn[3:5]} {ssn[5:]}", ssn, f"{ssn[:3]}–{ssn[3:5]}–{ssn[5:]}"],
        "CN_ID_CARD": [
            cn_id.lower(),
            f"{cn_id[:6]} {cn_id[6:14]} {cn_id[14:]}",
            cn_id.translate(FULL_WIDTH),
            f"{cn_id[:6]}-{cn_id[6:14]}-{cn_id[14:]}",
        ],
        "PASSPORT": [
            f"E{letter(rng)}{d(7)}",
            f"C0{letter(rng)}X0{d(1)}T4{d(1)}",
            f"G{d(8)}",
            d(9),
            f"{letter(rng)}{letter(rng)} {d(7)}",
        ],
        "IP_ADDRESS": [
            "::ffff:192.0.2." + number,
            f"2001:db8:{d(3)}::{d(2)}",
            "fe80::1ff:fe23:4567:890a",
            f"10.{number}.0.{number}",
            f"192[.]0[.]2[.]{number}",
            "2001:0DB8:0:0:8:800:200C:417A",
        ],
        "MAC_ADDRESS": [
            re.sub(r"(..):(..)(:?)", r"\1\2.", fake.mac_address()).rstrip("."),
            fake.mac_address().upper().replace(":", "-"),
        ],
    }


def _secrets(rng: random.Random) -> dict[str, list[str]]:
    def d(count: int) -> str:
        return values.draw(rng, D, count)

    return {
        "URL": [
            f"ftp://bob:{d(6)}@files.example.net/a.zip",
            f"mongodb+srv://app:p%40{d(4)}@c0.example.net/db",
            f"https://api.example.com/v1?user=7&api_key={values.draw(rng, values.ALNUM, 20)}",
            f"amqp://svc:S3cret{d(3)}@mq:5672/%2f",
            f"https://x.example/#/a?token={values.draw(rng, values.ALNUM, 24)}",
        ],
        "API_KEY": [
            f"SG.{values.draw(rng, values.ALNUM, 22)}.{values.draw(rng, values.ALNUM, 43)}",
            f"ATATT3xFfGF0{values.draw(rng, values.ALNUM, 180)}",
            f"r8_{values.draw(rng, values.ALNUM, 37)}",
            f"{d(10)}:AA{values.draw(rng, values.ALNUM, 33)}",
            f"lin_api_{values.draw(rng, values.ALNUM, 40)}",
            f"sk-{values.draw(rng, values.ALNUM, 48)}",
            f"xai-{values.draw(rng, values.ALNUM, 80)}",
            f"ASIA{values.draw(rng, string.ascii_uppercase + D, 16)}",
            f"gho_{values.draw(rng, values.ALNUM, 36)}",
            f"nvapi-{values.draw(rng, values.ALNUM, 64)}",
        ],
        "JWT": [values.jwt(rng)],
        "PRIVATE_KEY": [
            values.private_key(rng).replace("\n", "\\n"),
            values.private_key(rng).replace("\n", "\r\n"),
            values.private_key(rng).replace("RSA ", "ENCRYPTED "),
        ],
        "CRYPTO": [values.crypto(rng)],
    }


def _spoken(rng: random.Random, fake: Any, language: str, number: str) -> dict[str, list[str]]:
    def d(count: int) -> str:
        return values.draw(rng, D, count)

    return {
        "DATE_OF_BIRTH": {
            "en": [
                f"{number} Oct 1987",
                f"October {number}, 1987",
                f"10/{number}/87",
                "1st of May 1990",
            ],
            "de": [f"{number}. März 1979", f"{number}.3.1979", f"{number}. Mai 79"],
            "zh": [
                f"1988年{number}月1日".replace(number + "月", "7月"),
                "一九九〇年三月五日",
                "1990/3/15",
                "90年3月5日",
            ],
        }[language],
        "PERSON": [fake.name() if language == "zh" else fake.last_name()],
        "LOCATION": {
            "en": [
                f"{number} St. John's Road, Leeds LS1 4AB",
                f"Apt {number}, 9 Elm Tree Close",
                f"{d(3)} 5th Avenue, New York, NY 10018",
                f"PO Box {d(4)}, Boise, ID 83701",
            ],
            "de": [
                f"Hauptstr. {number}, 10115 Berlin",
                f"Am Alten Markt {number}a",
                f"Lindenallee {number}",
            ],
            "zh": [
                f"上海市浦东新区世纪大道{number}00号",
                f"广东省深圳市南山区科技园路{number}号A座12楼",
                f"朝阳区建国路{number}号",
            ],
        }[language],
    }


def letter(rng: random.Random) -> str:
    """Return one capital letter."""
    return rng.choice("ABCDEFGHJKLMNPRTUVWXYZ")


def innocent(rng: random.Random, language: str) -> str:
    """Return a sentence with numbers and signs of other meanings than in the main corpus."""

    def d(count: int) -> str:
        return values.draw(rng, D, count)

    return rng.choice(
        {
            "en": [
                f"Part no. {d(3)}-{d(5)}-{d(2)} fits model X{d(3)}.",
                f"Flight BA{d(4)} leaves gate {d(2)}.",
                f"Sudoku row: {' '.join(d(9))}",
                f"The score was {d(2)}-{d(2)} at {d(1)}:{d(2)}.",
                f"sha256:{values.draw(rng, values.HEX, 64)}",
                f"pi is 3.14159265358979 and e 2.718281828{d(3)}",
                f"GET /api/v{d(1)}/items?page={d(2)}&limit={d(2)} returned 200 in {d(2)}.{d(2)} ms",
                f"Coordinates 51.50{d(4)}, -0.12{d(4)}",
                f"EAN 40{d(11)[:10]}7 in stock: {d(3)}",
                f"Chapter 1{d(1)}.2.3.4 covers it; see RFC {d(4)}.",
                f"User {d(7)} got {d(4)} points.",
                f"Meet at noon; dot your i's. Ratio {d(2)}:{d(2)}:{d(2)}.",
                f"My cat was born in a barn near mile {d(2)}.",
                f"@channel deploy v{d(1)}.{d(2)}.{d(1)} @ 10am",
                "Mark my words: Will power beats Grace period.",
            ],
            "de": [
                f"Aktenzeichen {d(1)} C {d(3)}/2{d(1)}",
                f"IBAN folgt, Betrag {d(3)},{d(2)} EUR",
                f"Bestellung {d(10)} vom 03.0{rng.randint(1, 9)}.2025",
                f"Zug ICE {d(3)} ab {d(1)}:{d(2)} Uhr",
                f"Seite {d(2)} bis {d(2)}, Abschnitt {d(1)}.{d(1)}.{d(1)}",
            ],
            "zh": [
                f"快递单号SF{d(13)}已签收",
                f"余额{d(4)}.{d(2)}元，积分{d(5)}",
                f"第{d(2)}页，共{d(3)}页",
                f"型号X{d(3)}-{d(4)}，批次20{d(6)}",
                f"验证码{d(6)}，5分钟内有效",
                f"工单{d(10)}处理中",
            ],
        }[language]
    )


def generate(per_type: int, seed: int) -> Iterator[Labelled]:
    """Yield `per_type` texts for each type and locale, and as many innocent ones as ten types."""
    from faker import Faker

    rng = random.Random(seed)
    for locale in LOCALES:
        fake = Faker(locale)
        fake.seed_instance(seed)
        language = locale[:2]
        for name in VALUES:
            for _ in range(per_type):
                if name == "EMAIL_ADDRESS":
                    value = _email(rng, fake)
                elif name == "PHONE_NUMBER":
                    value = _phone(rng, language)
                elif name == "LICENSE_PLATE":
                    value = _plate(rng, language)
                else:
                    value = _value(name, rng, fake, language)
                spoken = SPEECH.get(name)
                # A phone number of ten bare digits is one by its sentence only; others by form.
                free = spoken is None or (name == "PHONE_NUMBER" and rng.random() < 0.5)
                template = rng.choice(SENTENCES[language]) if free else (spoken or {})[language]
                plain = name != "EMAIL_ADDRESS" or PLAIN_EMAIL.match(value) is not None
                source = "held out" if plain else "held out, obfuscated"
                yield label(template, name, value, locale, source)
        for _ in range(per_type * 10):
            yield Labelled(innocent(rng, language), (), locale, "held out, innocent")
