"""The way to MLflow: one client for a server or a local database, silent and with named limits.

Knows no runs and no versions; turns MLflow's errors into ours.
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConflictError, InputError, NotFoundError, UnavailableError

EXPERIMENT = "serin"
QUIET: Mapping[str, str] = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment for MLflow, here and in a server's process; what the user set already is kept."""
MISSING = {"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND"}
WRONG = {"INVALID_PARAMETER_VALUE", "BAD_REQUEST", "INVALID_STATE"}


@dataclass(frozen=True, slots=True)
class Connection:
    """Where MLflow is. `uri`: http(s)://... of a server, or sqlite:///... of a local database.

    `artifacts` is the folder for files when there is no server (a server keeps its own place).
    The first use of a new SQLite file takes some seconds: MLflow creates its tables.
    """

    uri: str
    artifacts: Path | None = None
    experiment: str = EXPERIMENT

    @classmethod
    def local(cls, home: Path, experiment: str = EXPERIMENT) -> "Connection":
        """MLflow without a server: database and files below the state folder."""
        home.mkdir(parents=True, exist_ok=True)
        database = home.absolute() / "mlflow.db"
        return cls(f"sqlite:///{database}", home.absolute() / "mlflow-artifacts", experiment)

    def client(self) -> Any:
        """Return an MlflowClient. MLflow reads its address process-wide in places: it is set too.

        Raises UnavailableError when the database cannot be opened.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        logging.getLogger("mlflow").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        with self.errors():
            import mlflow

            mlflow.set_tracking_uri(self.uri)
            mlflow.set_registry_uri(self.uri)
            return mlflow.MlflowClient(self.uri, registry_uri=self.uri)

    def experiment_id(self) -> str:
        """Find the experiment by name, or create it; safe when two processes do so at once."""
        client = self.client()
        with self.errors():
            found = client.get_experiment_by_name(self.experiment)
            if found is not None:
                return str(found.experiment_id)
            place = None if self.artifacts is None else self.artifacts.absolute().as_uri()
            try:
                with self.errors():
                    return str(client.create_experiment(self.experiment, artifact_location=place))
            except ConflictError:
                return str(client.get_experiment_by_name(self.experiment).experiment_id)

    def page(self, path: str) -> str:
        """The address of a page of MLflow's UI; empty without a server."""
        return f"{self.uri.rstrip('/')}/#/{path}" if self.uri.startswith("http") else ""

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn MLflow's errors into NotFound, Conflict, Input or UnavailableError."""
        from mlflow.exceptions import MlflowException

        try:
            yield
        except MlflowException as error:
            code, text = str(error.error_code), f"MLflow at {self.uri}: {error.message}"
            if code in MISSING:
                raise NotFoundError(text) from error
            if code == "RESOURCE_ALREADY_EXISTS":
                raise ConflictError(text) from error
            if code in WRONG:
                raise InputError(text) from error
            raise UnavailableError(f"{text}; is it running? `serin status` shows it") from error
