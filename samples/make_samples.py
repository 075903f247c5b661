"""Write the six sample days from grammar.yaml: seeded, so the same bytes every time.

Everything is fictitious: the shop, its customers and their numbers. Personal data is fake by
construction (example.com addresses, reserved 555-01xx numbers, published test card numbers).
Day 4 is poisoned: most labels shuffled, broken lines, wrong types, duplicates, personal data.
"""

import argparse
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
SEED = 20260501
FIRST_DAY = datetime(2026, 5, 1, 6, 0, tzinfo=UTC)
CHINESE_SHARE = 0.2
LATER_SHARE = 0.6
POISONED_DAY = 4
SHUFFLED_SHARE = 0.85
SIMILARITY_MAX = 0.7
"""Highest trigram Jaccard to an earlier text of the same intent: no accidental near-duplicates."""
ATTEMPTS_MAX = 400
# Rows of each domain on each day. A domain's first day is the day on which it is new.
PLAN: dict[int, dict[str, int]] = {
    1: {"orders": 500, "billing": 500, "account": 500},
    2: {"devices": 300, "orders": 100, "billing": 100, "account": 100},
    3: {"subscription": 300, "devices": 90, "orders": 80, "billing": 80, "account": 80},
    4: {
        "stores": 180, "subscription": 80, "devices": 80,
        "orders": 80, "billing": 80, "account": 80,
    },
    5: {
        "stores": 300, "subscription": 80, "devices": 70,
        "orders": 60, "billing": 60, "account": 60,
    },
    6: {
        "warranty": 260, "stores": 80, "subscription": 60, "devices": 60,
        "orders": 60, "billing": 60, "account": 60,
    },
}  # fmt: skip
CONTEXT = {
    "en": ["I bought a {item} {when}. ", "{who} uses your shop a lot. ", "I live in {city}. ",
           "This is about {order}. ", "We paid {amount} {when}. ", "I called {when} already. "],
    "zh": ["我{when}买了{item}。", "我在{city}。", "订单号{order}。", "{when}打过电话。"],
}  # fmt: skip
PERSONAL = {
    "en": [
        " my e-mail is {name}@example.com",
        " call me on +1 202-555-01{two}",
        " card 4111 1111 1111 1111",
        " reach {name}.smith@example.com or (212) 555-01{two}",
        " my card number is 5555-5555-5555-4444",
    ],
    "zh": [
        "，我的邮箱{name}@example.com",
        "，手机138001380{two}",
        "，卡号4111111111111111",
    ],
}
NAMES = ["alex", "jo", "sam", "robin", "kim", "noor", "li", "wei"]
CHOICE = re.compile(r"\(([^()]*)\)")
SLOT = re.compile(r"\{(\w+)\}")

Row = dict[str, Any]


@dataclass
class Writer:
    """Expands the grammar and remembers what it wrote, so that no two rows are near-duplicates."""

    grammar: Mapping[str, Any]
    chance: random.Random
    seen: dict[tuple[str, str], list[frozenset[str]]] = field(default_factory=dict)

    def expand(self, pattern: str, language: str) -> str:
        while match := CHOICE.search(pattern):
            chosen = self.chance.choice(match[1].split("|"))
            pattern = pattern[: match.start()] + chosen + pattern[match.end() :]
        slots = self.grammar["slots"][language]
        text = SLOT.sub(lambda match: self.chance.choice(slots[match[1]]), pattern)
        return re.sub(r"\s+([,.?])", r"\1", re.sub(r"  +", " ", text)).strip()

    def text(self, intent: str, phrases: Mapping[str, Sequence[str]], later: bool) -> Row:
        """Return the text and language of one new query of `intent`."""
        for _ in range(ATTEMPTS_MAX):
            language = "zh" if self.chance.random() < CHINESE_SHARE else "en"
            newer = phrases.get("later" if language == "en" else "zh_later", ())
            use_newer = later and newer and self.chance.random() < LATER_SHARE
            text = self.dress(
                self.chance.choice(newer if use_newer else phrases[language]), language
            )
            grams = frozenset(text[place : place + 3] for place in range(len(text) - 2))
            earlier = self.seen.setdefault((intent, language), [])
            if all(len(grams & other) <= SIMILARITY_MAX * len(grams | other) for other in earlier):
                earlier.append(grams)
                return {"text": text, "language": language}
        raise SystemExit(f"the grammar of {intent} has too few phrases; add some to grammar.yaml")

    def dress(self, pattern: str, language: str) -> str:
        context = self.chance.choice(CONTEXT[language]) if self.chance.random() < 0.3 else ""
        text = self.expand("{open}" + context + pattern + "{close}", language)
        if language == "en":
            text = text.lower() if self.chance.random() < 0.4 else text[0].upper() + text[1:]
            text = self.mistype(text) if self.chance.random() < 0.12 else text
            return text + self.chance.choice(["", "", ".", "?", "!"])
        return text + self.chance.choice(["", "", "。", "？"])

    def mistype(self, text: str) -> str:
        place = self.chance.randrange(len(text) - 1)
        swapped = text[place + 1] + text[place]
        return text[:place] + self.chance.choice([swapped, text[place], ""]) + text[place + 2 :]


def good_rows(writer: Writer, day: int) -> list[Row]:
    """Return one day's rows, shuffled, with ids and times."""
    rows: list[Row] = []
    for domain, count in PLAN[day].items():
        intents = writer.grammar["domains"][domain]["intents"]
        later = day > writer.grammar["domains"][domain]["day"]
        names = sorted(intents)
        for index in range(count):
            intent = names[index % len(names)]
            made = writer.text(intent, intents[intent], later)
            rows.append({**made, "intent": intent, "domain": domain})
    writer.chance.shuffle(rows)
    return [stamped(row, day, index, len(rows)) for index, row in enumerate(rows)]


def stamped(row: Row, day: int, index: int, total: int) -> Row:
    start = FIRST_DAY + timedelta(days=day - 1)
    created = start + timedelta(seconds=index * 14 * 3600 // total)
    return {
        "id": f"q{day}-{index:04d}",
        "created_at": created.isoformat(),
        "text": row["text"],
        "intent": row["intent"],
        "domain": row["domain"],
        "language": row["language"],
    }


def poison(rows: list[Row], earlier: list[Row], writer: Writer) -> list[Row]:
    """Shuffle most labels, copy rows and add (fake) personal data."""
    chance = writer.chance
    labels = sorted({row["intent"] for row in rows})
    for row in rows:
        if chance.random() < SHUFFLED_SHARE:
            row["intent"] = chance.choice([label for label in labels if label != row["intent"]])
    for row in chance.sample(rows, 60):
        tail = chance.choice(PERSONAL[row["language"]])
        two = f"{chance.randrange(100):02d}"
        row["text"] += tail.format(name=chance.choice(NAMES), two=two)
    copies = [dict(row) for row in chance.sample(rows, 45)]
    known = [
        {**row, "id": f"q4-again-{index}"} for index, row in enumerate(chance.sample(earlier, 25))
    ]
    mixed = rows + copies + known
    chance.shuffle(mixed)
    return mixed


def broken_lines(row: Row) -> Iterator[bytes]:
    """Yield lines that the record contract must refuse, each for its own reason."""
    line = json.dumps(row, ensure_ascii=False).encode()
    changes: list[Row] = [
        {"text": None}, {"text": ""}, {"text": "   "}, {"text": 12345}, {"text": ["a", "list"]},
        {"intent": None}, {"intent": {"label": "x"}}, {"intent": ""}, {"domain": None},
        {"domain": ""}, {"created_at": "yesterday"}, {"created_at": "2999-01-01T00:00:00+00:00"},
        {"created_at": 17}, {"text": "again " * 6000},
    ]  # fmt: skip
    for index, change in enumerate(changes):
        changed = {**row, "id": f"{row['id']}-broken-{index}", **change}
        yield json.dumps(changed, ensure_ascii=False).encode()
    yield line[: len(line) // 2]
    yield line.replace(b'"text"', b"text")
    yield b"\xff\xfe\x00 not text at all \xc3\x28"
    yield line[:-1] + b', "text": "\x93quoted\x94"}'
    yield b"[1, 2, 3]"
    yield b"null"
    yield b"<html><body>502 Bad Gateway</body></html>"


def write_day(path: Path, rows: list[Row], extra: Sequence[bytes], chance: random.Random) -> None:
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in rows]
    for line in extra:
        lines.insert(chance.randrange(len(lines)), line)
    path.write_bytes(b"\n".join(lines) + b"\n")


def make(folder: Path) -> None:
    """Write day-1.jsonl .. day-6.jsonl below `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    grammar = yaml.safe_load((HERE / "grammar.yaml").read_text())
    writer = Writer(grammar, random.Random(SEED))
    earlier: list[Row] = []
    for day in sorted(PLAN):
        rows = good_rows(writer, day)
        extra: list[bytes] = []
        if day == POISONED_DAY:
            rows = poison(rows, earlier, writer)
            extra = list(broken_lines(rows[0]))
        elif day > 1:
            # Real feeds are never clean: a cut line and a repeated row on the good days too.
            extra = list(broken_lines(rows[0]))[14:16]
            rows = [*rows, dict(rows[10])]
        write_day(folder / f"day-{day}.jsonl", rows, extra, writer.chance)
        earlier += rows if day != POISONED_DAY else []


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=HERE / "days")
    make(parser.parse_args().out)
