"""One release as the ledger keeps it, and the parts it is made of. Values only, no database."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec
from pydantic import BaseModel

from core.contracts import FINAL_STATES, Candidate, ReleaseState
from core.digests import digest_json
from rollout.plan import ReleasePlan

Kind = Literal["first", "canary", "rollback"]
HELD_STATES = (ReleaseState.CANARY, ReleaseState.ROLLING_BACK)
"""States in which traffic may move, hence somebody must hold a lease."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What a service is and serves, in the terms that survive a rollback.

    `spec` is the InferenceService's without canaryTrafficPercent and replicas, `weights` the
    traffic as
    {bundle digest: percent}, `reported` and `policies` the bundle digests and policy hashes that
    the serving processes told themselves (None: nobody could be asked). Revision names and
    versions of the API object are left out of the comparison on purpose.
    """

    spec: Mapping[str, Any]
    bundle_digest: str
    model_version: str
    weights: Mapping[str, int]
    reported: tuple[str, ...] | None = None
    policies: tuple[str, ...] | None = None

    @property
    def digest(self) -> str:
        """One digest of everything compared."""
        return digest_json(msgspec.to_builtins(self))

    def differences(self, other: "ServiceState") -> tuple[str, ...]:
        """Name the parts that differ; what either side does not know is not compared."""
        names = ("spec", "bundle_digest", "model_version", "weights", "reported", "policies")
        pairs = ((name, getattr(self, name), getattr(other, name)) for name in names)
        return tuple(name for name, mine, its in pairs if mine != its and None not in (mine, its))


@dataclass(frozen=True, slots=True)
class Pending:
    """An intent whose outcome is not recorded yet, and what the service looks like once done."""

    action: str
    percent: int | None
    bundle_digest: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Expected:
    """A revision that the control plane will create: the first name other than `after_revision`."""

    after_revision: str
    bundle_digest: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Approval:
    """Who agreed to exactly what. `self_declared`: nobody checked that it was this person."""

    who: str
    time: str
    note: str
    candidate_digest: str
    verdict_digest: str
    self_declared: bool = True


@dataclass(frozen=True, slots=True)
class Release:
    """One attempt to move a candidate to stable. Times are UTC ISO text, None where not reached.

    `share` is the canary percent last intended, `applied_share` the last one known to be written;
    None before the first, and 0 where the canary is loaded without traffic.
    `before` was recorded before anything was touched;
    `goal` is what a rollback must reach (None with state ROLLING_BACK: no service at all).
    `lease_until` is in seconds of the ledger database's clock. `fence_version` is a
    resourceVersion that must have changed before the release may finish: a patch of unknown
    outcome could still land on it.
    """

    release_id: str
    namespace: str
    service: str
    kind: Kind
    state: ReleaseState
    candidate: Candidate
    plan: ReleasePlan
    created_at: str
    epoch: int = 0
    holder: str = ""
    lease_until: float = 0.0
    writes: int = 0
    share: int | None = None
    applied_share: int | None = None
    revision: str = ""
    before: ServiceState | None = None
    goal: ServiceState | None = None
    after: ServiceState | None = None
    pending: Pending | None = None
    expected: Expected | None = None
    fence_version: str = ""
    approvals: tuple[Approval, ...] = ()
    asked_at: str | None = None
    started_at: str | None = None
    patched_at: str | None = None
    step_started_at: str | None = None
    step_requests_start: int = 0
    rolling_back_at: str | None = None
    safe_at: str | None = None
    finished_at: str | None = None
    alarms: tuple[str, ...] = field(default=())
    reason: str = ""
    requested_by: str = ""

    @property
    def final(self) -> bool:
        """Whether nothing can change any more."""
        return self.state in FINAL_STATES

    @property
    def percent(self) -> int:
        """The clients' share last intended for the candidate, 0 before the first."""
        return self.share or 0

    @property
    def approved(self) -> bool:
        """Whether as many people agreed as the plan asks for."""
        return len(self.approvals) >= self.plan.approvals_required

    @property
    def candidate_digest(self) -> str:
        """What an approval binds to beside the verdict: the candidate without its verdict."""
        content = msgspec.to_builtins(self.candidate)
        return digest_json({k: v for k, v in content.items() if k not in VERDICT_FIELDS})


VERDICT_FIELDS = ("verdict_digest", "stable_version")


def release_view(release: Release) -> dict[str, Any]:
    """Return a release as JSON-safe builtins, for people and programs outside."""
    view: dict[str, Any] = msgspec.to_builtins(release, enc_hook=_encode_plan)
    return view


def encode_release(release: Release) -> str:
    """Return a release as JSON text."""
    return msgspec.json.encode(release, enc_hook=_encode_plan).decode()


def decode_release(text: str, **columns: Any) -> Release:
    """Read a release back; `columns` are the values that the database holds beside the text."""
    content = msgspec.json.decode(text)
    if (single := content.pop("approval", None)) is not None:
        content["approvals"] = [single]  # written when one approval was all there could be
    if 0 not in content["plan"]["shares"]:  # written when 0 stood for none
        content |= {name: content[name] or None for name in ("share", "applied_share")}
    return msgspec.convert({**content, **columns}, Release, dec_hook=_decode_plan)


def _encode_plan(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise NotImplementedError(type(value))


def _decode_plan(kind: type[Any], value: Any) -> Any:
    if issubclass(kind, BaseModel):
        return kind.model_validate(value)
    raise NotImplementedError(kind)
