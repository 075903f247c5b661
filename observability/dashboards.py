"""Grafana's dashboards as values: release, serving, data, safety. Knows metrics' names, no server.

Each panel is a title, its unit and its queries; the JSON around them is the same for all.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

SCHEMA_VERSION = 39
WIDTH, HEIGHT, COLUMNS = 12, 8, 2
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
GATEWAY, PREDICTOR = "serin_gateway_", "serin_predictor_"


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart: `queries` are (PromQL, legend); `unit` is Grafana's name of it."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]


def _rate(metric: str, by: str, span: str = "5m") -> str:
    return f"sum by ({by}) (rate({metric}[{span}]))"


def _quantile(metric: str, by: str, q: float) -> str:
    return f"histogram_quantile({q:g}, sum by ({by}, le) (rate({metric}_bucket[5m])))"


BY_ARM = "{{arm}} {{model_version}}"
BY_VERSION = "{{model_version}}"
RELEASE = (
    Panel(
        "Share of the canary, declared and drawn",
        "percentunit",
        (
            (f"max by (service) ({GATEWAY}declared_share)", "declared"),
            (
                f'sum(rate({GATEWAY}draws_total{{arm="canary"}}[5m])) / '
                f"sum(rate({GATEWAY}draws_total[5m]))",
                "drawn",
            ),
            ("serin_release_share_ratio", "intended"),
        ),
    ),
    Panel(
        "p95 of the arms",
        "s",
        (("service_arm:serin_gateway_request_seconds:p95_5m", BY_ARM),),
    ),
    Panel(
        "Errors of the arms",
        "percentunit",
        (("service_arm:serin_gateway_errors:ratio5m", BY_ARM),),
    ),
    Panel(
        "Requests of the arms", "reqps", (("service_arm:serin_gateway_requests:rate5m", BY_ARM),)
    ),
    Panel(
        "Mean score of answers",
        "percentunit",
        (("service_version:serin_gateway_feedback:mean1h", BY_VERSION),),
    ),
    Panel("Releases", "short", (("serin_releases", "{{kind}} {{state}}"),)),
    Panel(
        "Time of releases",
        "s",
        (
            (
                "sum by (kind, state) (serin_release_seconds_sum) / "
                "sum by (kind, state) (serin_release_seconds_count)",
                "{{kind}} {{state}}",
            ),
        ),
    ),
    Panel(
        "Alerts",
        "short",
        (('sum by (alertname) (ALERTS{alertstate="firing"})', "{{alertname}}"),),
    ),
    Panel(
        "Health matrix: rows that act, rows without data",
        "short",
        (("serin_health_acting", "{{row}} acts"), ("serin_health_unknown", "{{row}} unknown")),
    ),
    Panel(
        "Age of the watch's last look",
        "s",
        (("time() - max(serin_health_look_timestamp_seconds)", "age"),),
    ),
)
SERVING = (
    Panel(
        "Time to the first token",
        "s",
        (
            (_quantile(f"{PREDICTOR}first_token_seconds", "model_version", 0.5), "p50 version"),
            ("version:serin_predictor_first_token_seconds:p95_5m", "p95 {{model_version}}"),
        ),
    ),
    Panel(
        "Time between tokens, p95",
        "s",
        ((_quantile(f"{PREDICTOR}inter_token_seconds", "model_version", 0.95), BY_VERSION),),
    ),
    Panel(
        "Generated tokens",
        "short",
        (("version:serin_predictor_generated_tokens:rate5m", "{{model_version}} per second"),),
    ),
    Panel(
        "Queues",
        "short",
        (
            (f"sum by (revision) ({PREDICTOR}queue_requests)", "predictor {{revision}}"),
            (f"sum({GATEWAY}waiting)", "gateway"),
            (f"sum by (revision) ({PREDICTOR}running_answers)", "in work {{revision}}"),
        ),
    ),
    Panel(
        "Wait for a slot, p95",
        "s",
        ((_quantile(f"{PREDICTOR}queue_seconds", "revision", 0.95), "{{revision}}"),),
    ),
    Panel(
        "Batch size, median",
        "short",
        ((_quantile(f"{PREDICTOR}batch_answers", "revision", 0.5), "{{revision}}"),),
    ),
    Panel(
        "KV cache in use",
        "percentunit",
        ((f"max by (revision) ({PREDICTOR}cache_usage_ratio)", "{{revision}}"),),
    ),
    Panel("Response cache", "reqps", ((_rate(f"{GATEWAY}cache_total", "outcome"), "{{outcome}}"),)),
    Panel(
        "CPU and GPU",
        "short",
        (
            (_rate(f"{PREDICTOR}cpu_seconds_total", "revision"), "cores {{revision}}"),
            (f"avg by (gpu) ({PREDICTOR}gpu_utilization_ratio)", "GPU {{gpu}}"),
            (_rate(f"{PREDICTOR}gpu_seconds_total", "revision"), "GPUs held {{revision}}"),
        ),
    ),
    Panel(
        "Memory in use",
        "percentunit",
        (
            (
                f"max by (revision) ({PREDICTOR}memory_bytes / {PREDICTOR}memory_limit_bytes)",
                "{{revision}}",
            ),
            (
                f"max by (gpu) ({PREDICTOR}gpu_memory_bytes / {PREDICTOR}gpu_memory_limit_bytes)",
                "GPU {{gpu}}",
            ),
        ),
    ),
    Panel(
        "Cost per hour",
        "short",
        ((f"3600 * {_rate(f'{PREDICTOR}cost_total', 'model_version')}", BY_VERSION),),
    ),
    Panel(
        "Retries, ejections, refusals",
        "reqps",
        (
            (_rate(f"{GATEWAY}retries_total", "reason"), "retried {{reason}}"),
            (_rate(f"{GATEWAY}ejections_total", "reason"), "ejected {{reason}}"),
            (_rate(f"{GATEWAY}refused_total", "reason"), "refused {{reason}}"),
        ),
    ),
)
DATA = (
    Panel(
        "Time since the last daily run",
        "s",
        (("time() - max(serin_daily_run_end_timestamp_seconds)", "age"),),
    ),
    Panel(
        "Quality on the evaluation set",
        "percentunit",
        (("serin_evaluation_score_ratio", "{{model}}"),),
    ),
    Panel(
        "Mean time of the stages",
        "s",
        (
            (
                "sum by (stage) (serin_stage_seconds_sum) / "
                "sum by (stage) (serin_stage_seconds_count)",
                "{{stage}}",
            ),
        ),
    ),
    Panel(
        "Daily runs by their end",
        "short",
        (("sum by (state) (serin_daily_run_seconds_count)", "{{state}}"),),
    ),
    Panel(
        "Disk in use",
        "percentunit",
        (("1 - serin_home_disk_free_bytes / serin_home_disk_size_bytes", "home"),),
    ),
    Panel("Parts that run", "short", (("serin_part_up", "{{part}}"),)),
)
SAFETY = (
    Panel(
        "Decisions on texts",
        "reqps",
        (
            (
                _rate(f"{PREDICTOR}checked_texts_total", "direction, action"),
                "{{direction}} {{action}}",
            ),
        ),
    ),
    Panel(
        "Filters that failed",
        "reqps",
        ((_rate(f"{PREDICTOR}filter_failures_total", "filter"), "{{filter}}"),),
    ),
    Panel("Strikes", "reqps", ((_rate(f"{GATEWAY}strikes_total", "kind"), "{{kind}}"),)),
    Panel(
        "Bans and modes",
        "short",
        (
            (f"max({GATEWAY}bans)", "banned addresses"),
            (f"max({GATEWAY}degraded)", "degraded"),
            (f"max({GATEWAY}input_filter)", "filter of long inputs"),
            (f"max({PREDICTOR}policy_refused)", "policy refused"),
        ),
    ),
    Panel("Long inputs", "percentunit", ((f"max({GATEWAY}input_long_share)", "share"),)),
    Panel(
        "Audit",
        "short",
        (
            (f"sum(rate({GATEWAY}audit_rows_total[5m]))", "gateway's rows per second"),
            (f"sum(rate({PREDICTOR}audit_rows_total[5m]))", "predictors' rows per second"),
            (f"sum({GATEWAY}audit_missed_total)", "gateway's missed"),
            (f"sum({PREDICTOR}audit_missed_total)", "predictors' missed"),
        ),
    ),
    Panel(
        "Audit coverage: scanned of sent text",
        "percentunit",
        (
            (
                f"sum(increase({PREDICTOR}scanned_bytes_total[1h])) / "
                f"sum(increase({PREDICTOR}output_bytes_total[1h]))",
                "coverage",
            ),
        ),
    ),
    Panel(
        "Text stopped or unchecked",
        "decbytes",
        (
            (f"sum({PREDICTOR}unscanned_bytes_total)", "unscanned, stopped"),
            (f"sum({PREDICTOR}failed_open_bytes_total)", "a filter had failed"),
        ),
    ),
)
DASHBOARDS: Mapping[str, tuple[Panel, ...]] = {
    "release": RELEASE,
    "serving": SERVING,
    "data": DATA,
    "safety": SAFETY,
}


def dashboards() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each dashboard's name and its JSON, as Grafana imports it."""
    for name, panels in DASHBOARDS.items():
        yield name, _dashboard(name, panels)


def _dashboard(name: str, panels: tuple[Panel, ...]) -> dict[str, Any]:
    variable = {"name": "datasource", "type": "datasource", "query": "prometheus"}
    return {
        "uid": f"serin-{name}",
        "title": f"Serin: {name}",
        "tags": ["serin"],
        "schemaVersion": SCHEMA_VERSION,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [variable]},
        "panels": [_panel(number, panel) for number, panel in enumerate(panels)],
    }


def _panel(number: int, panel: Panel) -> dict[str, Any]:
    row, column = divmod(number, COLUMNS)
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "datasource": DATASOURCE,
        "gridPos": {"x": column * WIDTH, "y": row * HEIGHT, "w": WIDTH, "h": HEIGHT},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + at), "expr": query, "legendFormat": legend}
            for at, (query, legend) in enumerate(panel.queries)
        ],
    }
