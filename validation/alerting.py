"""All rules for Prometheus, from the configurations that judge and act: recordings and alerts.

The canary's rule stands in prometheus_rule.py; this file adds the health matrix and the figures
that the dashboards share.
"""

from typing import Any

from validation.alert_expressions import EXPRESSIONS
from validation.classic import ClassicConfig
from validation.health_config import HealthConfig, Row
from validation.prometheus_rule import duration, rule_groups

HEALTH_GROUP = "serin-health"
RECORD_GROUP = "serin-figures"
EVALUATE_SECONDS = 60.0
WATCH_SECONDS_MAX = 180.0
"""Since the last look of the watch, which looks each minute."""
WATCH_FOR_SECONDS = 300.0
URGENT = frozenset(("roll_back", "ban", "scale_out", "degrade"))
RECORDS: tuple[tuple[str, str], ...] = (
    (
        "service_arm:serin_gateway_requests:rate5m",
        "sum by (service, arm, model_version) (rate(serin_gateway_requests_total[5m]))",
    ),
    (
        "service_arm:serin_gateway_errors:ratio5m",
        "sum by (service, arm, model_version) "
        '(rate(serin_gateway_requests_total{outcome="error"}[5m])) / '
        "sum by (service, arm, model_version) (rate(serin_gateway_requests_total[5m]))",
    ),
    (
        "service_arm:serin_gateway_request_seconds:p95_5m",
        "histogram_quantile(0.95, sum by (service, arm, model_version, le) "
        "(rate(serin_gateway_request_seconds_bucket[5m])))",
    ),
    (
        "version:serin_predictor_first_token_seconds:p95_5m",
        "histogram_quantile(0.95, sum by (model_version, le) "
        "(rate(serin_predictor_first_token_seconds_bucket[5m])))",
    ),
    (
        "version:serin_predictor_generated_tokens:rate5m",
        "sum by (model_version) (rate(serin_predictor_generated_tokens_total[5m]))",
    ),
    (
        "service_version:serin_gateway_feedback:mean1h",
        "sum by (service, model_version) (increase(serin_gateway_feedback_score_sum_total[1h])) / "
        "sum by (service, model_version) (increase(serin_gateway_feedback_scores_total[1h]))",
    ),
)
"""Figures that several panels show: their names, by Prometheus' convention, and their PromQL."""


def all_rules(canary: ClassicConfig, health: HealthConfig, service: str) -> dict[str, Any]:
    """Return every rule as a Prometheus rules file has it: {"groups": [...]}."""
    records = [{"record": name, "expr": expression} for name, expression in RECORDS]
    groups = [
        {"name": RECORD_GROUP, "interval": duration(EVALUATE_SECONDS), "rules": records},
        *rule_groups(canary, service)["groups"],
        {
            "name": HEALTH_GROUP,
            "interval": duration(EVALUATE_SECONDS),
            "rules": [
                _alert(name, row, health, service)
                for name, row in health.rows.items()
                if row.mode != "off"
            ]
            + [_watch_alert(service)],
        },
    ]
    return {"groups": groups}


def _alert(name: str, row: Row, health: HealthConfig, service: str) -> dict[str, Any]:
    """One row: breached while all of its conditions are, silent again once it was clear so long."""
    span = duration(row.window_seconds)
    expressions = [
        f"({EXPRESSIONS[condition.metric](service, span, health.requests_min)}"
        f" > {condition.above:g})"
        for condition in row.conditions
    ]
    said = " and ".join(f"{item.metric} > {item.above:g}" for item in row.conditions)
    return {
        "alert": "Serin" + "".join(word.capitalize() for word in name.split("_")),
        "expr": " and ".join(expressions),
        "for": duration(row.for_seconds),
        "keep_firing_for": duration(row.clear_seconds),
        "labels": {
            "severity": "critical" if row.recovery in URGENT else "warning",
            "service": service,
            "row": name,
        },
        "annotations": {
            "summary": f"{service}: {said}",
            "description": f"the health matrix answers with: {row.recovery}; see `serin health`",
        },
    }


def _watch_alert(service: str) -> dict[str, Any]:
    """What heals must itself be watched: no look for too long, or none at all."""
    looked = "serin_health_look_timestamp_seconds"
    return {
        "alert": "SerinWatch",
        "expr": f"(time() - max({looked}) > {WATCH_SECONDS_MAX:g}) or absent({looked})",
        "for": duration(WATCH_FOR_SECONDS),
        "labels": {"severity": "critical", "service": service, "row": "watch"},
        "annotations": {
            "summary": f"{service}: the watch does not look",
            "description": "nothing is healed and no canary is judged from outside: see "
            "`serin status` for the worker, `serin health` for the last look",
        },
    }
