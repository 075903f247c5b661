"""Seeded English and Chinese texts, near duplicates of them, and their true Jaccard similarity."""

import random
from collections.abc import Callable
from dataclasses import dataclass

from core.sketches import WIDTH, WIDTH_ASIAN, is_asian

LANGUAGES = ("en", "zh")
BOILERPLATE = {
    "en": "This message was sent from my phone, please excuse any typing mistakes in it.",
    "zh": "本消息由手机客户端自动发送，如有打字错误敬请谅解。",
}


@dataclass(frozen=True, slots=True)
class Writer:
    """Writes texts in one language; word frequencies fall as in a language (Zipf)."""

    language: str
    words: tuple[str, ...]
    weights: tuple[float, ...]
    random: random.Random

    @classmethod
    def of(cls, language: str, seed: int) -> "Writer":
        """Return a writer with Faker's words of the language."""
        from faker.providers.lorem import en_US, zh_CN

        provider = {"en": en_US, "zh": zh_CN}[language].Provider
        words = sorted(set(provider.word_list))
        source = random.Random(f"{language} {seed}")
        source.shuffle(words)
        weights = tuple(1 / (rank + 10) for rank in range(len(words)))
        return cls(language, tuple(words), weights, source)

    def text(self, words_min: int = 60, words_max: int = 140) -> str:
        """Return a text of some sentences."""
        words = self._draw(self.random.randint(words_min, words_max))
        sentences = []
        while words:
            length = self.random.randint(6, 18)
            sentences.append(self._sentence(words[:length]))
            words = words[length:]
        return self._gap().join(sentences)

    def near(self, text: str, edits: int) -> str:
        """Return the text with so many small changes: words, order, case, added lines."""
        changed = text
        for _ in range(edits):
            changed = self.random.choice(self._changes())(changed)
        return changed

    def _changes(self) -> tuple[Callable[[str], str], ...]:
        return (self._replace, self._replace, self._insert, self._delete, self._mark, self._swap,
                self._add_line)  # fmt: skip

    def _draw(self, count: int) -> list[str]:
        return self.random.choices(self.words, self.weights, k=count)

    def _gap(self) -> str:
        return " " if self.language == "en" else ""

    def _sentence(self, words: list[str]) -> str:
        if self.language == "en":
            return " ".join(words).capitalize() + "."
        return "".join(words) + "。"

    def _units(self, text: str) -> list[str]:
        return text.split(" ") if self.language == "en" else list(text)

    def _edit(self, text: str, new: Callable[[str], list[str]]) -> str:
        units = self._units(text)
        place = self.random.randrange(len(units))
        units[place : place + 1] = new(units[place])
        return self._gap().join(units)

    def _replace(self, text: str) -> str:
        return self._edit(text, lambda _: self._draw(1))

    def _insert(self, text: str) -> str:
        return self._edit(text, lambda unit: [unit, *self._draw(1)])

    def _delete(self, text: str) -> str:
        return self._edit(text, lambda _: [])

    def _mark(self, text: str) -> str:
        return self._edit(text, lambda unit: [unit.upper() + " !"])

    def _swap(self, text: str) -> str:
        stop = "." if self.language == "en" else "。"
        sentences = [part.strip() for part in text.split(stop) if part.strip()]
        self.random.shuffle(sentences)
        return self._gap().join(sentence + stop for sentence in sentences)

    def _add_line(self, text: str) -> str:
        return f"{text}\n{BOILERPLATE[self.language]}"


def jaccard(one: str, other: str) -> float:
    """Return the true Jaccard similarity of the shingles that sketches are made of."""
    ours, theirs = _shingles(one), _shingles(other)
    return len(ours & theirs) / max(1, len(ours | theirs))


def _shingles(text: str) -> set[str]:
    letters = "".join(letter for letter in text.lower() if letter.isalnum())
    return {
        letters[start : start + width]
        for start, letter in enumerate(letters)
        if start + (width := WIDTH_ASIAN if is_asian(letter) else WIDTH) <= len(letters)
    }
