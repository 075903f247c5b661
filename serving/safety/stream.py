"""Checks an answer while it is generated: nothing leaves before a check that saw what follows it.

A sentence leaves whole, once it is complete, checked, and more text has come behind it.
"""

import re
from dataclasses import dataclass

from serving.safety.chain import Chain, Checked, Verdict
from serving.safety.decisions import SEVERITY, Action, Context, Decision, Edit

SENTENCE_END = re.compile(r"[.!?]+[\"')\]]*(?=\s)|[。！？…]+[”’」』）]*|\n")


@dataclass(frozen=True, slots=True)
class Release:
    """What may leave now. `blocked` ends the answer: nothing that was held back follows.

    `scanned` is the segment that this settles, as the model wrote it; `verdicts` are those of this
    check alone.
    """

    text: str
    blocked: Decision | None = None
    scanned: str = ""
    verdicts: tuple[Verdict, ...] = ()


class OutputGuard:
    """One answer (one choice). Not for use from several threads at once."""

    def __init__(self, chain: Chain, context: Context) -> None:
        self._chain = chain
        self._context = context
        self._part = chain.policy.stream
        self._before = ""
        self._held = ""
        self._blocked: Decision | None = None
        self.verdicts: dict[str, Verdict] = {}
        """The strictest verdict of each filter so far; of equal ones the first."""

    @property
    def held_characters(self) -> int:
        """How much text waits to leave."""
        return len(self._held)

    @property
    def action(self) -> Action:
        """The strictest that any check so far decided."""
        actions = (verdict.decision.action for verdict in self.verdicts.values())
        return max(actions, key=SEVERITY.__getitem__, default="allow")

    def feed(self, delta: str, ended: bool = False) -> Release:
        """Take new text; return what may leave. After a block nothing leaves any more."""
        if not self.take(delta, ended):
            return Release("", self._blocked)
        return self.check(ended)

    def take(self, delta: str, ended: bool) -> bool:
        """Take new text; return whether some of it could leave, so that `check` is worth it."""
        if self._blocked is not None:
            return False
        self._held += delta
        return bool(self._held) and (ended or self._cut() > 0)

    def check(self, ended: bool) -> Release:
        """Run the chain on what is held, with what left before it; return what may leave."""
        checked = self._chain.check("assistant", self._before + self._held, self._context)
        self._note(checked)
        if checked.blocked:
            scanned, self._blocked = self._held, checked.decision
            self._held = self._before = ""
            return Release("", self._blocked, scanned, checked.verdicts)
        leaving, scanned = self._leave(checked.decision.edits, ended)
        return Release(leaving, None, scanned, checked.verdicts)

    def _leave(self, edits: tuple[Edit, ...], ended: bool) -> tuple[str, str]:
        """Cut off what may leave; return it with the edits that lie in it, and without them."""
        offset = len(self._before)
        cut = offset + (len(self._held) if ended else self._cut())
        for edit in reversed(edits):
            if edit.start < cut < edit.end or (not ended and edit.end == cut):
                cut = edit.start  # more text may make it longer: it leaves whole
        if cut <= offset:
            return "", ""
        leaving = _edited(self._before + self._held, edits, offset, cut)
        text = self._before + self._held
        kept = self._part.context_characters
        self._before, self._held = text[max(0, cut - kept) : cut], text[cut:]
        return leaving, text[offset:cut]

    def _cut(self) -> int:
        """Return how much of the held text may leave: whole sentences, or a part of a long one."""
        settled = len(self._held) - self._part.hold_characters
        if settled <= 0:
            return 0
        ends = [found.end() for found in SENTENCE_END.finditer(self._held, 0, settled + 1)]
        last = max((end for end in ends if end <= settled), default=0)
        if last:
            return last
        return settled if settled > self._part.sentence_characters_max else 0

    def _note(self, checked: Checked) -> None:
        for verdict in checked.verdicts:
            known = self.verdicts.get(verdict.filter)
            if known is None or _rank(verdict) > _rank(known):
                self.verdicts[verdict.filter] = verdict


def _rank(verdict: Verdict) -> tuple[int, float]:
    return SEVERITY[verdict.decision.action], verdict.decision.score


def _edited(text: str, edits: tuple[Edit, ...], start: int, end: int) -> str:
    """Return text[start:end] with the edits inside it; one that began before has left already."""
    pieces, place = [], start
    for edit in edits:
        if edit.end <= start or edit.start >= end or edit.start < place:
            place = max(place, min(edit.end, end)) if edit.start < end else place
            continue
        pieces += [text[place : edit.start], edit.replacement]
        place = min(edit.end, end)
    return "".join([*pieces, text[place:end]])
