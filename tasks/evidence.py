"""What an approver reads before answering: the verdict, the links and the difference to stable."""

from collections.abc import Callable
from typing import TypeVar

import msgspec

from core.contracts import Candidate, Figure, Verdict
from core.errors import SerinError
from registry.runs import Run
from registry.versions import Lineage, Registry
from rollout.release import Release
from rollout.times import to_iso, to_seconds
from tasks.stable import open_registry
from tasks.stages import LOG
from validation.gates import as_markdown

T = TypeVar("T")
PAGE_LENGTH_MAX = 30_000
DAYS_SHOWN = 10
DIGEST_SHOWN = 12


def evidence_page(release: Release, refused: tuple[str, ...] = ()) -> str:
    """Return the form's description as markdown. What nobody can tell now is called unknown.

    `refused` says why answers given so far were not taken.
    """
    from tasks.judging import DRIFT_REPORT, judged_verdict

    candidate, registry = release.candidate, open_registry()
    lineage = _known(lambda: registry.lineage(candidate.model_version))
    before = _stable_lineage(registry, candidate)
    verdict = _known(lambda: judged_verdict(candidate.bundle_digest))
    if verdict is None or verdict.digest != candidate.verdict_digest:
        verdict = _known(lambda: registry.verdict(candidate.model_version))
    if verdict is not None and verdict.digest != candidate.verdict_digest:
        verdict = None  # never show another verdict than the one that an approval binds to
    lines = [
        f"# Release {release.release_id}: version {candidate.model_version} of {candidate.service}",
        "",
        *(f"**An answer was not taken: {reason}**\n" for reason in refused),
        _still_needed(release),
        "",
        *_difference(candidate, lineage, before),
        "",
        _links(registry, lineage, DRIFT_REPORT),
        "",
        *(_verdict_lines(verdict) if verdict else ["The verdict is unknown: MLflow is away."]),
    ]
    return "\n".join(lines)[:PAGE_LENGTH_MAX]


def _still_needed(release: Release) -> str:
    given, required = release.approvals, release.plan.approvals_required
    who = f" ({', '.join(one.who for one in given)})" if given else ""
    ends = ""
    if release.asked_at is not None:
        until = to_seconds(release.asked_at) + release.plan.approval_timeout_seconds
        ends = f" Unanswered it is rejected at {to_iso(until)[:19]} UTC."
    rule = ""
    if release.plan.needs_approvers and release.requested_by:
        rule = f" Asked for by {release.requested_by}, who may not approve it."
    return f"Approvals: {len(given)} of {required}{who}.{ends}{rule}"


def _difference(candidate: Candidate, lineage: Lineage | None, before: Lineage | None) -> list[str]:
    def row(name: str, tell: Callable[[Lineage], str]) -> str:
        shown = [tell(one) if one else "unknown" for one in (before, lineage)]
        if candidate.stable_version is None:
            shown[0] = "none"
        return f"| {name} | {shown[0]} | {shown[1]} |"

    return [
        "| | stable | candidate |",
        "|---|---|---|",
        f"| version | {candidate.stable_version or 'none'} | {candidate.model_version} |",
        row("new rows", lambda one: f"{one.snapshot.rows}"),
        row("held-out rows", lambda one: f"{one.snapshot.held_out_rows}"),
        row("days", lambda one: _days(one.snapshot.days)),
        row("slices", lambda one: f"{len(one.slices)}"),
        row("bundle", lambda one: f"`{one.bundle_digest[:DIGEST_SHOWN]}`"),
        row("code", lambda one: f"`{one.code_revision[:DIGEST_SHOWN]}`"),
    ]


def _days(days: tuple[str, ...]) -> str:
    shown = ", ".join(days[-DAYS_SHOWN:])
    return shown if len(days) <= DAYS_SHOWN else f"{len(days)} days, the last: {shown}"


def _links(registry: Registry, lineage: Lineage | None, drift_report: str) -> str:
    connection = registry.connection
    if lineage is None or not connection.uri.startswith("http"):
        return "MLflow run and drift report: no server shows them."
    page = _known(lambda: Run(connection, lineage.run_id).url)
    drift = f"{connection.uri}/get-artifact?path=reports/{drift_report}&run_uuid={lineage.run_id}"
    run = f"[MLflow run]({page})" if page else "MLflow run: unknown"
    return f"[Drift report]({drift}) · {run}"


def _verdict_lines(verdict: Verdict) -> list[str]:
    lines = [as_markdown(verdict), "### Figures", "", "| gate | figure | value |", "|---|---|---|"]
    for item in verdict.evidence:
        lines += [
            f"| {item.gate} | {name.replace('_', ' ')} | {_figure(value)} |"
            for name, value in item.figures.items()
        ]
    return lines


def _figure(value: Figure) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return "" if value is None else str(value).replace("|", "/").replace("\n", " ")


def _stable_lineage(registry: Registry, candidate: Candidate) -> Lineage | None:
    version = candidate.stable_version
    return None if version is None else _known(lambda: registry.lineage(version))


def _known(ask: Callable[[], T]) -> T | None:
    """What `ask` returns; None where it cannot be told now: an approver may answer nevertheless."""
    try:
        return ask()
    except (SerinError, msgspec.MsgspecError, OSError) as error:
        LOG.warning("evidence is not to be had: %s", error)
        return None
