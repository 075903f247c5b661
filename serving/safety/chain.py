"""The chain: every filter of one policy in order, strictest decision wins, failures fail closed."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from core.contracts import Role
from core.errors import ConfigurationError
from serving.safety.decisions import (
    ALLOW,
    FAILED_CATEGORY,
    Context,
    Decision,
    Direction,
    Filter,
    apply_edits,
    merge_edits,
)
from serving.safety.policy import GuardPolicy, OnError, Policy

log = logging.getLogger("serin.safety")

GUARD_THREADS = 4
"""Calls of one guard at once. A call that hangs keeps its thread; once all hang, texts wait for
their time-out and get what the policy says of failures."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one filter said of one text, and how long it took. `failed`: it raised or was late."""

    filter: str
    decision: Decision
    seconds: float
    failed: bool = False


@dataclass(frozen=True, slots=True)
class Checked:
    """A text after the chain. `text` is what may go on: redacted where asked, "" when blocked."""

    decision: Decision
    text: str
    verdicts: tuple[Verdict, ...]
    policy_hash: str

    @property
    def blocked(self) -> bool:
        """Whether nothing of the text may go on."""
        return self.decision.action == "block"


@dataclass(frozen=True, slots=True)
class Link:
    """A filter with what the policy says of it. With a time limit it runs in threads of its own."""

    filter: Filter
    on_error: OnError
    directions: tuple[Direction, ...] = ("input", "output")
    timeout_seconds: float | None = None
    threads: ThreadPoolExecutor | None = None


SECRET_TYPES = ("API_KEY", "JWT", "PRIVATE_KEY")
BuildGuard = Callable[[GuardPolicy], Filter]


class Chain:
    """All filters of one policy. Safe to call from several threads."""

    def __init__(self, policy: Policy, links: Sequence[Link]) -> None:
        self.policy = policy
        self.policy_hash = policy.digest
        self.links = tuple(links)

    @property
    def slow(self) -> bool:
        """Whether a filter may wait: then call it from a thread, not from an event loop."""
        return any(link.timeout_seconds is not None for link in self.links)

    @property
    def filters(self) -> tuple[str, ...]:
        """The filters' names, in order."""
        return tuple(link.filter.name for link in self.links)

    def check(self, role: Role, text: str, context: Context | None = None) -> Checked:
        """Run the filters until one blocks; redactions of all of them are applied together."""
        context = context or Context()
        verdicts: list[Verdict] = []
        for link in self.links:
            if context.direction not in link.directions:
                continue
            verdicts.append(run_filter(link, role, text, context))
            if verdicts[-1].decision.action == "block":
                return Checked(verdicts[-1].decision, "", tuple(verdicts), self.policy_hash)
        redactions = [item.decision for item in verdicts if item.decision.action == "redact"]
        if not redactions:
            top = max((item.decision.score for item in verdicts), default=0.0)
            allowed = Decision("allow", score=top) if top else ALLOW
            return Checked(allowed, text, tuple(verdicts), self.policy_hash)
        edits = merge_edits(tuple(item.edits for item in redactions))
        first = redactions[0]
        reason = "; ".join(item.reason for item in redactions)
        decision = Decision("redact", first.category, first.score, reason, edits)
        return Checked(decision, apply_edits(text, edits), tuple(verdicts), self.policy_hash)

    def close(self) -> None:
        """Let the guards' threads end; calls in work are not waited for."""
        for link in self.links:
            if link.threads is not None:
                link.threads.shutdown(wait=False, cancel_futures=True)


def run_filter(link: Link, role: Role, text: str, context: Context) -> Verdict:
    """Return a filter's verdict; one that raises or is late gets what its policy says."""
    began = time.perf_counter()
    name = link.filter.name
    future: Future[Decision] | None = None
    try:
        if link.threads is None:
            decision = link.filter.check(role, text, context)
        else:
            future = link.threads.submit(link.filter.check, role, text, context)
            decision = future.result(link.timeout_seconds)
    except TimeoutError:
        if future is not None:
            future.cancel()
        limit = "" if link.timeout_seconds is None else f" than {link.timeout_seconds:g} s"
        problem = f"filter {name} took longer{limit}"
    except Exception as error:  # noqa: BLE001 - whatever a filter raises, the policy decides
        problem = f"filter {name} failed: {type(error).__name__}: {error}"
    else:
        return Verdict(name, decision, time.perf_counter() - began)
    log.error("%s; the text is %sed, as the policy says", problem, link.on_error)
    shut = link.on_error == "block"
    decision = Decision(
        link.on_error, FAILED_CATEGORY, 1.0 if shut else 0.0,
        f"{problem}; fails {'closed' if shut else 'open'}",
    )  # fmt: skip
    return Verdict(name, decision, time.perf_counter() - began, failed=True)


def build_chain(policy: Policy, build_guard: BuildGuard | None = None) -> Chain:
    """Build every enabled filter. Raises ConfigurationError or IntegrityError."""
    links = [*_listed(policy), *_patterns(policy), *_data(policy), *_scored(policy)]
    guards = [item for item in policy.guards if item.enabled]
    return Chain(policy, links + [_guard(item, build_guard or _shipped_guard) for item in guards])


def _listed(policy: Policy) -> list[Link]:
    from serving.safety.lexicon import LexiconFilter, make_term, shipped_terms

    part = policy.lexicon
    if not part.enabled:
        return []
    allowed = {make_term(term, "") for term in part.allowed_terms}
    terms = [term for term in shipped_terms() if replace(term, category="") not in allowed]
    known = {term.category for term in terms}
    unknown = sorted(set(part.categories) - known - set(part.terms))
    if unknown:
        raise ConfigurationError(
            f"lexicon.categories: no list has {', '.join(unknown)}; "
            f"known: {', '.join(sorted(known))}"
        )
    own = [make_term(term, name) for name, several in part.terms.items() for term in several]
    actions: Mapping[str, OnError] = {**dict.fromkeys(part.terms, "block"), **part.categories}
    return [Link(LexiconFilter([*own, *terms], actions), part.on_error)]


def _patterns(policy: Policy) -> list[Link]:
    from serving.safety.injection import InjectionFilter
    from serving.safety.rules import Rule, RulesFilter, Topic, TopicsFilter

    links = []
    if policy.injection.enabled:
        attack = InjectionFilter(policy.injection.threshold)
        links.append(Link(attack, policy.injection.on_error, ("input",)))
    part = policy.rules
    if part.enabled and part.patterns:
        rules = [Rule(**item.model_dump()) for item in part.patterns]
        links.append(Link(RulesFilter(rules), part.on_error))
    if part.enabled and part.topics:
        topics = [Topic(**item.model_dump()) for item in part.topics]
        links.append(Link(TopicsFilter(topics), part.on_error))
    return links


def _data(policy: Policy) -> list[Link]:
    from serving.safety.leakage import SystemPromptFilter
    from serving.safety.personal_data import PersonalDataFilter

    links = []
    secrets, personal, prompt = policy.secrets, policy.personal_data, policy.system_prompt
    if prompt.enabled:
        leak = SystemPromptFilter(prompt.characters_min)
        links.append(Link(leak, prompt.on_error, ("output",)))
    if secrets.enabled:
        actions = dict.fromkeys(SECRET_TYPES, secrets.action)
        found = PersonalDataFilter("secrets", "secret", actions, 0.5)
        links.append(Link(found, secrets.on_error, ("output",)))
    if personal.enabled:
        data = PersonalDataFilter(
            "personal_data", "personal_data", personal.types, personal.score_min
        )
        links.append(Link(data, personal.on_error))
    return links


def _scored(policy: Policy) -> list[Link]:
    from serving.safety.toxicity import MODELS, ToxicityFilter

    part = policy.toxicity
    if not part.enabled:
        return []
    folder = Path(part.model) if part.model else MODELS
    return [Link(ToxicityFilter(part.threshold, folder), part.on_error)]


def _guard(part: GuardPolicy, build: BuildGuard) -> Link:
    threads = ThreadPoolExecutor(GUARD_THREADS, thread_name_prefix=f"guard-{part.name}")
    return Link(build(part), part.on_error, part.directions, part.timeout_seconds, threads)


def _shipped_guard(part: GuardPolicy) -> Filter:
    from serving.safety.guards import build_guard

    return build_guard(part)
