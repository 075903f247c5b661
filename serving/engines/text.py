"""Text at an engine's border: safe prompt text in; text of token ids, cut at stop strings, out."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from core.errors import IntegrityError

REPLACEMENT = "\ufffd"
INCOMPLETE_MAX = 3
"""A cut UTF-8 character leaves at most three bytes, hence at most three replacement characters."""
WINDOW_TOKENS_MAX = 32
PLAIN_PASSES_MAX = 4
"""Breaking one name may leave another whole."""

Decode = Callable[[list[list[int]]], list[str]]


class AnswerText:
    """One answer's token ids turned into text as they come, without cut characters.

    A decoder may need its left neighbour (spaces) and the rest of a character (bytes), so a
    window of ids is decoded, and only what later ids cannot change is given out. With
    `incremental` False nothing is decoded before the end.
    """

    def __init__(self, stop: tuple[str, ...], incremental: bool) -> None:
        self.ids: list[int] = []
        self._incremental = incremental
        self._stop = StopScanner(stop)
        self._start = 0
        self._read = 0
        self._emitted = 0

    def add(self, ids: Sequence[int]) -> None:
        """Append newly generated token ids."""
        self.ids.extend(ids)

    def windows(self, ended: bool) -> list[list[int]]:
        """Return the rows of ids to decode before the next `accept` (none, one or two)."""
        if not (ended or self._incremental) or self._read == len(self.ids):
            return []
        rows = [self.ids[self._start : self._read], self.ids[self._start :]]
        return [row for row in rows if row]

    def accept(self, texts: Sequence[str], ended: bool) -> tuple[str, bool]:
        """Take the decoded windows; return the new text, and whether a stop string ended it."""
        delta = self._settled(texts, ended) if texts else ""
        return self._stop.scan(delta, ended)

    def _settled(self, texts: Sequence[str], ended: bool) -> str:
        new = texts[-1][len(texts[0]) if len(texts) > 1 else 0 :]
        final = ended or len(self.ids) - self._start > WINDOW_TOKENS_MAX
        cut = 0
        while not final and cut < min(INCOMPLETE_MAX, len(new)) and new[-1 - cut] == REPLACEMENT:
            cut += 1
        delta = new[self._emitted : len(new) - cut]
        self._emitted += len(delta)
        if cut == 0:
            self._start, self._read, self._emitted = self._read, len(self.ids), 0
        return delta


class StopScanner:
    """Finds stop strings in text that comes in parts; holds back what may become one."""

    def __init__(self, stop: tuple[str, ...]) -> None:
        self._stop = stop
        self._held = ""

    def scan(self, delta: str, ended: bool) -> tuple[str, bool]:
        """Return the text that may leave now, and whether a stop string was reached."""
        if not self._stop:
            return delta, False
        text = self._held + delta
        found = [place for place in map(text.find, self._stop) if place >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        keep = 0 if ended else max(_overlap(text, word) for word in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, word: str) -> int:
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)


class _AddedToken(msgspec.Struct):
    content: str
    special: bool = False


class _TokenizerFile(msgspec.Struct):
    added_tokens: list[_AddedToken] = []


def special_tokens(weights: Path) -> tuple[str, ...]:
    """Return the special tokens of a bundle's tokenizer, longest first.

    Raises IntegrityError when the bundle holds no readable tokenizer.json.
    """
    path = weights / "tokenizer.json"
    try:
        content = msgspec.json.decode(path.read_bytes(), type=_TokenizerFile)
    except (OSError, msgspec.MsgspecError, UnicodeError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}; build the bundle again") from error
    names = {token.content for token in content.added_tokens if token.special and token.content}
    return tuple(sorted(names, key=lambda name: (-len(name), name)))


def plain(text: str, specials: Sequence[str]) -> str:
    """Return `text` in which no special token's name is left whole: `<|end|>` -> `< |end|>`.

    Tokenizers turn such names inside user text into control tokens, which would let a user end
    their own turn and speak as the assistant.
    """
    for _ in range(PLAIN_PASSES_MAX):
        names = [name for name in specials if name in text]
        if not names:
            break
        text = re.sub("|".join(map(re.escape, names)), _broken, text)
    return text


def _broken(match: re.Match[str]) -> str:
    name = match[0]
    return f"{name[0]} {name[1:]}" if len(name) > 1 else ""
