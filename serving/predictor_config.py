"""The predictor's limits and engine settings: one frozen value from a file and the environment."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from core.errors import ConfigurationError
from core.manifests import BundleManifest
from observability.audit import AuditConfig
from serving.engines.vllm_config import VllmConfig

PREFIX = "SERIN_PREDICTOR_"
CONCURRENCY = 64
NESTED = ("audit", "vllm")


class PredictorConfig(BaseModel):
    """Limits of one predictor process and how its engine uses the machine."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_tokens_default: int = Field(
        default=512, ge=1, description="tokens of an answer when the request names no max_tokens"
    )
    max_tokens_ceiling: int = Field(
        default=2048, ge=1, description="largest max_tokens that a request may ask for"
    )
    choices_max: int = Field(
        default=8, ge=1, description="most answers (n times prompts) that one request may ask for"
    )
    concurrency: int | None = Field(
        default=None, ge=1, description="answers in work at once; empty: as the bundle says"
    )
    queue_requests_max: int = Field(
        default=256, ge=0, description="requests that may wait; one more is refused with 429"
    )
    deadline_seconds: float = Field(
        default=60.0, gt=0, description="longest time for a request, waiting included (504 after)"
    )
    drain_seconds: float = Field(
        default=30.0, ge=0, description="after SIGTERM, longest wait for running requests"
    )
    body_bytes_max: int = Field(
        default=1 << 20, ge=1024, description="largest request body (413 above)"
    )
    threads: int = Field(
        default=0, ge=0, description="CPU threads of the engine; 0 leaves the choice to the engine"
    )
    cache_gigabytes: float | None = Field(
        default=None,
        gt=0,
        description="KV cache in GB at most, on a CPU; empty: as the bundle says, vllm 1",
    )
    batched_tokens_max: int | None = Field(
        default=None,
        ge=16,
        description="tokens per step; empty: openvino as the bundle says, else by model size",
    )
    warm_up_seconds: float = Field(
        default=10.0,
        ge=0,
        description="longest time before readiness to compile a small model's kernels (openvino)",
    )
    metrics_open: bool = Field(
        default=False, description="/metrics needs no token; for a Prometheus that sends none"
    )
    policy_folder: str = Field(
        default="",
        description="folder whose policy.yaml is obeyed and watched; empty: policy below the home",
    )
    audit: AuditConfig = Field(
        default=AuditConfig(), description="the record of requests; as a variable, one JSON object"
    )
    vllm: VllmConfig = Field(
        default=VllmConfig(), description="the vllm engine; as a variable, one JSON object"
    )

    def concurrency_for(self, manifest: BundleManifest) -> int:
        """Return how many answers are worked on at once: this, else the bundle's, else 64."""
        return self.concurrency or int(manifest.settings.get("sequences_max") or CONCURRENCY)

    @model_validator(mode="after")
    def _default_below_ceiling(self) -> "PredictorConfig":
        if self.max_tokens_default > self.max_tokens_ceiling:
            raise ValueError("max_tokens_default is above max_tokens_ceiling")
        return self


def read_config(
    file: Path | None, environ: Mapping[str, str], threads: int | None = None
) -> PredictorConfig:
    """Return the configuration: option `threads`, then SERIN_PREDICTOR_<FIELD>, then the file.

    Raises ConfigurationError naming the field that is wrong.
    """
    values = _file_values(file) if file else {}
    for name in PredictorConfig.model_fields:
        if text := environ.get(PREFIX + name.upper()):
            values[name] = _nested_values(text) if name in NESTED else text
    if threads is not None:
        values["threads"] = threads
    try:
        return PredictorConfig(**values)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"])) or "values"
        raise ConfigurationError(
            f"predictor configuration, {name}: {first['msg']}; see {PREFIX}* and --config"
        ) from error


def _nested_values(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # refused by its name, as any other wrong value


def _file_values(file: Path) -> dict[str, Any]:
    try:
        text = file.read_text(encoding="utf-8")
        values = json.loads(text) if file.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {file} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ConfigurationError(f"--config {file} must hold one mapping of names to values")
    return values
