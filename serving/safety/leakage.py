"""Recognises an answer that gives away the conversation's system prompt."""

from functools import lru_cache

from core.contracts import Role
from core.plain_text import plain_text
from serving.safety.decisions import ALLOW, Context, Decision

CATEGORY = "system_prompt_leak"
PROMPTS_KEPT = 64
HAN_WORTH = 2
"""A Chinese character says about as much as two Latin letters."""


class SystemPromptFilter:
    """Blocks an answer that repeats so many characters in a row of a system prompt.

    Only letters and digits count, without case or spaces. What the user said too is no leak.
    """

    name = "system_prompt"

    def __init__(self, characters_min: int) -> None:
        self._length = characters_min

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Compare every run of the answer with the system prompts."""
        if context.direction == "input" or not context.system_prompts:
            return ALLOW
        known = frozenset().union(*(pieces(item, self._length) for item in context.system_prompts))
        if not known:
            return ALLOW
        leaked = known & _pieces(bare(text), self._length)
        for user in context.user_texts:
            leaked -= pieces(user, self._length)
        if not leaked:
            return ALLOW
        return Decision("block", CATEGORY, 1.0, "repeats a part of the system prompt")


def bare(text: str) -> str:
    """Return only letters and digits in plain form; a Chinese character stands twice."""
    return "".join(
        character * (HAN_WORTH if character >= "\u2e80" else 1)
        for character in plain_text(text)
        if character.isalnum()
    )


@lru_cache(maxsize=PROMPTS_KEPT)
def pieces(text: str, length: int) -> frozenset[str]:
    """Return every run of `length` characters of a text's bare form."""
    return _pieces(bare(text), length)


def _pieces(said: str, length: int) -> frozenset[str]:
    return frozenset(said[at : at + length] for at in range(len(said) - length + 1))
