"""Every limit and time of the one-machine control plane, in one frozen value."""

import sys
from pathlib import Path
from typing import Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError


class LocalConfig(BaseModel):
    """How predictors are started, watched and stopped, and how long each thing may take."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    predictor_command: tuple[str, ...] = Field(
        default=(sys.executable, "-m", "serving.predictor"),
        min_length=1,
        description="program and first arguments of a predictor; the bundle's follow",
    )
    bundle_roots: tuple[Path, ...] = Field(
        default=(), description="folders that a storageUri may lie below; none: <home>/bundles"
    )
    threads: int | None = Field(default=None, ge=1, description="threads of each predictor")
    replicas_max: int = Field(default=8, ge=1, description="most processes of one revision")
    tick_seconds: float = Field(
        default=0.2, gt=0, le=5, description="longest pause between two looks at the processes"
    )
    progress_deadline_seconds: float = Field(
        default=120, gt=0, description="a new revision that is not ready by then has failed"
    )
    early_exits_max: int = Field(
        default=3, ge=1, description="exits before readiness after which a revision has failed"
    )
    probe_seconds: float = Field(
        default=1, gt=0, description="pause between two health requests to a ready predictor"
    )
    probe_loading_seconds: float = Field(
        default=0.1, gt=0, description="pause between two health requests to a loading predictor"
    )
    probe_timeout_seconds: float = Field(
        default=1, gt=0, description="how long one health request may take"
    )
    silent_seconds_max: float = Field(
        default=5, gt=0, description="without a health answer for this long it is not ready"
    )
    hung_seconds_max: float = Field(
        default=30, gt=0, description="not ready for this long after having been: it is killed"
    )
    restart_first_seconds: float = Field(
        default=1, gt=0, description="pause before the first restart in a row; doubles each time"
    )
    restart_seconds_max: float = Field(
        default=30, gt=0, description="longest pause before a restart"
    )
    restart_reset_seconds: float = Field(
        default=10, ge=0, description="ready for this long: the next restart is at once"
    )
    drain_seconds: float = Field(
        default=1, ge=0, description="pause between the last route to a process and its SIGTERM"
    )
    stop_grace_seconds: float = Field(default=30, gt=0, description="time from SIGTERM to SIGKILL")
    gateway_wait_seconds: float = Field(
        default=2, ge=0, description="how long to wait for a gateway that does not answer"
    )
    gateway_poll_seconds: float = Field(
        default=0.02, gt=0, description="pause between two looks at what the gateway applied"
    )
    log_bytes_max: int = Field(
        default=5 << 20, ge=1024, description="a larger predictor log is put aside at the start"
    )

    @classmethod
    def read(cls, path: Path | None) -> Self:
        """Read a YAML or JSON file of these fields; None gives the defaults.

        Raises ConfigurationError naming the field that is wrong.
        """
        if path is None:
            return cls()
        try:
            return cls(**(yaml.safe_load(path.read_text()) or {}))
        except (OSError, yaml.YAMLError, TypeError) as error:
            raise ConfigurationError(f"{path} cannot be read as settings: {error}") from error
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigurationError(f"{path}: {where}: {first['msg']}") from error
