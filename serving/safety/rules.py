"""The policy's own rules: patterns and topics, each with its action."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from core.contracts import Role
from core.errors import ConfigurationError, UnavailableError
from serving.safety.decisions import (
    ALLOW,
    SEVERITY,
    Action,
    Context,
    Decision,
    Direction,
    Edit,
)
from serving.safety.lexicon import Lexicon, make_term
from serving.safety.views import views

PATTERN_SECONDS_MAX = 0.05
"""A pattern that takes longer on one text is ended: some take for ever on texts made for that."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A pattern (regex library) on the text and its undisguised forms. Redaction: original only."""

    name: str
    pattern: str
    action: Action
    category: str
    directions: tuple[Direction, ...]
    replacement: str


class RulesFilter:
    """Applies the rules in order; the strictest action counts, redactions add up."""

    name = "rules"

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = [(rule, compile_pattern(rule.name, rule.pattern)) for rule in rules]

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Match every rule. Raises UnavailableError when a pattern takes too long."""
        found: list[tuple[Rule, list[Edit]]] = []
        for rule, pattern in self._rules:
            if context.direction not in rule.directions:
                continue
            edits = self._matches(rule, pattern, text)
            if edits is not None:
                found.append((rule, edits))
        if not found:
            return ALLOW
        worst = max((rule for rule, _ in found), key=lambda rule: SEVERITY[rule.action])
        edits = sorted(
            (edit for rule, several in found if rule.action == "redact" for edit in several),
            key=lambda edit: (edit.start, -edit.end),
        )
        reason = "matches rule " + ", ".join(rule.name for rule, _ in found)
        kept = tuple(edits) if worst.action == "redact" else ()
        return Decision(worst.action, worst.category, 1.0, reason, kept)

    @staticmethod
    def _matches(rule: Rule, pattern: Any, text: str) -> list[Edit] | None:
        """Return the matches in the original, or an empty list for one in another form only."""
        try:
            spans = [found.span() for found in pattern.finditer(text, timeout=PATTERN_SECONDS_MAX)]
            if spans:
                return [Edit(start, end, rule.replacement) for start, end in spans if end > start]
            if rule.action == "redact":
                return None
            forms = views(text).forms
            hit = any(pattern.search(form, timeout=PATTERN_SECONDS_MAX) for form in forms)
        except TimeoutError as error:
            raise UnavailableError(
                f"rule {rule.name} took more than {PATTERN_SECONDS_MAX:g} s; simplify its pattern"
            ) from error
        return [] if hit else None


@dataclass(frozen=True, slots=True)
class Topic:
    """Words and phrases that stand for one topic."""

    name: str
    terms: tuple[str, ...]
    action: Action
    directions: tuple[Direction, ...]


class TopicsFilter:
    """Blocks texts that name a topic of the policy."""

    name = "topics"

    def __init__(self, topics: Sequence[Topic]) -> None:
        self._lexicons = [
            (topic, Lexicon(make_term(term, topic.name) for term in topic.terms))
            for topic in topics
            if topic.action != "allow"
        ]

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Look for every topic's terms."""
        for topic, lexicon in self._lexicons:
            if context.direction in topic.directions and lexicon.find(text):
                return Decision("block", f"topic:{topic.name}", 1.0, f"is about {topic.name}")
        return ALLOW


def compile_pattern(name: str, pattern: str) -> Any:
    """Return a compiled pattern. Raises ConfigurationError naming the rule."""
    import regex

    try:
        return regex.compile(pattern, regex.IGNORECASE)
    except regex.error as error:
        raise ConfigurationError(f"rule {name}: its pattern is wrong: {error}") from error
