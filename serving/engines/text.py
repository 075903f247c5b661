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
        """Return the rows of ids to decode before the next `accept`.

        They are what is settled, all ids, and for a long window also all but the last one to
        three: one of these ends with a whole character, where the next window can start.
        """
        if not (ended or self._incremental) or self._read == len(self.ids):
            return []
        ends = [len(self.ids)]
        if not ended and len(self.ids) - self._start > WINDOW_TOKENS_MAX:
            ends += [len(self.ids) - back for back in range(1, INCOMPLETE_MAX + 1)]
        settled = [self.ids[self._start : self._read]] if self._read > self._start else []
        return settled + [self.ids[self._start : end] for end in ends if end > self._read]

    def accept(self, texts: Sequence[str], ended: bool) -> tuple[str, bool]:
        """Take the decoded windows; return the new text, and whether a stop string ended it."""
        delta = self._settled(texts, ended) if texts else ""
        return self._stop.scan(delta, ended)

    def _settled(self, texts: Sequence[str], ended: bool) -> str:
        known = texts[0] if self._read > self._start else ""
        whole, *shorter = texts[1:] if self._read > self._start else texts
        new = whole[len(known) :]
        cut = 0
        while not ended and cut < min(INCOMPLETE_MAX, len(new)) and new[-1 - cut] == REPLACEMENT:
            cut += 1
        back = next((at for at, text in enumerate(shorter, 1) if text[-1:] != REPLACEMENT), 0)
        if shorter and not back:
            cut = 0  # bytes of no character at all: they would be held for ever
        out = len(new) - cut
        delta = new[self._emitted : out]
        if cut == 0:
            self._start, self._read, self._emitted = self._read, len(self.ids), 0
        elif back:  # the next window starts where a character ended
            out -= len(shorter[back - 1]) - len(known)
            self._start, self._read, self._emitted = self._read, len(self.ids) - back, max(0, out)
        else:
            self._emitted = max(self._emitted, out)
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
