"""`serin alert-rule`: the rules that judge and heal, as Prometheus evaluates them.

Knows where the configurations are; the rules themselves are in validation/alerting.py.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from core.errors import ConfigurationError
from core.settings import Settings

CANARY = ("release", "canary")
HEALTH = ("watch", "health")
"""Deployment and parameter that hold a configuration in prefect.yaml."""


class Form(StrEnum):
    """Who reads the rules: a cluster's operator, or Prometheus itself."""

    KUBERNETES = "kubernetes"
    FILE = "file"


def alert_rule(
    config: Annotated[
        Path,
        typer.Option(help="prefect.yaml (release and watch), or the canary's fields alone"),
    ] = Path("prefect.yaml"),
    service: Annotated[str | None, typer.Option(help="InferenceService (default: ours)")] = None,
    namespace: Annotated[str | None, typer.Option(help="its namespace (default: ours)")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="also the health matrix and what the dashboards show")
    ] = False,
    form: Annotated[Form, typer.Option(help="a PrometheusRule, or a rules file")] = Form.KUBERNETES,
) -> None:
    """Print the rule that fires when the classic canary rule does: kubectl apply -f -"""
    from validation.prometheus_rule import as_custom_resource, rule_groups

    settings = Settings.read()
    name = service or settings.service
    groups = make_rules(config, name) if everything else rule_groups(read_canary(config), name)
    if form is Form.KUBERNETES:
        groups = as_custom_resource(groups, name, namespace or settings.namespace)
    typer.echo(yaml.safe_dump(groups, sort_keys=False, width=100), nl=False)


def make_rules(config: Path, service: str) -> dict[str, Any]:
    """Return every rule of a service by the configurations in prefect.yaml."""
    from validation.alerting import all_rules
    from validation.health_config import HealthConfig

    health = _validated(HealthConfig, config, HEALTH)
    return all_rules(read_canary(config), health, service)


def read_canary(config: Path) -> Any:
    """Return the canary's configuration. Raises ConfigurationError."""
    from validation.canary import CanaryConfig

    return _validated(CanaryConfig, config, CANARY)


def _validated(kind: Any, path: Path, place: tuple[str, str]) -> Any:
    try:
        return kind.model_validate(_parameter(path, place))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ConfigurationError(f"{path}, {place[1]} {where}: {first['msg']}") from error


def _parameter(path: Path, place: tuple[str, str]) -> Any:
    """A deployment's parameter in a file, or the canary's fields alone; {} for the defaults."""
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"--config {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigurationError(f"--config {path} must hold a mapping of names to values")
    if "deployments" not in found:
        return found if place == CANARY else {}
    for deployment in found["deployments"]:
        if deployment.get("name") == place[0]:
            return (deployment.get("parameters") or {}).get(place[1], {})
    raise ConfigurationError(f"--config {path} has no deployment named {place[0]}")
