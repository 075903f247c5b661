"""What a predictor asks of the safety chain: screen a prompt, guard each choice of its answer.

Keeps the event loop free: chains that may wait and long texts run in a thread. Knows no HTTP.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from core.contracts import Message, Role
from serving.engines.engine import Prompt
from serving.safety.chain import Chain, Checked, Verdict
from serving.safety.decisions import Action, Context, Decision
from serving.safety.policy import Policy
from serving.safety.policy_store import PolicyStore
from serving.safety.stream import OutputGuard, Release

ROLES: tuple[Role, ...] = ("system", "user")
INLINE_CHARACTERS_MAX = 4096
"""Longer texts are checked in a thread, so that other requests go on meanwhile."""


class Witness(Protocol):
    """Is told all that the chain does for one request."""

    def began(self, policy: Policy, prompts: tuple[Prompt, ...]) -> None:
        """The request obeys this policy, whatever comes into force meanwhile."""
        ...

    def screened(self, role: Role, action: Action, verdicts: Sequence[Verdict]) -> None:
        """What was decided of one turn of a prompt."""
        ...

    def opened(self, choice: int) -> None:
        """A choice of the answer is going to be generated."""
        ...

    def settled(self, choice: int, release: Release) -> None:
        """A segment of a choice was checked: what of it may leave."""
        ...

    def ended(self, choice: int, action: Action, verdicts: Sequence[Verdict]) -> None:
        """A choice is over: the strictest decision of it, and of each filter."""
        ...


@dataclass(frozen=True, slots=True)
class Screened:
    """Prompts after the chain. A request keeps the chain that it began with."""

    chain: Chain
    prompts: tuple[Prompt, ...]
    contexts: tuple[Context, ...]
    """For the answers, one for each prompt."""
    blocked: Decision | None = None

    @property
    def policy_hash(self) -> str:
        """The digest of the policy that this request obeys."""
        return self.chain.policy_hash


class Gate:
    """The policy in force, as one process applies it to its requests."""

    def __init__(self, store: PolicyStore) -> None:
        self._store = store

    @property
    def policy_hash(self) -> str:
        """The digest of the policy in force now."""
        return self._store.policy_hash

    async def screen(self, prompts: tuple[Prompt, ...], witness: Witness) -> Screened:
        """Check every turn of every prompt; redact where asked, stop at the first block."""
        chain = self._store.chain
        witness.began(chain.policy, prompts)
        kept: list[Prompt] = []
        for prompt in prompts:
            turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
            passed: list[Message] = []
            for turn in turns:
                checked = await _checked(chain, turn.role, turn.content)
                witness.screened(turn.role, checked.decision.action, checked.verdicts)
                if checked.blocked:
                    return Screened(chain, (), (), checked.decision)
                passed.append(Message(turn.role, checked.text))
            kept.append(passed[0].content if isinstance(prompt, str) else tuple(passed))
        return Screened(chain, tuple(kept), tuple(map(_context, kept)))

    def guard(
        self, screened: Screened, prompt: int, choice: int, witness: Witness
    ) -> "ChoiceGuard":
        """Return the guard of one choice of the answer, which answers one of the prompts."""
        return ChoiceGuard(screened.chain, screened.contexts[prompt], choice, witness)


class ChoiceGuard:
    """One choice of an answer: text goes in, what may leave comes out."""

    def __init__(self, chain: Chain, context: Context, choice: int, witness: Witness) -> None:
        self._guard = OutputGuard(chain, context)
        self._slow = chain.slow
        self._choice = choice
        self._witness = witness
        self.open = True
        witness.opened(choice)

    async def feed(self, text: str, ended: bool) -> Release:
        """Return what may leave now; after a block, or once the answer ended, nothing does."""
        if not self._guard.take(text, ended):
            release = Release("")
        elif self._slow or self._guard.held_characters > INLINE_CHARACTERS_MAX:
            release = await asyncio.to_thread(self._guard.check, ended)
        else:
            release = self._guard.check(ended)
        if release.verdicts:
            self._witness.settled(self._choice, release)
        if self.open and (ended or release.blocked is not None):
            self.open = False
            verdicts = tuple(self._guard.verdicts.values())
            self._witness.ended(self._choice, self._guard.action, verdicts)
        return release


async def _checked(chain: Chain, role: Role, text: str) -> Checked:
    if chain.slow or len(text) > INLINE_CHARACTERS_MAX:
        return await asyncio.to_thread(chain.check, role, text)
    return chain.check(role, text)


def _context(prompt: Prompt) -> Context:
    """What the filters of an answer know of the conversation."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    said = {role: tuple(turn.content for turn in turns if turn.role == role) for role in ROLES}
    return Context("output", said["system"], said["user"])
