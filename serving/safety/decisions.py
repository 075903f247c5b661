"""What a filter is and what it says: the protocol, its context, decisions and edits."""

from dataclasses import dataclass
from typing import Literal, Protocol

from core.contracts import Role

Action = Literal["allow", "redact", "block"]
Direction = Literal["input", "output"]
SEVERITY: dict[Action, int] = {"allow": 0, "redact": 1, "block": 2}
ALLOWED_CATEGORY = "none"
FAILED_CATEGORY = "filter_failed"


@dataclass(frozen=True, slots=True)
class Edit:
    """Replace characters start..end (end excluded) of the checked text."""

    start: int
    end: int
    replacement: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One filter's judgement. `score` 0..1 is how sure it is of `category`; edits come sorted."""

    action: Action
    category: str = ALLOWED_CATEGORY
    score: float = 0.0
    reason: str = ""
    edits: tuple[Edit, ...] = ()


ALLOW = Decision("allow")


@dataclass(frozen=True, slots=True)
class Context:
    """What else a filter may look at: which way the text goes, and the conversation before it."""

    direction: Direction = "input"
    system_prompts: tuple[str, ...] = ()
    user_texts: tuple[str, ...] = ()


class Filter(Protocol):
    """One check of one text. A filter that raises is treated as its policy says (closed)."""

    name: str

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Judge `text` as said by `role`. Called from several threads."""
        ...


def apply_edits(text: str, edits: tuple[Edit, ...]) -> str:
    """Return the text with sorted edits applied; of edits that overlap the first counts."""
    pieces, end = [], 0
    for edit in edits:
        if edit.start < end:
            end = max(end, edit.end)
            continue
        pieces += [text[end : edit.start], edit.replacement]
        end = edit.end
    return "".join([*pieces, text[end:]])


def merge_edits(several: tuple[tuple[Edit, ...], ...]) -> tuple[Edit, ...]:
    """Return all edits sorted by place, longer ones first."""
    every = [edit for edits in several for edit in edits]
    return tuple(sorted(every, key=lambda edit: (edit.start, -edit.end)))
