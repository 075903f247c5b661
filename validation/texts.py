"""What gates compare of a text: character shingles, and what was asked and answered."""

from collections.abc import Sequence

from core.contracts import Message, Record
from core.words import normal_form, words


def letters(text: str) -> str:
    """Only letters and digits of the normal form (or all of it, when it has none of them)."""
    return "".join(words(text)) or normal_form(text)


def shingles(text: str, width: int) -> set[str]:
    """All runs of `width` characters of `letters`; the whole text when it is shorter."""
    compact = letters(text)
    count = len(compact) - width + 1
    return {compact[start : start + width] for start in range(count)} or {compact}


def asked(messages: Sequence[Message]) -> str:
    """Everything that a prompt says except standing instructions."""
    return "\n".join(turn.content for turn in messages if turn.role != "system")


def answered(record: Record) -> str:
    """The normal form of the wanted answer."""
    return normal_form(record.response)
