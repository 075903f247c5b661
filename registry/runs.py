"""MLflow runs: what a training measured while it ran, from which data, with which files.

Knows nothing of model versions.
"""

import json
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from pydantic import BaseModel

from core.contracts import SnapshotRef, Verdict
from core.errors import UnavailableError
from registry.connection import Connection

FLUSH_SECONDS = 1.0
AWAY_SECONDS = 20.0
PENDING_MAX = 500
KEPT_MAX = 100_000
BATCH_MAX = 100
TEXT_LENGTH_MAX = 5000
DIGEST_LENGTH_MAX = 36


class Run:
    """One MLflow run, open or not. As a context manager it ends FINISHED, or FAILED by an error.

    Another process may continue it by `Run(connection, run_id)`.
    """

    def __init__(self, connection: Connection, run_id: str) -> None:
        self.connection = connection
        self.run_id = run_id
        self._client = connection.client()
        self._pending: list[Any] = []
        self._flush_at = time.monotonic() + FLUSH_SECONDS
        self._wait_until = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.finish("FINISHED" if error is None else "FAILED")

    @property
    def url(self) -> str:
        """The run's page in MLflow's UI; empty without a server."""
        with self.connection.errors():
            experiment = self._client.get_run(self.run_id).info.experiment_id
        return self.connection.page(f"experiments/{experiment}/runs/{self.run_id}")

    def log_metrics(self, step: int, metrics: Mapping[str, float]) -> None:
        """Log values of one step. They are sent once a second, the last ones at the end.

        While MLflow is away they are kept; raises UnavailableError when KEPT_MAX values wait.
        """
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._pending += [
            Metric(name, float(value), now_ms, step) for name, value in metrics.items()
        ]
        due = len(self._pending) >= PENDING_MAX or time.monotonic() >= self._flush_at
        if due and time.monotonic() >= self._wait_until:
            self._flush_or_wait()

    def _flush_or_wait(self) -> None:
        """A training does not end because MLflow is away for a while: keep, and try later."""
        try:
            self.flush()
        except UnavailableError:
            if len(self._pending) > KEPT_MAX:
                raise
            self._wait_until = time.monotonic() + AWAY_SECONDS

    def flush(self) -> None:
        """Send the metrics that wait; they are kept when MLflow does not answer."""
        while self._pending:
            with self.connection.errors():
                self._client.log_batch(self.run_id, metrics=self._pending[:PENDING_MAX])
            del self._pending[:PENDING_MAX]
        self._flush_at = time.monotonic() + FLUSH_SECONDS

    def log_config(self, name: str, config: BaseModel) -> None:
        """Log a configuration as parameters `name.field`, and whole as NAME.json."""
        from mlflow.entities import Param

        values = config.model_dump(mode="json")
        flat = [Param(key, text[:TEXT_LENGTH_MAX]) for key, text in _flat(name, values)]
        with self.connection.errors():
            for start in range(0, len(flat), BATCH_MAX):
                self._client.log_batch(self.run_id, params=flat[start : start + BATCH_MAX])
        self.log_text(f"config/{name}.json", json.dumps(values, indent=2))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Keep a file, such as an HTML report."""
        with self.connection.errors():
            self._client.log_artifact(self.run_id, str(path), folder or None)

    def log_text(self, name: str, text: str) -> None:
        """Keep a text as the file `name`."""
        with self.connection.errors():
            self._client.log_text(self.run_id, text, name)

    def log_snapshot(
        self, snapshot: SnapshotRef, records_uri: str, context: str = "training"
    ) -> None:
        """Log a snapshot as the run's dataset input: the Delta table at its last version.

        MLflow cuts digests to 36 characters; the full one is the tag `snapshot_id`.
        """
        from mlflow.data.delta_dataset_source import DeltaDatasetSource
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = DeltaDatasetSource(path=records_uri, delta_table_version=snapshot.version_last)
        profile = {
            "rows": snapshot.rows,
            "held_out_rows": snapshot.held_out_rows,
            "version_first": snapshot.version_first,
            "version_last": snapshot.version_last,
            "days": list(snapshot.days),
        }
        dataset = Dataset(
            name="records",
            digest=snapshot.snapshot_id[:DIGEST_LENGTH_MAX],
            source_type="delta_table",
            source=source.to_json(),
            profile=json.dumps(profile),
        )
        tag = InputTag("mlflow.data.context", context)
        with self.connection.errors():
            self._client.log_inputs(self.run_id, [DatasetInput(dataset, [tag])])
        self.tag({"snapshot_id": snapshot.snapshot_id})

    def log_verdict(self, verdict: Verdict, page: str = "") -> None:
        """Log a verdict's figures as metrics `gate.figure`, outcomes as tags, reports as files.

        `page` is the verdict as markdown, kept as verdict.md.
        """
        for item in verdict.evidence:
            figures = {
                f"{item.gate}.{name}": float(value)
                for name, value in item.figures.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
            self.log_metrics(0, figures)
            if item.report is not None and Path(item.report).is_file():
                self.log_file(Path(item.report), "reports")
        self.flush()
        outcomes = {f"gate.{item.gate}": item.outcome for item in verdict.evidence}
        self.tag({"verdict": verdict.outcome, "verdict_digest": verdict.digest, **outcomes})
        if page:
            self.log_text("verdict.md", page)

    def tag(self, tags: Mapping[str, str]) -> None:
        """Set tags."""
        from mlflow.entities import RunTag

        values = [RunTag(name, text[:TEXT_LENGTH_MAX]) for name, text in tags.items()]
        with self.connection.errors():
            self._client.log_batch(self.run_id, tags=values)

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"] = "FINISHED") -> None:
        """Send what waits and end the run."""
        self.flush()
        with self.connection.errors():
            self._client.set_terminated(self.run_id, status)


def start_run(connection: Connection, name: str, tags: Mapping[str, str] | None = None) -> Run:
    """Start a run in the connection's experiment. Raises UnavailableError without MLflow."""
    experiment = connection.experiment_id()
    with connection.errors():
        created = connection.client().create_run(experiment, run_name=name, tags=dict(tags or {}))
    return Run(connection, str(created.info.run_id))


def _flat(prefix: str, value: Any) -> list[tuple[str, str]]:
    if isinstance(value, dict) and value:
        return [pair for key, inner in value.items() for pair in _flat(f"{prefix}.{key}", inner)]
    return [(prefix, value if isinstance(value, str) else json.dumps(value))]
