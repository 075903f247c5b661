"""Where traces and metrics are pushed and how much of them, from OpenTelemetry's own variables.

Names follow opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables.
"""

import os
from collections.abc import Mapping
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import ConfigurationError

Protocol = Literal["grpc", "http/protobuf"]
Sampler = Literal[
    "",
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
]
VARIABLES: Mapping[str, tuple[str, ...]] = {
    "traces_endpoint": ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",),
    "metrics_endpoint": ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",),
    "endpoint": ("OTEL_EXPORTER_OTLP_ENDPOINT",),
    "traces_protocol": ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    "metrics_protocol": ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"),
    "traces_exporter": ("OTEL_TRACES_EXPORTER",),
    "metrics_exporter": ("OTEL_METRICS_EXPORTER",),
    "metrics_interval_ms": ("OTEL_METRIC_EXPORT_INTERVAL",),
    "sampler": ("OTEL_TRACES_SAMPLER",),
    "sampler_argument": ("OTEL_TRACES_SAMPLER_ARG",),
    "disabled": ("OTEL_SDK_DISABLED",),
    "traces_per_second": ("SERIN_TRACES_PER_SECOND",),
    "mlflow_url": ("SERIN_MLFLOW_URL", "MLFLOW_TRACKING_URI"),
}
"""Field: the variables that set it, the first that is there."""


class TelemetrySettings(BaseModel):
    """What is pushed where. What says how (headers, certificates, time-outs) the exporters read.

    Without an endpoint traces go to the MLflow server of `mlflow_url`, metrics nowhere: Prometheus
    reads them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    endpoint: str = Field(default="", description="collector of traces and metrics")
    traces_endpoint: str = Field(default="", description="collector of traces, its full address")
    metrics_endpoint: str = Field(default="", description="collector of metrics, full address")
    traces_protocol: Protocol = "http/protobuf"
    metrics_protocol: Protocol = "http/protobuf"
    traces_exporter: Literal["otlp", "none"] = "otlp"
    metrics_exporter: Literal["otlp", "none"] = "otlp"
    metrics_interval_ms: int = Field(default=60_000, ge=100, description="time between pushes")
    sampler: Sampler = Field(
        default="", description="empty: requests up to `traces_per_second`, everything else whole"
    )
    sampler_argument: float = Field(default=1.0, ge=0, le=1, description="ratio of *traceidratio")
    disabled: bool = False
    traces_per_second: float = Field(
        default=1.0, ge=0, description="requests traced per second and process without a sampler"
    )
    mlflow_url: str = ""

    @classmethod
    def read(cls, environ: Mapping[str, str] | None = None, mlflow_url: str = "") -> Self:
        """Read the environment (os.environ by default); `mlflow_url` is the running stack's.

        Raises ConfigurationError naming the variable that is wrong.
        """
        environ = os.environ if environ is None else environ
        values: dict[str, str] = {"mlflow_url": mlflow_url} if mlflow_url else {}
        for name, variables in VARIABLES.items():
            if given := next((environ[item] for item in variables if environ.get(item)), ""):
                values.setdefault(name, given)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            variables = VARIABLES[str(first["loc"][0])]
            raise ConfigurationError(f"{' or '.join(variables)}: {first['msg']}") from error

    @property
    def to_mlflow(self) -> bool:
        """Whether traces go to MLflow, as they do where no collector is named."""
        http = self.mlflow_url.startswith(("http://", "https://"))
        return http and not (self.endpoint or self.traces_endpoint)

    @property
    def traces(self) -> bool:
        """Whether traces go anywhere."""
        somewhere = bool(self.endpoint or self.traces_endpoint or self.to_mlflow)
        return somewhere and not self.disabled and self.traces_exporter != "none"

    @property
    def metrics(self) -> bool:
        """Whether metrics are pushed."""
        somewhere = bool(self.endpoint or self.metrics_endpoint)
        return somewhere and not self.disabled and self.metrics_exporter != "none"
