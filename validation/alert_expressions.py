"""The health matrix's figures as Prometheus computes them from what Serin's processes expose.

Knows names of metrics. What only the watch can measure is taken from its last look.
"""

from collections.abc import Callable, Mapping

from validation.health_config import Metric
from validation.health_figures import MALFORMED

GATEWAY = "serin_gateway_"
ILLEGAL = "|".join((*MALFORMED, "filtered"))
"""Reasons of refusals that a request's form is to blame for, or what its sender did before."""
Expression = Callable[[str, str, int], str]
"""(service, span as Prometheus writes it, least requests) -> PromQL."""


def _enough(service: str, span: str, least: int) -> str:
    counted = f'{GATEWAY}request_seconds_count{{service="{service}"}}[{span}]'
    return f"(sum(increase({counted})) >= {least})"


def _memory(service: str, span: str, least: int) -> str:
    gpu = "max(serin_predictor_gpu_memory_bytes / serin_predictor_gpu_memory_limit_bytes)"
    host = "max(serin_predictor_memory_bytes / serin_predictor_memory_limit_bytes)"
    return f"({gpu} or {host})"


def _latency(service: str, span: str, least: int) -> str:
    buckets = f'{GATEWAY}request_seconds_bucket{{service="{service}"}}[{span}]'
    p95 = f"histogram_quantile(0.95, sum by (le) (rate({buckets})))"
    return f"({p95} and {_enough(service, span, least)})"


def _rate(service: str, span: str, least: int) -> str:
    return f'sum(rate({GATEWAY}request_seconds_count{{service="{service}"}}[{span}]))'


def _illegal(service: str, span: str, least: int) -> str:
    def rate(series: str) -> str:
        return f"(sum(rate({GATEWAY}{series}[{span}])) or vector(0))"

    strange = rate('strikes_total{kind="failed_authentication"}')
    refused = rate(f'refused_total{{reason=~"{ILLEGAL}"}}')
    blocked = rate('strikes_total{kind="blocked"}')
    requests = rate(f'requests_total{{service="{service}"}}')
    bad = f"({blocked} + {strange} + {refused})"
    return f"({bad} / ({requests} + {strange} + {refused}) and {_enough(service, span, least)})"


def _quality(service: str, span: str, least: int) -> str:
    selected = f'{{service="{service}"}}'
    total = f"{GATEWAY}feedback_score_sum_total{selected}"
    count = f"{GATEWAY}feedback_scores_total{selected}"

    def mean(offset: str) -> str:
        return f"(sum(increase({total}[{span}]{offset})) / sum(increase({count}[{span}]{offset})))"

    return f"(1 - {mean('')} / {mean(f' offset {span}')})"


def _routing(service: str, span: str, least: int) -> str:
    drawn = f'{GATEWAY}draws_total{{service="{service}"'
    share = f'sum(increase({drawn},arm="canary"}}[{span}])) / sum(increase({drawn}}}[{span}]))'
    declared = f'max({GATEWAY}declared_share{{service="{service}"}})'
    return f"(abs({share} - {declared}) and {_enough(service, span, least)})"


def _looked(metric: Metric) -> Expression:
    return lambda service, span, least: f'max(serin_health_figure{{metric="{metric}"}})'


EXPRESSIONS: Mapping[Metric, Expression] = {
    "memory_share": _memory,
    "request_rate": _rate,
    "latency_p95_seconds": _latency,
    "long_input_share": lambda service, span, least: f"max({GATEWAY}input_long_share)",
    "illegal_request_share": _illegal,
    "quality_drop_share": _quality,
    "client_strikes_per_minute": lambda service, span, least: (
        f"sum(increase({GATEWAY}strikes_total[{span}]))"
    ),
    "predictor_exits": lambda service, span, least: (
        f'sum(increase(serin_control_predictor_exits_total{{service="{service}"}}[{span}]))'
    ),
    "unscanned_bytes": lambda service, span, least: (
        f"(sum(increase(serin_predictor_unscanned_bytes_total[{span}])) + "
        f"sum(increase(serin_predictor_failed_open_bytes_total[{span}])))"
    ),
    "routing_share_error": _routing,
    "daily_run_age_seconds": lambda service, span, least: (
        "(time() - max(serin_daily_run_end_timestamp_seconds))"
    ),
    "disk_used_share": lambda service, span, least: (
        "(1 - min(serin_home_disk_free_bytes / serin_home_disk_size_bytes))"
    ),
    "prompt_drift": _looked("prompt_drift"),
    "ledger_problems": _looked("ledger_problems"),
}
"""Strikes are those of all clients together here: a label per client would have no bound."""
