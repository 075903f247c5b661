"""The MLflow run that goes with a day: opened at training, the same one until the report."""

from collections.abc import Iterable
from pathlib import Path

from registry.runs import Run, start_run
from tasks.stable import open_registry
from tasks.stages import DayRun

RUN_ID_NAME = "mlflow_run"
REPORTS_FOLDER = "reports"


def open_tracking(run: DayRun) -> Run:
    """Return the day's MLflow run, started now or continued."""
    connection = open_registry().connection
    path = run.path(RUN_ID_NAME)
    if path.exists():
        return Run(connection, path.read_text())
    started = start_run(connection, run.label, {"day": run.label, "folder": run.folder})
    path.write_text(started.run_id)
    return started


def has_tracking(run: DayRun) -> bool:
    """Whether the day came as far as training."""
    return run.path(RUN_ID_NAME).exists()


def publish(run: DayRun, names: Iterable[str]) -> None:
    """Copy finished papers of the run's folder to MLflow and end the run there."""
    if not has_tracking(run):
        return
    tracked = open_tracking(run)
    for name in names:
        if run.path(name).exists():
            tracked.log_file(run.path(name), REPORTS_FOLDER)
    tracked.finish()


def run_url(run: DayRun) -> str:
    """Return the address of the day's run in MLflow's UI; empty without a server or a run."""
    return open_tracking(run).url if has_tracking(run) else ""


def publish_version(version: str, path: Path) -> str:
    """Add a paper to the MLflow run that made a version; return its address, empty without one."""
    registry = open_registry()
    run_id = registry.lineage(version).run_id
    Run(registry.connection, run_id).log_file(path, REPORTS_FOLDER)
    return _report_url(registry.connection.uri, run_id, path.name)


def report_url(run: DayRun, name: str) -> str:
    """Return the address under which MLflow's server shows a published paper; empty without one."""
    if not has_tracking(run):
        return ""
    uri = open_registry().connection.uri
    return _report_url(uri, run.path(RUN_ID_NAME).read_text(), name)


def _report_url(uri: str, run_id: str, name: str) -> str:
    if not uri.startswith("http"):
        return ""
    return f"{uri}/get-artifact?path={REPORTS_FOLDER}/{name}&run_uuid={run_id}"
