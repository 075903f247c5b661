"""Labelled texts of four locales: Faker's values in sentences, and sentences that only look so."""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.support import pii_values as values

LOCALES = ("en_US", "en_GB", "de_DE", "zh_CN")
Value = Callable[[random.Random, Any], str]


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text and what is in it: (type, start, end) in characters."""

    text: str
    spans: tuple[tuple[str, int, int], ...]
    locale: str
    source: str


TEMPLATES: dict[str, dict[str, tuple[str, ...]]] = {
    "en": {
        "": (
            "Please write to {} about it.",
            "{} is what they gave me",
            "Use {}, then reply.",
            "I sent it yesterday ({}) but nobody answered.",
            "Contact: {}\nThanks",
        ),
        "PHONE_NUMBER": (
            "Call me at {} after six.",
            "My phone number is {}.",
            "Tel: {}",
            "You can reach us on {} or by post.",
            "Fax {}, office hours only",
        ),
        "US_SSN": ("My social security number is {}.", "SSN: {}", "The form shows SSN {} twice."),
        "PASSPORT": ("My passport number is {}.", "Passport no. {} expires soon", "passport: {}"),
        "LICENSE_PLATE": (
            "The license plate is {}.",
            "Number plate {}",
            "licence plate: {}, a van",
        ),
        "DATE_OF_BIRTH": ("I was born on {}.", "Date of birth: {}", "DOB {}, male"),
        "PERSON": (
            "My name is {}.",
            "{} called again this morning.",
            "Dear {},\nthank you.",
            "Name: {}",
            "I spoke to {} yesterday.",
        ),
        "LOCATION": ("I live at {}.", "Ship it to:\n{}", "Address: {}"),
    },
    "de": {
        "": (
            "Bitte schreiben Sie an {} zurück.",
            "{} wurde mir genannt",
            "Nutzen Sie {}, danke.",
            "Gestern gesendet ({}), aber keine Antwort.",
        ),
        "PHONE_NUMBER": (
            "Rufen Sie mich unter {} an.",
            "Meine Telefonnummer ist {}.",
            "Tel.: {}",
            "Sie erreichen uns unter {} oder per Post.",
        ),
        "US_SSN": ("Die US social security number lautet {}.",),
        "PASSPORT": ("Meine Reisepassnummer ist {}.", "Reisepass: {}", "Passnummer {}"),
        "LICENSE_PLATE": ("Das Kennzeichen ist {}.", "Kennzeichen: {}"),
        "DATE_OF_BIRTH": ("Geburtsdatum: {}", "Ich bin am {} geboren.", "geb. {}"),
        "PERSON": ("Mein Name ist {}.", "{} hat heute angerufen.", "Name: {}"),
        "LOCATION": ("Ich wohne in der {}.", "Adresse: {}", "Bitte senden an\n{}"),
    },
    "zh": {
        "": (
            "请发到{}谢谢。",
            "我提供的是{}，请查收",
            "昨天已经发送（{}）但没有回复。",
            "{} 这个可以用吗",
        ),
        "PHONE_NUMBER": ("请拨打{}联系我。", "我的手机号是{}，谢谢", "电话：{}"),
        "US_SSN": ("美国社会安全号{}", "SSN：{}。"),
        "PASSPORT": ("我的护照号码是{}。", "护照：{}"),
        "LICENSE_PLATE": ("车牌号{}的车主请挪车", "我的车是{}，白色"),
        "DATE_OF_BIRTH": ("出生日期：{}", "我的生日是{}。"),
        "PERSON": ("我叫{}，想咨询一下。", "姓名：{}", "联系人：{}，请尽快"),
        "LOCATION": ("我住在{}。", "收货地址：{}", "请寄到{}，谢谢"),
    },
}


def _date(rng: random.Random, fake: Any) -> str:
    day = fake.date_of_birth()
    return str(
        day.strftime(rng.choice(["%Y-%m-%d", "%d.%m.%Y", "%m/%d/%Y", "%d %B %Y", "%B %d, %Y"]))
    )


def _plate_cn(rng: random.Random, fake: Any) -> str:
    head = rng.choice("京沪粤苏浙鲁川湘鄂闽") + rng.choice("ABCDE")
    return head + rng.choice(["", "·"]) + values.draw(rng, "ABCDEFGHJK" + string.digits, 4) + "8"


def _phone(rng: random.Random, fake: Any) -> str:
    """Draw until the number could be dialled: no area code starts with a second zero in Germany."""
    while (number := str(fake.phone_number())).startswith(("00", "(00")) and "-" not in number:
        continue
    return number


def _ssn(rng: random.Random, fake: Any) -> str:
    number = values.ssn(rng)
    return f"{number[:3]}-{number[3:5]}-{number[5:]}"


def _url(rng: random.Random, fake: Any) -> str:
    secret = values.draw(rng, values.ALNUM, 12)
    return rng.choice(
        [
            f"https://{fake.user_name()}:{secret}@{fake.domain_name()}/path",
            f"postgresql://{fake.user_name()}:{secret}@db.{fake.domain_name()}:5432/app",
            f"https://{fake.domain_name()}/cb?access_token={secret}&x=1",
            f"redis://:{secret}@{fake.domain_name()}:6379/0",
        ]
    )


VALUES: dict[str, Value] = {
    "EMAIL_ADDRESS": lambda rng, fake: rng.choice([fake.email, fake.company_email])(),
    "PHONE_NUMBER": _phone,
    "CREDIT_CARD": lambda rng, fake: rng.choice(
        [
            fake.credit_card_number(),
            values.card(rng),
            values.grouped(values.card(rng), " "),
            values.grouped(values.card(rng), "-"),
        ]
    ),
    "CN_BANK_CARD": lambda rng, fake: rng.choice(
        [values.bank_card(rng), values.grouped(values.bank_card(rng), " ")]
    ),
    "IBAN_CODE": lambda rng, fake: rng.choice(
        [values.iban(rng), values.grouped(values.iban(rng) + " ", " ").strip()]
    ),
    "US_SSN": _ssn,
    "CN_ID_CARD": lambda rng, fake: values.cn_id(rng),
    "PASSPORT": lambda rng, fake: fake.passport_number(),
    "IP_ADDRESS": lambda rng, fake: rng.choice([fake.ipv4, fake.ipv6])(),
    "MAC_ADDRESS": lambda rng, fake: rng.choice(
        [fake.mac_address(), fake.mac_address().upper(), fake.mac_address().replace(":", "-")]
    ),
    "URL": _url,
    "API_KEY": lambda rng, fake: values.api_key(rng),
    "JWT": lambda rng, fake: values.jwt(rng),
    "PRIVATE_KEY": lambda rng, fake: values.private_key(rng),
    "CRYPTO": lambda rng, fake: values.crypto(rng),
    "LICENSE_PLATE": lambda rng, fake: fake.license_plate(),
    "DATE_OF_BIRTH": _date,
    "PERSON": lambda rng, fake: f"{fake.first_name()} {fake.last_name()}",
    "LOCATION": lambda rng, fake: fake.address(),
}
CHINESE: dict[str, Value] = {
    "LICENSE_PLATE": _plate_cn,
    "PERSON": lambda rng, fake: fake.name(),
    "DATE_OF_BIRTH": lambda rng, fake: fake.date_of_birth().strftime(
        rng.choice(["%Y年%m月%d日", "%Y-%m-%d", "%Y%m%d", "%Y.%m.%d"])
    ),
}
NAMES_AND_ADDRESSES = ("PERSON", "LOCATION")
STRUCTURED = tuple(name for name in VALUES if name not in NAMES_AND_ADDRESSES)


def innocent(rng: random.Random) -> str:
    """Return a sentence whose numbers and signs are no personal data."""

    def digits(count: int) -> str:
        return values.draw(rng, string.digits, count)

    day = f"{rng.randint(2019, 2026)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"
    return rng.choice(
        [
            f"Order W-{digits(5)} was shipped on {day} at {rng.randint(1, 23)}:{digits(1)}5.",
            f"Your total is ${rng.randint(1, 9)},{digits(3)}.{digits(2)} for {digits(2)} items.",
            f"Tracking number 1Z{digits(6)}A{digits(9)} is on its way.",
            f"Invoice {digits(8)} is due on {day}; reference RE-{digits(4)}-{digits(3)}.",
            f"We use version {rng.randint(1, 9)}.{digits(1)}.{digits(1)}.{digits(2)} of the "
            f"driver.",
            f"commit {values.draw(rng, values.HEX, 40)} broke the build",
            f"The id is {values.draw(rng, values.HEX, 8)}-{values.draw(rng, values.HEX, 4)}-4"
            f"{values.draw(rng, values.HEX, 3)}-a{values.draw(rng, values.HEX, 3)}-"
            f"{values.draw(rng, values.HEX, 12)}.",
            f"ISBN 978-{digits(1)}-{digits(2)}-{digits(6)}-{digits(1)} is out of print",
            f"It measured {digits(3)}.{digits(4)} to {digits(3)}.{digits(6)} metres.",
            f"The meeting is on {day} from 10:00 to 11:30 in room {digits(3)}.",
            f"std::vector<int> v{{{digits(1)}, {digits(1)}}}; // a::b::c[{digits(1)}]",
            f"Population grew from {digits(3)} {digits(3)} to {digits(2)} million in "
            f"20{digits(2)}.",
            f"Card 4{luhn_broken(rng)} was refused.",
            f"timestamp 1{digits(9)} and 1{digits(12)} in milliseconds",
            "Look at the menu and dot the i at the end, then mark it with a will.",
            f"订单号{digits(12)}已于{day}发货，共{digits(2)}件，合计{digits(3)}元。",
            f"今年第{digits(1)}季度增长了{digits(2)}.{digits(1)}%，达到{digits(4)}万元。",
            f"会议时间：{day} 10:30，地点三楼{digits(3)}会议室。",
            "我是来咨询退货的，请问多久能到账？",
            f"Die Rechnung Nr. {digits(7)} vom {rng.randint(10, 28)}.0{rng.randint(1, 9)}.20"
            f"25 ist offen.",
            f"Es kostet {digits(2)},{digits(2)} Euro, Artikel {digits(3)}-{digits(4)}.",
            "Am Montag fahren wir mit dem Zug nach Hamburg, Gleis 12.",
        ]
    )


def luhn_broken(rng: random.Random) -> str:
    """Return fifteen digits that make "4" and them fail the Luhn check."""
    whole = values.luhn_complete("4" + values.draw(rng, string.digits, 14))
    return whole[1:-1] + str((int(whole[-1]) + rng.randint(1, 9)) % 10)


def generate(per_type: int, seed: int) -> Iterator[Labelled]:
    """Yield `per_type` texts for each type and locale, and half as many innocent ones each."""
    from faker import Faker

    rng = random.Random(seed)
    for locale in LOCALES:
        fake = Faker(locale)
        fake.seed_instance(seed)
        language = locale[:2]
        for name, value in VALUES.items():
            made = CHINESE.get(name, value) if language == "zh" else value
            templates = TEMPLATES[language].get(name, TEMPLATES[language][""])
            for _ in range(per_type):
                yield label(rng.choice(templates), name, made(rng, fake), locale, "faker")
        for _ in range(per_type * len(VALUES) // 2):
            yield Labelled(innocent(rng), (), locale, "innocent")


def label(template: str, name: str, value: str, locale: str, source: str) -> Labelled:
    """Put a value into its template and say where it stands."""
    start = template.index("{}")
    text = template.replace("{}", value, 1)
    return Labelled(text, ((name, start, start + len(value)),), locale, source)
