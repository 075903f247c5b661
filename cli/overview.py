"""Gathers what `serin status` shows, each piece from whoever knows it; what nobody tells is None.

Reads only. The facts come from the InferenceService, the intent from the ledger.
"""

import math
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cli.costs import UsageView, read_usage
from cli.evidence import EvidenceView, evidence_view
from cli.processes import alive
from cli.readiness import answers, fetch_json, fetch_status_and_json
from cli.stack import children_of, sqlite_path
from cli.stack_file import StackFile, read_stack
from core.contracts import CounterSample
from core.errors import SerinError
from core.settings import Settings
from observability.metrics import ArmSummary, scrape, summary
from rollout.inference_service import GROUP, PLURAL, ServiceFacts, read_facts
from rollout.release import Release

if TYPE_CHECKING:
    from rollout.ledger import Ledger

ASK_SECONDS_MAX = 1.5
RUNS_SHOWN = 5
DAILY_FLOWS = ("retrain", "release", "rollback", "restore")
WATCH_FLOW = "watch"
NOTHING_COUNTED = CounterSample(0.0, 0.0, None, None)


@dataclass(frozen=True, slots=True)
class PartView:
    """One part of the stack. `state`: ready, starting (runs, does not answer), down or external."""

    state: str
    address: str | None = None
    pid: int | None = None
    restarts: int = 0


@dataclass(frozen=True, slots=True)
class ArmView:
    """One arm: its share in percent and its live figures (seconds; None without a request)."""

    model_version: str | None
    revision: str
    share_percent: int
    requests: int | None = None
    error_share: float | None = None
    p50_seconds: float | None = None
    p95_seconds: float | None = None


@dataclass(frozen=True, slots=True)
class ReleaseView:
    """One release as the ledger has it. `step` counts from 1 of `steps`."""

    release_id: str
    model_version: str
    kind: str
    state: str
    share_percent: int
    step: int | None
    steps: int
    created_at: str
    reason: str
    approvals: str = ""
    evidence: EvidenceView | None = None


@dataclass(frozen=True, slots=True)
class RunView:
    """One flow run; `seconds` is None while it has not started."""

    flow: str
    name: str
    state: str
    started_at: str | None
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """Everything at one time. None stands for unknown: whoever knows it does not answer.

    `serving` is empty when nothing has ever been served.
    """

    time_seconds: float
    home: str
    service: str
    parts: dict[str, PartView]
    serving: dict[str, ArmView] | None
    active: ReleaseView | None
    waiting: tuple[ReleaseView, ...] | None
    last: tuple[ReleaseView, ...] | None
    runs: tuple[RunView, ...] | None
    counted_seconds: float | None = None
    usage: tuple[UsageView, ...] | None = None
    notes: tuple[str, ...] = field(default=())


@dataclass(slots=True)
class Reader:
    """Gathers overviews of one home; remembers the last scrape to show what happened since."""

    settings: Settings
    before: CounterSample | None = None

    def read(self) -> Overview:
        """Ask everybody at the same time, each at most `ASK_SECONDS_MAX`."""
        settings, notes = self.settings, list[str]()
        stack = read_stack(settings.home)
        with ThreadPoolExecutor(4, thread_name_prefix="status") as pool:
            parts = pool.submit(part_views, settings, stack)
            runs = pool.submit(last_runs, settings.prefect_url)
            sample = pool.submit(self._scrape)
            usage = pool.submit(read_usage, settings, ASK_SECONDS_MAX)
            ledger = open_ledger(settings, notes)
            facts = read_service(settings, ledger)
            counted = sample.result()
        serving = serving_views(facts, counted, self.before, notes) if facts else None
        seconds = None
        if counted is not None and self.before is not None:
            seconds = counted.time_seconds - self.before.time_seconds
        self.before = counted
        active, waiting, last = release_views(settings, ledger)
        return Overview(
            time_seconds=time.time(),
            home=str(settings.home),
            service=settings.service,
            parts=parts.result(),
            serving=serving,
            active=active,
            waiting=waiting,
            last=last,
            runs=runs.result(),
            counted_seconds=seconds,
            usage=usage.result(),
            notes=tuple(notes),
        )

    def _scrape(self) -> CounterSample | None:
        if not self.settings.gateway_url:
            return None
        try:
            return scrape(self.settings.gateway_url, self.settings.service, ASK_SECONDS_MAX)
        except SerinError:
            return None


def part_views(settings: Settings, stack: StackFile) -> dict[str, PartView]:
    """Return each part's state; a stack that does not run has none but the external ones."""
    children = children_of(settings, stack)
    with ThreadPoolExecutor(max(len(children), 1), thread_name_prefix="parts") as pool:
        ready = pool.map(
            lambda child: answers(
                settings.home, child, stack.processes[child.name], ASK_SECONDS_MAX
            ),
            children,
        )
        found: dict[str, PartView] = {}
        for child, is_ready in zip(children, ready, strict=True):
            record = stack.processes[child.name]
            runs = alive(record.identity)
            state = ("ready" if is_ready else "starting") if runs else "down"
            pid = record.identity.pid if runs and record.identity else None
            address = f"http://127.0.0.1:{child.port}" if child.port else None
            found[child.name] = PartView(state, address, pid, record.restarts)
    return found


def open_ledger(settings: Settings, notes: list[str]) -> "Ledger | None":
    """Open the ledger without making one; None where there is none or it does not answer."""
    path = sqlite_path(settings.ledger_url)
    if path is not None and not path.exists():
        return None
    # SQLAlchemy takes most of a second to import.
    from rollout.ledger import Ledger

    try:
        return Ledger(settings.ledger_url, busy_seconds=ASK_SECONDS_MAX)
    except SerinError as error:
        notes.append(f"ledger: {error}")
        return None


def read_service(settings: Settings, ledger: "Ledger | None") -> ServiceFacts | None:
    """Return the service's facts; None when the control plane does not tell."""
    if not settings.kube_url:
        return None
    path = f"apis/{GROUP}/v1beta1/namespaces/{settings.namespace}/{PLURAL}/{settings.service}"
    status, body = fetch_status_and_json(f"{settings.kube_url.rstrip('/')}/{path}", ASK_SECONDS_MAX)
    if status == 404:
        return read_facts(None, {})
    if body is None:
        return None
    try:
        uid = body["metadata"].get("uid", "")
        return read_facts(body, ledger.revisions(uid) if ledger else {})
    except SerinError:
        return read_facts(body, {})


def serving_views(
    facts: ServiceFacts,
    now: CounterSample | None,
    before: CounterSample | None,
    notes: list[str],
) -> dict[str, ArmView]:
    """Return the arms by the control plane's facts, with the gateway's figures where it told."""
    if facts.failure:
        notes.append(f"newest revision: {facts.failure}")
    figures = summary(before or NOTHING_COUNTED, now) if now else None
    by_revision = {
        arm.revision: arm for arm in (figures and figures.stable, figures and figures.canary) if arm
    }
    shares: dict[str, int] = {}
    for entry in facts.traffic:
        shares[entry.revision] = shares.get(entry.revision, 0) + entry.percent
    views: dict[str, ArmView] = {}
    for revision, percent in shares.items():
        canary = len(shares) > 1 and revision == facts.latest_ready
        version = facts.bundles.get(revision, ("", ""))[1] or None
        views["canary" if canary else "stable"] = _arm_view(
            version, revision, percent, by_revision.get(revision)
        )
    return dict(sorted(views.items(), reverse=True))


def _arm_view(version: str | None, revision: str, percent: int, arm: ArmSummary | None) -> ArmView:
    if arm is None:
        return ArmView(version, revision, percent)
    return ArmView(
        version,
        revision,
        percent,
        arm.requests,
        _number(arm.error_share),
        _number(arm.p50_seconds),
        _number(arm.p95_seconds),
    )


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def release_views(
    settings: Settings, ledger: "Ledger | None"
) -> tuple[ReleaseView | None, tuple[ReleaseView, ...] | None, tuple[ReleaseView, ...] | None]:
    """Return the active release, the waiting ones and the last ones; None where unknown."""
    path = sqlite_path(settings.ledger_url)
    if ledger is None:
        known = () if path is not None and not path.exists() else None
        return None, known, known
    service, namespace = settings.service, settings.namespace
    try:
        active = ledger.active(service, namespace)
        evidence = evidence_view(ledger, active) if active else None
        waiting = ledger.waiting(service, namespace)
        last = ledger.releases(service, namespace, limit=RUNS_SHOWN)
    except SerinError:
        return None, None, None
    ended = [release for release in last if release.final]
    seen = replace(release_view(active), evidence=evidence) if active else None
    return seen, _views(waiting), _views(ended)


def _views(releases: Sequence[Release]) -> tuple[ReleaseView, ...]:
    return tuple(release_view(release) for release in releases)


def release_view(release: Release) -> ReleaseView:
    """Return what a person wants to know of a release."""
    shares = release.plan.shares
    return ReleaseView(
        release_id=release.release_id,
        model_version=release.candidate.model_version,
        kind=release.kind,
        state=str(release.state),
        share_percent=release.percent,
        step=shares.index(release.share) + 1 if release.share in shares else None,
        steps=len(shares),
        created_at=release.created_at,
        reason=release.reason,
        approvals=_approvals(release),
    )


def _approvals(release: Release) -> str:
    """Who agreed, of how many that are asked for; empty where nobody is asked."""
    if release.plan.approval == "auto":
        return ""
    names = ", ".join(approval.who for approval in release.approvals) or "nobody yet"
    return f"{len(release.approvals)} of {release.plan.approvals_required}: {names}"


def last_runs(prefect_url: str) -> tuple[RunView, ...] | None:
    """Return the newest runs of the daily flows and the newest watch; None when Prefect is away."""
    if not prefect_url:
        return None
    runs: list[RunView] = []
    for flows, limit in ((DAILY_FLOWS, RUNS_SHOWN), ((WATCH_FLOW,), 1)):
        found = _runs(prefect_url, flows, limit)
        if found is None:
            return None
        runs += found
    return tuple(runs)


def _runs(prefect_url: str, flows: Sequence[str], limit: int) -> list[RunView] | None:
    named = fetch_json(
        f"{prefect_url}/flows/filter", ASK_SECONDS_MAX, {"flows": {"name": {"any_": [*flows]}}}
    )
    if named is None:
        return None
    names = {flow["id"]: flow["name"] for flow in named}
    content = {
        "sort": "START_TIME_DESC",
        "limit": limit,
        "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED", "PENDING"]}}},
        "flows": {"name": {"any_": [*flows]}},
    }
    found = fetch_json(f"{prefect_url}/flow_runs/filter", ASK_SECONDS_MAX, content)
    if found is None:
        return None
    return [
        RunView(
            names.get(run["flow_id"], "?"),
            run["name"],
            run.get("state_name") or "?",
            run.get("start_time"),
            run.get("total_run_time"),
        )
        for run in found
    ]
