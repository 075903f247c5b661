"""Refusals of one kind to one client, counted: a flood of them is a few rows of the audit."""

import time
from collections import Counter

from observability.audit_rows import AuditRow

KINDS_MAX = 1000
MANY = "many"
"""The client in the row of refusals beyond KINDS_MAX kinds and clients."""

Kind = tuple[int, str, str, str]
"""Status, reason, key, client."""


class RefusalCounts:
    """What was refused since the rows were last taken."""

    def __init__(self) -> None:
        self._counts: Counter[Kind] = Counter()

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, status: int, reason: str, key: str, client: str) -> None:
        """Count one refusal."""
        kind = (status, reason, key, client)
        if kind not in self._counts and len(self._counts) >= KINDS_MAX:
            kind = (status, reason, "", MANY)
        self._counts[kind] += 1

    def take(self) -> list[AuditRow]:
        """Return a row for each kind and begin anew."""
        counts, self._counts = self._counts, Counter()
        now = time.time()
        return [
            AuditRow(
                kind="refusal",
                time_seconds=now,
                status=status,
                reason=reason,
                key=key,
                client=client,
                count=count,
            )
            for (status, reason, key, client), count in counts.items()
        ]
