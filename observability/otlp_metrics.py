"""Pushes a process's metrics by OTLP: what it shows to Prometheus, under the same names and labels.

One exposition serves both, so that neither can say what the other does not.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from core.telemetry import TelemetrySettings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

log = logging.getLogger("serin.metrics")

CLOSE_SECONDS = 2.0


class MetricsPush:
    """Reads an exposition every so often and sends it; a push that fails is left out."""

    def __init__(
        self, settings: TelemetrySettings, resource: Mapping[str, str], read: Callable[[], str]
    ) -> None:
        """`read` gives Prometheus' text format; it is called in a thread of its own."""
        self._settings = settings
        self._resource = dict(resource)
        self._read = read
        self._started_ns = time.time_ns()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics push", daemon=True)
        self._away = False

    def start(self) -> None:
        """Push from now on, where the settings name a collector."""
        if self._settings.metrics:
            self._thread.start()

    def close(self) -> None:
        """Push once more and end, in bounded time."""
        self._ending.set()
        if self._thread.ident is not None:
            self._thread.join(CLOSE_SECONDS)

    def _run(self) -> None:
        for name in ("opentelemetry", "urllib3", "grpc"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            exporter = _exporter(self._settings)
        except Exception as error:  # noqa: BLE001 - wrong OTEL_* values must not end what serves
            log.error("metrics are not pushed: %s", error)
            return
        ended = False
        while not ended:
            ended = self._ending.wait(self._settings.metrics_interval_ms / 1000)
            self._push(exporter)
        exporter.shutdown()

    def _push(self, exporter: Any) -> None:
        from opentelemetry.sdk.metrics.export import MetricExportResult
        from prometheus_client.parser import text_string_to_metric_families

        try:
            families = list(text_string_to_metric_families(self._read()))
            data = metrics_data(families, self._resource, self._started_ns, time.time_ns())
            failed = exporter.export(data) is not MetricExportResult.SUCCESS
        except Exception as error:  # noqa: BLE001 - whatever a push raises, the next one may go well
            log.debug("metrics: %s", error)
            failed = True
        if failed != self._away:
            self._away = failed
            log.warning("the collector %s metrics", "takes no" if failed else "takes")


def _exporter(settings: TelemetrySettings) -> Any:
    if settings.metrics_protocol == "grpc":
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (
            OTLPMetricExporter as GrpcMetricExporter,
        )

        return GrpcMetricExporter()
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter

    return OTLPMetricExporter()


def metrics_data(
    families: "Iterable[Metric]", resource: Mapping[str, str], started_ns: int, now_ns: int
) -> Any:
    """Return families of Prometheus as OpenTelemetry's metrics: cumulative, names unchanged."""
    from opentelemetry.sdk.metrics.export import MetricsData, ResourceMetrics, ScopeMetrics
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

    metrics = [_metric(family, started_ns, now_ns) for family in families if family.samples]
    scope = ScopeMetrics(InstrumentationScope("serin"), metrics, "")
    return MetricsData([ResourceMetrics(Resource.create(dict(resource)), [scope], "")])


def _metric(family: "Metric", started_ns: int, now_ns: int) -> Any:
    from opentelemetry.sdk.metrics.export import (
        AggregationTemporality,
        Gauge,
        Histogram,
        NumberDataPoint,
        Sum,
    )
    from opentelemetry.sdk.metrics.export import Metric as Pushed

    cumulative = AggregationTemporality.CUMULATIVE
    data: Any
    if family.type == "histogram":
        data, name = Histogram(_histograms(family, started_ns, now_ns), cumulative), family.name
    else:
        points = [
            NumberDataPoint(sample.labels, started_ns, now_ns, float(sample.value))
            for sample in family.samples
        ]
        counter = family.type == "counter"
        data = Sum(points, cumulative, is_monotonic=True) if counter else Gauge(points)
        name = family.samples[0].name
    return Pushed(name, family.documentation, family.unit, data)


def _histograms(family: "Metric", started_ns: int, now_ns: int) -> list[Any]:
    from opentelemetry.sdk.metrics.export import HistogramDataPoint

    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for sample in family.samples:
        labels = {name: value for name, value in sample.labels.items() if name != "le"}
        point = found.setdefault(tuple(sorted(labels.items())), {"edges": [], "counts": []})
        if sample.name.endswith("_bucket"):
            point["edges"].append(float(sample.labels["le"]))
            point["counts"].append(int(sample.value))
        elif sample.name.endswith("_sum"):
            point["sum"] = sample.value
    points = []
    for labels_key, point in found.items():
        counts = point["counts"]
        alone = [now - before for now, before in zip(counts, [0, *counts[:-1]], strict=True)]
        points.append(
            HistogramDataPoint(
                dict(labels_key), started_ns, now_ns, counts[-1], point.get("sum", 0.0), alone,
                point["edges"][:-1], float("nan"), float("nan"),
            )
        )  # fmt: skip
    return points
