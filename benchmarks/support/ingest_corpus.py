"""Days of realistic conversations to take in: English and Chinese, with duplicates and bad rows.

Written row by row from a seed; what it injects it counts, so that a pass can be held against it.
"""

import json
import random
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.support.pii_values import card

CHINESE_SHARE = 0.25
DUPLICATE_SHARE, NEAR_SHARE, BAD_SHARE = 0.03, 0.02, 0.01
PERSONAL_SHARE = 0.06
"""Rows in which somebody gives an address, a number or a card, as in customer conversations."""
SENTENCES = 60_000
PERSONAL_VALUES = 3000
REMEMBERED = 5000
SLICES = ("orders", "billing", "travel", "devices", "stores", "health", "school", "other")
TIME = "2026-05-{day:02d}T{hour:02d}:{minute:02d}:00+00:00"


class Corpus:
    """Makes rows of one seed. `counts` tells how many of each kind were made."""

    def __init__(self, seed: int) -> None:
        from faker import Faker
        from faker.providers.lorem.en_US import Provider as English
        from faker.providers.lorem.zh_CN import Provider as Chinese

        self.counts: Counter[str] = Counter()
        self._rng = rng = random.Random(seed)
        weights = [1 / (rank + 3) for rank in range(len(English.word_list))]
        words = list(English.word_list)
        rng.shuffle(words)
        self._english = [_english(rng, words, weights) for _ in range(SENTENCES)]
        self._chinese = [_chinese(rng, Chinese.word_list) for _ in range(SENTENCES)]
        Faker.seed(seed)
        people, chinese = Faker("en_US"), Faker("zh_CN")
        self._personal = [
            rng.choice(
                (
                    f"Please write to {people.email()}.",
                    f"My number is {people.numerify('+1 202-555-01##')}, call me.",
                    f"It was charged to {card(rng)}.",
                    f"我的手机是{chinese.phone_number()}，",
                    f"The server is {people.ipv4_public()}.",
                )
            )
            for _ in range(PERSONAL_VALUES)
        ]
        self._recent: deque[dict[str, Any]] = deque(maxlen=REMEMBERED)
        self._number = 0

    def lines(self) -> Iterator[bytes]:
        """Yield lines of JSON without end."""
        rng = self._rng
        while True:
            self._number += 1
            draw = rng.random()
            if draw < BAD_SHARE:
                self.counts["bad"] += 1
                yield _bad(rng, self._fresh())
                continue
            if draw < BAD_SHARE + DUPLICATE_SHARE and self._recent:
                self.counts["duplicates"] += 1
                row = {**rng.choice(self._recent), "id": f"r{self._number:09d}"}
            elif draw < BAD_SHARE + DUPLICATE_SHARE + NEAR_SHARE and self._recent:
                self.counts["near"] += 1
                row = _near(rng, {**rng.choice(self._recent), "id": f"r{self._number:09d}"})
            else:
                self.counts["fresh"] += 1
                row = self._fresh()
                if rng.random() < 0.5:
                    self._recent.append(row)
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"

    def _fresh(self) -> dict[str, Any]:
        rng = self._rng
        chinese = rng.random() < CHINESE_SHARE
        pool = self._chinese if chinese else self._english
        joint = "" if chinese else " "
        prompt = rng.choices(pool, k=rng.randint(1, 5))
        if rng.random() < PERSONAL_SHARE:
            prompt.append(rng.choice(self._personal))
        return {
            "id": f"r{self._number:09d}",
            "created_at": TIME.format(
                day=rng.randint(1, 28), hour=rng.randint(0, 23), minute=rng.randint(0, 59)
            ),
            "text": joint.join(prompt),
            "answer": joint.join(rng.choices(pool, k=rng.randint(3, 14))),
            "topic": rng.choice(SLICES),
        }


def write_corpus(path: Path, size_bytes: int, seed: int) -> Counter[str]:
    """Write a day of about `size_bytes`; return how many rows of each kind are in it."""
    corpus = Corpus(seed)
    written = 0
    with path.open("wb") as file:
        for line in corpus.lines():
            file.write(line)
            written += len(line)
            if written >= size_bytes:
                return corpus.counts
    return corpus.counts


def _english(rng: random.Random, words: list[str], weights: list[float]) -> str:
    text = " ".join(rng.choices(words, weights=weights, k=rng.randint(6, 20)))
    return f"{text[0].upper()}{text[1:]}{rng.choice('...?!,')}"


def _chinese(rng: random.Random, words: tuple[str, ...]) -> str:
    return "".join(rng.choices(words, k=rng.randint(5, 16))) + rng.choice("。。！？，")


def _near(rng: random.Random, row: dict[str, Any]) -> dict[str, Any]:
    """Change a word or two of a long text, as whoever sends a form letter does."""
    text = row["answer"]
    place = rng.randrange(max(1, len(text) - 8))
    return {
        **row,
        "answer": f"{text[:place]}{rng.choice(('ok', 'well', '好的'))}{text[place + 3 :]}",
    }


def _bad(rng: random.Random, row: dict[str, Any]) -> bytes:
    text = json.dumps(row, ensure_ascii=False).encode()
    kind = rng.randrange(7)
    if kind == 0:
        return text[: len(text) // 2] + b"\n"
    if kind == 1:
        return text.replace(b"a", b"\xe9", 3) + b"\n"
    changed: dict[int, dict[str, Any]] = {
        2: {"answer": None},
        3: {"text": ["not", "text"]},
        4: {"created_at": "2999-01-01T00:00:00Z"},
        5: {"answer": ""},
        6: {"text": row["answer"] * 40},
    }
    return json.dumps({**row, **changed[kind]}, ensure_ascii=False).encode() + b"\n"
