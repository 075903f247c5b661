"""Redacts or blocks personal data and secrets, per type, with the scanner of privacy/pii.py."""

import threading
from collections.abc import Mapping

from core.contracts import Role
from privacy.operators import replace
from privacy.pii import PiiConfig, Scanner
from serving.safety.decisions import ALLOW, SEVERITY, Action, Context, Decision, Edit


class PersonalDataFilter:
    """Acts on each type as the policy says; a type that is not named is allowed."""

    def __init__(
        self,
        name: str,
        category: str,
        actions: Mapping[str, Action],
        score_min: float,
    ) -> None:
        self.name = name
        self._category = category
        self._actions = {type_: action for type_, action in actions.items() if action != "allow"}
        self._config = PiiConfig(types=tuple(sorted(self._actions)), score_min=score_min)
        self._local = threading.local()
        self._scanner()  # compiles the patterns now, not at the first text

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Find the types that the policy names; the strictest action among them counts."""
        if not self._actions:
            return ALLOW
        spans = self._scanner().scan(text)
        if not spans:
            return ALLOW
        worst = max(spans, key=lambda span: (SEVERITY[self._actions[span.type]], span.score))
        types = ", ".join(sorted({span.type for span in spans}))
        edits = tuple(
            Edit(span.start, span.end, replace(span.type, text[span.start : span.end]))
            for span in spans
        )
        action = self._actions[worst.type]
        kept = edits if action == "redact" else ()
        return Decision(action, self._category, worst.score, f"holds {types}", kept)

    def _scanner(self) -> Scanner:
        """A scanner owns its memory: each thread has one."""
        scanner: Scanner | None = getattr(self._local, "scanner", None)
        if scanner is None:
            scanner = self._local.scanner = Scanner(self._config)
        return scanner
