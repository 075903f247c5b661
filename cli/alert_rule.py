"""`serin alert-rule`: the classic canary rule as a PrometheusRule for a cluster's alerting.

Knows where the configuration is; the rule itself is in validation/prometheus_rule.py.
"""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from core.errors import ConfigurationError
from core.settings import Settings

DEPLOYMENT = "release"


def alert_rule(
    config: Annotated[
        Path,
        typer.Option(help="prefect.yaml (its deployment `release`), or the canary's fields alone"),
    ] = Path("prefect.yaml"),
    service: Annotated[str | None, typer.Option(help="InferenceService (default: ours)")] = None,
    namespace: Annotated[str | None, typer.Option(help="its namespace (default: ours)")] = None,
) -> None:
    """Print the PrometheusRule that fires when the classic canary rule does: kubectl apply -f -"""
    from validation.canary import CanaryConfig
    from validation.prometheus_rule import prometheus_rule

    settings = Settings.read()
    try:
        canary = CanaryConfig.model_validate(_canary(config))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{config}, canary {where}: {first['msg']}") from error
    rule = prometheus_rule(canary, service or settings.service, namespace or settings.namespace)
    typer.echo(yaml.safe_dump(rule, sort_keys=False, width=100), nl=False)


def _canary(path: Path) -> Any:
    """The canary's configuration in a file; {} stands for the defaults."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"--config {path} must hold a mapping of names to values")
    if "deployments" not in found:
        return found
    for deployment in found["deployments"]:
        if deployment.get("name") == DEPLOYMENT:
            return (deployment.get("parameters") or {}).get("canary", {})
    raise ConfigurationError(f"--config {path} has no deployment named {DEPLOYMENT}")
