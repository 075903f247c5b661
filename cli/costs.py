"""What the running predictors have used and what their tokens cost, asked of each of them.

Counted since each process started; a predictor that does not answer is left out.
"""

import http.client
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cli.discovery import targets
from core.errors import SerinError
from core.keys import bearer, predictor_token
from core.settings import Settings
from observability.metrics import SCRAPE_BYTES_MAX

PREFIX = "serin_predictor_"
FIGURES = {
    "prompt_tokens_total": "prompt_tokens",
    "generated_tokens_total": "generated_tokens",
    "cpu_seconds_total": "cpu_seconds",
    "gpu_seconds_total": "gpu_seconds",
    "cost_total": "cost",
}


@dataclass(frozen=True, slots=True)
class UsageView:
    """All processes of one revision. `cost` is None where no price is configured, GPU seconds
    where there is no GPU."""

    revision: str
    model_version: str
    prompt_tokens: float = 0.0
    generated_tokens: float = 0.0
    cpu_seconds: float = 0.0
    gpu_seconds: float | None = None
    cost: float | None = None


def read_usage(settings: Settings, seconds: float) -> tuple[UsageView, ...] | None:
    """Ask every predictor of the home; None when there is none that answers."""
    found = []
    for group in targets(settings.home):
        for address in group["targets"]:
            try:
                found.append(_fetch(settings, address, seconds))
            except (OSError, http.client.HTTPException, SerinError):
                continue
    return usage_of(found) if found else None


def usage_of(expositions: Iterable[str]) -> tuple[UsageView, ...]:
    """Return what expositions of predictors say, summed up by revision."""
    from prometheus_client.parser import text_string_to_metric_families

    sums: dict[tuple[str, str], dict[str, Any]] = {}
    for text in expositions:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                figure = FIGURES.get(sample.name.removeprefix(PREFIX))
                if figure is None:
                    continue
                key = sample.labels["revision"], sample.labels["model_version"]
                counted = sums.setdefault(key, {})
                counted[figure] = counted.get(figure, 0.0) + sample.value
    return tuple(UsageView(*key, **counted) for key, counted in sorted(sums.items()))


def _fetch(settings: Settings, address: str, seconds: float) -> str:
    token = predictor_token(settings.home, settings.predictor_token.get_secret_value())
    parts = urlsplit(f"http://{address}")
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=seconds)
    try:
        connection.request("GET", "/metrics", headers={"authorization": bearer(token)})
        answer = connection.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise http.client.HTTPException(f"status {answer.status}")
        return answer.read(SCRAPE_BYTES_MAX).decode("utf-8", "replace")
    finally:
        connection.close()
