"""The predictor's part of the audit: one row for each request that it was asked and answered.

A row says who asked, what was decided of prompt and answer and what left; text only where the
policy says so. When a row is written, `edge.py` knows.
"""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from core.contracts import Role
from core.digests import digest_bytes
from core.errors import UnavailableError
from observability.audit import Audit
from observability.audit_rows import AuditRow, FilterDecision
from observability.refusal_counts import RefusalCounts
from serving import request_traces
from serving.connections import CLIENT_GONE_STATUS
from serving.engines.engine import Prompt
from serving.lifecycle import Identity
from serving.predictor_metrics import PredictorMetrics
from serving.safety.chain import Verdict
from serving.safety.decisions import ALLOWED_CATEGORY, SEVERITY, Action, Decision, Direction
from serving.safety.policy import Policy
from serving.safety.stream import Release

if TYPE_CHECKING:
    from privacy.pii import Scanner

log = logging.getLogger("serin.predictor")

FLUSH_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, as the gateway says; `shadow`: the answer is compared and never given."""

    request_id: str
    key: str
    client: str
    shadow: bool


class Record:
    """What is known of one request so far: the safety chain's witness. Lives on the event loop."""

    def __init__(self, asker: Asker, metrics: PredictorMetrics) -> None:
        self.asker = asker
        self.arrived_seconds = time.time()
        self.response_id = ""
        self.reason = ""
        self.input_digest = ""
        self.policy_hash = ""
        self.keeps_text = False
        self.blocked = False
        self.prompts: tuple[Prompt, ...] = ()
        self.texts: dict[int, list[str]] = {}
        self.released: Counter[int] = Counter()
        """By choice: bytes of text that the chain let pass."""
        self.segments: list[str] = []
        """Digests of the scanned segments, in the order in which they were settled."""
        self.complete = False
        """Whether nothing more of the answer can come."""
        self._metrics = metrics
        self._open_choices: set[int] = set()
        self._strictest: dict[tuple[Role, str], Decision] = {}
        self._seconds: defaultdict[tuple[Role, str], float] = defaultdict(float)

    def asked(self, body: bytes) -> None:
        """Note a request's body."""
        self.input_digest = digest_bytes(body)

    def began(self, policy: Policy, prompts: tuple[Prompt, ...]) -> None:
        """The request obeys this policy."""
        self.policy_hash = policy.digest
        self.keeps_text = policy.audit.keep_text
        self.prompts = prompts if self.keeps_text else ()

    def opened(self, choice: int) -> None:
        """A choice of the answer is going to be generated."""
        self._open_choices.add(choice)

    def screened(self, role: Role, action: Action, verdicts: Sequence[Verdict]) -> None:
        """Note what was decided of one turn of a prompt."""
        self._judged(role, verdicts)
        self._decided("input", action, verdicts)

    def settled(self, choice: int, release: Release) -> None:
        """Note a segment of an answer: what the chain said of it and what of it may leave."""
        self._judged("assistant", release.verdicts)
        if release.scanned:
            self.segments.append(digest_bytes(release.scanned.encode()))
        if release.text:
            size = len(release.text.encode())
            self.released[choice] += size
            self._metrics.scanned(size, any(verdict.failed for verdict in release.verdicts))
            if self.keeps_text:
                self.texts.setdefault(choice, []).append(release.text)

    def ended(self, choice: int, action: Action, verdicts: Sequence[Verdict]) -> None:
        """Note what was decided of a whole choice."""
        self._decided("output", action, verdicts)
        self._open_choices.discard(choice)
        self.complete = not self._open_choices

    def decisions(self) -> tuple[FilterDecision, ...]:
        """Return what each filter decided at its strictest, by role, with its time in all."""
        return tuple(
            FilterDecision(
                filter=name,
                role=role,
                decision=found.action,
                category="" if found.category == ALLOWED_CATEGORY else found.category,
                score=round(found.score, 4),
                seconds=round(self._seconds[role, name], 6),
            )
            for (role, name), found in self._strictest.items()
        )

    def _judged(self, role: Role, verdicts: Sequence[Verdict]) -> None:
        for verdict in verdicts:
            key, made = (role, verdict.filter), verdict.decision
            self._seconds[key] += verdict.seconds
            known = self._strictest.get(key)
            if known is None or _rank(made) > _rank(known):
                self._strictest[key] = made

    def _decided(self, direction: Direction, action: Action, verdicts: Sequence[Verdict]) -> None:
        failed = [verdict.filter for verdict in verdicts if verdict.failed]
        self._metrics.checked(direction, action, failed)
        self.blocked = self.blocked or action == "block"


class PredictorAudit:
    """Writes the predictor's rows. With `required` nothing leaves that cannot be recorded."""

    def __init__(
        self, audit: Audit | None, required: bool, identity: Identity, metrics: PredictorMetrics
    ) -> None:
        """Without an audit every row is missed."""
        self._audit = audit
        self._required = required
        self._identity = identity
        self.metrics = metrics
        self._refused = RefusalCounts()
        self._scanner: Scanner | None = None

    def begin(self, asker: Asker) -> Record:
        """Return the record of a new request."""
        return Record(asker, self.metrics)

    def part(self, record: Record, segments: Sequence[str], sent_bytes: int) -> None:
        """Record segments of a stream before they leave. Raises UnavailableError."""
        self._write(self._row(record, "part", 200, segments, sent_bytes, sent_bytes))

    def whole(self, record: Record, status: int, sent_bytes: int) -> None:
        """Record a request and its answer before the answer ends. Raises UnavailableError."""
        kind = "shadow" if record.asker.shadow else "answer"
        if status >= 400:
            kind = "failure" if status >= 500 else "refusal"
        if status == CLIENT_GONE_STATUS:
            kind = "cancelled"
        scanned = record.released.total()
        row = self._row(record, kind, status, record.segments, scanned, sent_bytes)
        decisions, text = record.decisions(), self._text(record)
        self._write(msgspec.structs.replace(row, decisions=decisions, text=text))

    def refused(self, status: int, reason: str, client: str) -> None:
        """Count a refusal of somebody unknown; its row is written within a second."""
        if not self._refused:
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._flush)
        self._refused.add(status, reason, "", client)

    def close(self) -> None:
        """Write down what is left, and end."""
        self._flush()
        if self._audit is not None:
            self._audit.close()

    def _row(
        self,
        record: Record,
        kind: str,
        status: int,
        segments: Sequence[str],
        scanned_bytes: int,
        sent_bytes: int,
    ) -> AuditRow:
        identity = self._identity
        return AuditRow(
            kind=kind,
            time_seconds=record.arrived_seconds,
            request_id=record.asker.request_id,
            response_id=record.response_id,
            key=record.asker.key,
            client=record.asker.client,
            model_version=identity.model_version,
            revision=identity.revision,
            bundle_digest=identity.bundle_digest,
            policy=record.policy_hash,
            status=status,
            reason=record.reason,
            blocked=record.blocked,
            input_digest=record.input_digest,
            output_digests=tuple(segments),
            bytes_scanned=scanned_bytes,
            bytes_sent=sent_bytes,
        )

    def _text(self, record: Record) -> dict[str, str] | None:
        """Return prompts and answers where the policy keeps them, personal data replaced."""
        if not record.keeps_text:
            return None
        texts = {"input": "\n\n".join(map(_shown, record.prompts))}
        for choice, parts in sorted(record.texts.items()):
            texts[f"output {choice}"] = "".join(parts)
        if self._scanner is None:
            from privacy.pii import Scanner

            self._scanner = Scanner()
        return {name: self._scanner.redact(text)[0] for name, text in texts.items()}

    def _write(self, row: AuditRow) -> None:
        began = time.perf_counter()
        try:
            if self._audit is None:
                raise UnavailableError("there is no audit: it could not be opened at the start")
            self._audit.append(row)
            self.metrics.audited(row.count, kept=True)
        except UnavailableError as error:
            self.metrics.audited(row.count, kept=False)
            log.error("%s", error)
            if self._required:
                raise
        finally:
            request_traces.stage("audit", began)

    def _flush(self) -> None:
        for row in self._refused.take():
            with suppress(UnavailableError):  # they are refused already
                self._write(row)


def _rank(decision: Decision) -> tuple[int, float]:
    return SEVERITY[decision.action], decision.score


def _shown(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{turn.role}: {turn.content}" for turn in prompt)
