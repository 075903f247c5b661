"""Frozen value types that cross a border between rooms, and the rules that several rooms share.

Plain data with JSON-safe fields: msgspec converts them to and from builtins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import msgspec

from core.digests import digest_json

Outcome = Literal["pass", "fail", "inconclusive"]
Figure = float | int | str | bool | None
Role = Literal["system", "user", "assistant"]

LATENCY_BUCKET_FIRST_SECONDS = 0.002
LATENCY_BUCKET_COUNT = 126
LATENCY_BUCKETS_SECONDS: tuple[float, ...] = tuple(
    round(LATENCY_BUCKET_FIRST_SECONDS * 1.3 ** (index / 3), 9)
    for index in range(LATENCY_BUCKET_COUNT)
)
"""Upper edges growing by 1.3^(1/3), 2 ms to 112 s: a ratio of 1.3 is exactly three buckets."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Record:
    """One training or evaluation example: the turns before the answer, and the answer.

    `day` names the daily file it came in, `slice_name` the part of the traffic it belongs to.
    """

    record_id: str
    day: str
    created_at: str
    slice_name: str
    messages: tuple[Message, ...]
    response: str

    @property
    def prompt(self) -> str:
        """The last user turn."""
        return self.messages[-1].content


@dataclass(frozen=True, slots=True)
class Rejection:
    """A row that the record contract refuses: its index in the checked list, and why."""

    index: int
    reason: str


@dataclass(frozen=True, slots=True)
class IntakeEvidence:
    """What an intake leaves for the contract's report, without any text.

    `batches`: rows, refused and the rows by reason of each; `sample`: a seeded draw of rows as the
    contract saw them (types, lengths, ...), each with the `reason` it was refused for, or "".
    """

    batches: tuple[Mapping[str, Any], ...] = ()
    sample: tuple[Mapping[str, Any], ...] = ()

    @classmethod
    def joined(cls, parts: "Sequence[IntakeEvidence]") -> "IntakeEvidence":
        """Return the evidence of several files as one."""
        return cls(
            batches=tuple(batch for part in parts for batch in part.batches),
            sample=tuple(row for part in parts for row in part.sample),
        )


Answer = Callable[[Sequence[tuple[Message, ...]]], Sequence[str]]
"""answer(prompts) -> answers, in the same order: how validation asks a model without a socket."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What one gate found: `figures` are measured values, `tables` breakdowns such as slices."""

    gate: str
    outcome: Outcome
    summary: str
    reasons: tuple[str, ...] = ()
    figures: Mapping[str, Figure] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, Mapping[str, Figure]]] = field(default_factory=dict)
    report: str | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The gates' judgement together. Missing evidence never passes."""

    outcome: Outcome
    evidence: tuple[Evidence, ...]

    @property
    def reasons(self) -> tuple[str, ...]:
        """Why it did not pass: every reason of every gate that did not pass."""
        found = (item for item in self.evidence if item.outcome != "pass")
        return tuple(f"{item.gate}: {reason}" for item in found for reason in item.reasons)

    @property
    def digest(self) -> str:
        """The digest that an approval binds to."""
        return digest_json(msgspec.to_builtins(self))


@dataclass(frozen=True, slots=True)
class SnapshotRef:
    """An immutable slice of the lake; `snapshot_id` is the digest of its content.

    `version_first..version_last` is the Delta range it was cut from (both included), `days` the
    daily files whose rows it holds.
    """

    snapshot_id: str
    uri: str
    rows: int
    held_out_rows: int
    version_first: int
    version_last: int
    days: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A registered model version that passed the offline gates, ready to be released."""

    service: str
    model_version: str
    bundle_digest: str
    bundle_uri: str
    adapter_digest: str
    snapshot_id: str
    verdict_digest: str
    stable_version: str | None
    """The version that was stable when the verdict was given (None: there was none)."""


class ReleaseState(StrEnum):
    """States of one attempt to move a candidate to stable. PROPOSED is waiting: not yet active."""

    PROPOSED = "PROPOSED"
    AWAITING_APPROVAL = "AWAITING_APPROVAL"
    CANARY = "CANARY"
    ROLLING_BACK = "ROLLING_BACK"
    PROMOTED = "PROMOTED"
    ROLLED_BACK = "ROLLED_BACK"
    REJECTED = "REJECTED"
    SUPERSEDED = "SUPERSEDED"


ACTIVE_STATES = (ReleaseState.AWAITING_APPROVAL, ReleaseState.CANARY, ReleaseState.ROLLING_BACK)
FINAL_STATES = (
    ReleaseState.PROMOTED,
    ReleaseState.ROLLED_BACK,
    ReleaseState.REJECTED,
    ReleaseState.SUPERSEDED,
)


@dataclass(frozen=True, slots=True)
class ArmCounters:
    """Monotone counters of one arm since its process started; they may reset.

    `latency_buckets[i]` counts requests that took <= LATENCY_BUCKETS_SECONDS[i] (cumulative, as in
    Prometheus); `requests` is the +Inf bucket; `errors` are the requests that failed by our fault.
    """

    revision: str
    draws: int
    requests: int
    errors: int
    latency_buckets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ArmOutcomes:
    """Settled outcomes of one arm: monotone counts of a beginning of the order of assignment.

    `latencies[i]` counts the requests that took up to LATENCY_BUCKETS_SECONDS[i] and longer than
    the edge before it (not cumulative); index LATENCY_BUCKET_COUNT is +Inf, and a request
    unanswered at its deadline counts there. `scores[k]` counts answers scored k / 100.
    """

    requests: int = 0
    errors: int = 0
    blocks: int = 0
    latencies: Mapping[int, int] = field(default_factory=dict)
    scores: Mapping[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Stratum:
    """Settled outcomes of both arms for the draws made at one declared canary share in 0..1."""

    share: float
    stable: ArmOutcomes = ArmOutcomes()
    canary: ArmOutcomes = ArmOutcomes()


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Prompts that both versions answered and that a reference scored, in whole percent each."""

    canary_percent: int
    stable_percent: int
    count: int


@dataclass(frozen=True, slots=True)
class CounterSample:
    """One scrape: `time_seconds` since the epoch, the declared canary share in 0..1, both arms.

    `process` names the process that counted: another name means that every count began anew.
    `strata` are the settled outcomes of the two revisions' comparison, oldest share first; `pairs`
    count what shadow calls have shown of them, in the order of both scores.
    """

    time_seconds: float
    share: float
    stable: ArmCounters | None
    canary: ArmCounters | None
    process: str = ""
    strata: tuple[Stratum, ...] = ()
    pairs: tuple[ScoredPairs, ...] = ()


@dataclass(frozen=True, slots=True)
class DecisionInputs:
    """What a decision was derived from: the release's first `samples` kept scrapes.

    `digest` chains them: SHA-256 of (hexadecimal digest before, scrape as kept), from "" on.
    """

    samples: int
    digest: str
    config: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class CanaryDecision:
    """What the canary judge says now. Only `promote` may end in 100 %."""

    decision: Literal["continue", "promote", "rollback", "inconclusive"]
    reason: str
    canary_requests: int = 0
    figures: Mapping[str, Figure] = field(default_factory=dict)
    inputs: DecisionInputs | None = None
