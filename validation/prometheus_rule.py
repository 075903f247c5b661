"""The classic canary rule as a PrometheusRule, from the configuration that the judge uses.

Knows the names of the gateway's metrics; asks no server. Format: monitoring.coreos.com/v1.
"""

from typing import Any

from validation.classic import QUANTILE, ClassicConfig

HISTOGRAM = "serin_gateway_request_seconds"
GROUP = "serin-canary"
ALERT = "SerinCanarySlow"


def prometheus_rule(config: ClassicConfig, service: str, namespace: str) -> dict[str, Any]:
    """Return the PrometheusRule that fires exactly when the classic latency rule does."""
    return as_custom_resource(rule_groups(config, service), service, namespace)


def as_custom_resource(groups: dict[str, Any], service: str, namespace: str) -> dict[str, Any]:
    """Return a rules file's content as a PrometheusRule of a cluster."""
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": f"{service}-canary", "namespace": namespace},
        "spec": groups,
    }


def rule_groups(config: ClassicConfig, service: str) -> dict[str, Any]:
    """Return the rule as a Prometheus rules file has it: {"groups": [...]}."""
    rule = {
        "alert": ALERT,
        "expr": slow_expression(config, service),
        "for": duration(config.for_seconds),
        "labels": {"severity": "critical", "service": service},
        "annotations": {
            "summary": f"the canary of {service} is slower than allowed",
            "description": (
                f"p95(canary) / p95(stable) is {{{{ $value | humanize }}}}, over "
                f"{config.p95_ratio_max:g} for {duration(config.for_seconds)}; "
                "take it back with `serin rollback`"
            ),
        },
    }
    interval = duration(config.evaluate_seconds)
    return {"groups": [{"name": GROUP, "interval": interval, "rules": [rule]}]}


def slow_expression(config: ClassicConfig, service: str) -> str:
    """Return the PromQL of: p95(canary) / p95(stable) > ratio, with enough requests in each arm."""
    span, least = duration(config.window_seconds), config.latency_requests_min

    def selected(series: str, arm: str) -> str:
        return f'{HISTOGRAM}_{series}{{service="{service}",arm="{arm}"}}[{span}]'

    def p95(arm: str) -> str:
        rate = f"sum by (le) (rate({selected('bucket', arm)}))"
        return f"histogram_quantile({QUANTILE:g}, {rate})"

    enough = " and ".join(
        f"(sum(increase({selected('count', arm)})) >= {least})" for arm in ("canary", "stable")
    )
    return f"({p95('canary')} / {p95('stable')} > {config.p95_ratio_max:g}) and {enough}"


def duration(seconds: float) -> str:
    """Return seconds as Prometheus writes a duration: whole milliseconds."""
    milliseconds = round(seconds * 1000)
    return f"{milliseconds // 1000}s" if milliseconds % 1000 == 0 else f"{milliseconds}ms"
