"""`python -m cli.dashboards`: writes Prometheus' rules and Grafana's dashboards to deploy/.

They follow from prefect.yaml and from observability/dashboards.py; nobody edits them.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import yaml

from cli.alert_rule import make_rules
from cli.environment import ROOT
from core.settings import Settings
from observability.dashboards import dashboards

FOLDER = ROOT / "deploy" / "observability"
RULES_NOTE = "# Written by `python -m cli.dashboards` from prefect.yaml: change it there.\n"


def generated() -> Iterator[tuple[Path, str]]:
    """Yield each file below deploy/observability that is generated, with its content."""
    service = str(Settings.model_fields["service"].default)
    rules = make_rules(ROOT / "prefect.yaml", service)
    yield FOLDER / "rules.yaml", RULES_NOTE + yaml.safe_dump(rules, sort_keys=False, width=100)
    for name, content in dashboards():
        yield FOLDER / "dashboards" / f"{name}.json", json.dumps(content, indent=2) + "\n"


def main() -> int:
    """Write them; returns the exit code."""
    for path, content in generated():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
