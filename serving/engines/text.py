"""Text of token ids as they come: without cut characters, and cut at stop strings."""

from collections.abc import Sequence

REPLACEMENT = "\ufffd"
INCOMPLETE_MAX = 3
"""A cut UTF-8 character leaves at most three bytes, hence at most three replacement characters."""
WINDOW_TOKENS_MAX = 32


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
        places = ((text.find(word), word) for word in self._stop)
        found = [(place + len(word), place) for place, word in places if place >= 0]
        if found:  # the one that is complete first, however the text was cut into parts
            self._held = ""
            return text[: min(found)[1]], True
        keep = 0 if ended else max(_overlap(text, word) for word in self._stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, word: str) -> int:
    lengths = range(min(len(word) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(word[:length])), 0)
