"""What a run leaves behind for people: its named final state, report, plot and artifacts."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from prefect.artifacts import create_link_artifact, create_markdown_artifact
from prefect.states import Completed

from core.contracts import ReleaseState, Verdict
from core.settings import Settings
from rollout.ledger import Ledger
from rollout.release import Release
from rollout.times import to_seconds
from tasks.plotting import draw_release
from tasks.stages import DayRun, open_run
from tasks.traces import trace_day
from tasks.tracking import publish, publish_version, report_url, run_url
from validation.gates import as_markdown

if TYPE_CHECKING:
    from tasks.preparing import Arrived

RESULT_NAME = "result.json"
REPORT_NAME = "report.md"
PLOT_NAME = "stages.png"
EVIDENCE_PLOT_NAME = "evidence.png"
STATE_NAMES = {
    ReleaseState.PROMOTED: "Promoted",
    ReleaseState.ROLLED_BACK: "Rolled back",
    ReleaseState.REJECTED: "Rejected",
    ReleaseState.SUPERSEDED: "Superseded",
    ReleaseState.AWAITING_APPROVAL: "Awaiting approval",
    ReleaseState.PROPOSED: "Registered, waiting",
}


@dataclass(frozen=True, slots=True)
class DayResult:
    """How a day ended, in figures; also kept as result.json in the run's folder."""

    day: str
    final_state: str
    reason: str
    rows_in: int
    quarantined: int
    quality_before: float | None
    quality_after: float | None
    verdict: str | None
    release_id: str | None
    folder: str
    seconds: dict[str, float] = field(default_factory=dict)


def open_release(release_id: str) -> DayRun:
    """Open the folder of a release's papers."""
    return open_run("release", release_id)


def ended_release(run: DayRun, release_id: str) -> Any:
    """End the release flow in a state named after the release's, with its story as an artifact."""
    ledger = Ledger(Settings.read().ledger_url)
    release = ledger.release(release_id)
    lines = [f"# Release {release_id}", "", *_release_lines(release), "", "| time | event |"]
    lines.append("|---|---|")
    for event in ledger.events(release_id=release_id):
        lines.append(f"| {event.time} | {event.kind} |")
    if release.final and draw_release(ledger, release, run.path(EVIDENCE_PLOT_NAME)):
        version = release.candidate.model_version
        if link := publish_version(version, run.path(EVIDENCE_PLOT_NAME)):
            lines += ["", f"![evidence over time]({link})"]
    create_markdown_artifact("\n".join(lines), key=_key(f"release-{release_id}"))
    name = STATE_NAMES.get(release.state, release.state.value.capitalize())
    return Completed(name=name, message=release.reason or name, data=name)


def ended(
    run: DayRun,
    final_state: str,
    arrived: "Arrived",
    verdict: Verdict | None = None,
    release_id: str | None = None,
) -> Any:
    """End the daily run in a named state; write its report, plot, result and links."""
    result = _result(run, final_state, arrived, verdict, release_id)
    run.path(RESULT_NAME).write_bytes(msgspec.json.encode(result))
    _plot(run, result)
    report = _report(result, verdict)
    run.path(REPORT_NAME).write_text(report)
    publish(run, (REPORT_NAME, PLOT_NAME))
    trace_day(run, final_state, release_id)
    plot = report_url(run, PLOT_NAME)
    picture = f"\n![seconds per stage]({plot})\n" if plot else ""
    create_markdown_artifact(report + picture, key=_key(f"day-{run.label}"))
    if link := run_url(run):
        create_link_artifact(link, link_text="MLflow run", key=_key(f"mlflow-{run.label}"))
    if link := report_url(run, "drift.html"):
        create_link_artifact(link, link_text="Drift report", key=_key(f"drift-{run.label}"))
    return Completed(name=final_state, message=result.reason or final_state, data=result)


def _result(
    run: DayRun,
    final_state: str,
    arrived: "Arrived",
    verdict: Verdict | None,
    release_id: str | None,
) -> DayResult:
    figures = {item.gate: item.figures for item in verdict.evidence} if verdict else {}
    quality = figures.get("quality", {})
    reasons = list(verdict.reasons) if verdict else []
    seconds = {stage.name: stage.seconds for stage in run.stages()}
    if release_id is not None:
        release = Ledger(Settings.read().ledger_url).release(release_id)
        reasons.append(release.reason)
        if release.started_at and release.finished_at:
            taken = to_seconds(release.finished_at) - to_seconds(release.started_at)
            seconds["release"] = round(taken, 1)
    counted = arrived.figures
    return DayResult(
        day=run.label,
        final_state=final_state,
        reason="; ".join(reason for reason in reasons if reason)[:2000],
        rows_in=int(counted["rows_in"] or 0),
        quarantined=int(counted["quarantined"] or 0),
        quality_before=_number(quality.get("stable_score")),
        quality_after=_number(quality.get("score")),
        verdict=verdict.outcome if verdict else None,
        release_id=release_id,
        folder=run.folder,
        seconds=seconds,
    )


def _report(result: DayResult, verdict: Verdict | None) -> str:
    lines = [
        f"# {result.day}: {result.final_state}",
        "",
        "| rows in | quarantined | quality before | quality after | release |",
        "|---|---|---|---|---|",
        f"| {result.rows_in} | {result.quarantined} | {_share(result.quality_before)} "
        f"| {_share(result.quality_after)} | {result.release_id or ''} |",
        "",
        "| stage | seconds |",
        "|---|---|",
        *(f"| {name} | {seconds:.1f} |" for name, seconds in result.seconds.items()),
        "",
    ]
    return "\n".join(lines) + ("\n" + as_markdown(verdict) if verdict else "")


def _plot(run: DayRun, result: DayResult) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3))
    axes.barh(list(result.seconds), list(result.seconds.values()))
    axes.invert_yaxis()
    axes.set(xlabel="seconds", title=f"{result.day}: {result.final_state}")
    figure.tight_layout()
    figure.savefig(run.path(PLOT_NAME), dpi=100)
    pyplot.close(figure)


def _release_lines(release: Release) -> list[str]:
    rows = {
        "state": release.state.value,
        "candidate": release.candidate.model_version,
        "reason": release.reason,
        "created": release.created_at,
        "finished": release.finished_at,
        "alarms": ", ".join(release.alarms),
    }
    return ["| | |", "|---|---|", *(f"| {name} | {value or ''} |" for name, value in rows.items())]


def _key(text: str) -> str:
    """Prefect artifact keys hold lowercase letters, numbers and dashes only."""
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f} %"
