"""What runs and releases look like as traces: one per release, its day's stages included.

Read from the journal and the ledger when they are over, whoever ended them.
"""

import itertools

from core.contracts import ReleaseState
from core.settings import Settings
from core.telemetry import TelemetrySettings
from observability.long_traces import Part, tell
from rollout.events import Event
from rollout.ledger import Ledger
from rollout.release import Release
from rollout.times import to_seconds
from tasks.stages import DayRun, Stage

GOOD_ENDS = (ReleaseState.PROMOTED, ReleaseState.SUPERSEDED)


def trace_release(ledger: Ledger, release: Release, run: DayRun) -> None:
    """Tell a finished release: each state it went through, and the tasks of its flow."""
    if release.finished_at is None:
        return
    events = ledger.events(release_id=release.release_id)
    ended = to_seconds(release.finished_at)
    good = release.state in GOOD_ENDS or release.kind == "rollback"
    root = Part(
        f"release {release.candidate.model_version}",
        to_seconds(release.created_at),
        ended,
        {
            "serin.release_id": release.release_id,
            "serin.model_version": release.candidate.model_version,
            "serin.release.kind": release.kind,
            "serin.release.state": str(release.state),
            "serin.release.reason": release.reason,
        },
        error="" if good else release.reason or str(release.state),
    )
    _tell(release.release_id, root, [*_states(events, ended), *map(_stage, _timed(run))])


def trace_day(run: DayRun, final_state: str, release_id: str | None) -> None:
    """Tell a day's stages: in its release's trace, or in one of their own where there is none."""
    stages = _timed(run)
    if not stages:
        return
    began = min(stage.ended_at_seconds - stage.seconds for stage in stages)
    ended = max(stage.ended_at_seconds for stage in stages)
    said = {"serin.day": run.label, "serin.final_state": final_state}
    day = Part(f"retrain {run.label}", began, ended, said, key=run.folder)
    parts = [_stage(stage) for stage in stages]
    if release_id is None:
        _tell(run.folder, day, parts)
    else:
        _tell(release_id, None, [day, *parts])


def _tell(key: str, root: Part | None, parts: list[Part]) -> None:
    settings = Settings.read()
    pushed = TelemetrySettings.read(mlflow_url=settings.mlflow_url)
    tell(pushed, settings.service, key, root, parts)


def _states(events: list[Event], ended: float) -> list[Part]:
    """One part per state in a row, with the ledger's events as notes in it."""
    rows = [[*found] for _, found in itertools.groupby(events, key=lambda event: event.state)]
    begins = [to_seconds(found[0].time) for found in rows]
    return [
        Part(
            found[0].state.lower().replace("_", " "),
            began,
            until,
            {"serin.holder": found[-1].holder, "serin.epoch": found[-1].epoch},
            tuple((to_seconds(event.time), event.kind) for event in found),
        )
        for found, began, until in zip(rows, begins, [*begins[1:], ended], strict=True)
    ]


def _stage(stage: Stage) -> Part:
    figures = {f"serin.{name}": str(value) for name, value in stage.figures.items()}
    began = stage.ended_at_seconds - stage.seconds
    return Part(stage.name, began, stage.ended_at_seconds, figures)


def _timed(run: DayRun) -> list[Stage]:
    """The run's stages that say when they ended: an older version's do not."""
    return [stage for stage in run.stages() if stage.ended_at_seconds]
