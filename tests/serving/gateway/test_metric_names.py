"""Every metric that a rule or a dashboard asks for is shown by a process of ours."""

import json
import re
from pathlib import Path

import httpx
from gateway_world import Predictor, World, until
from prometheus_client.exposition import generate_latest

from cli.dashboards import FOLDER, generated
from cli.exporter import make_registry
from core.settings import Settings
from observability.dashboards import DASHBOARDS
from rollout.ledger import Ledger
from serving.engines.engine import EngineLoad
from serving.gpus import Gpus
from serving.local.metrics import Exits
from serving.predictor_metrics import PredictorMetrics
from tasks.remembering import Notes, Remembered
from tests.serving.test_resource_metrics import FakeNvml
from validation.alerting import RECORDS, all_rules
from validation.canary import CanaryConfig
from validation.health_config import HealthConfig

NAME = re.compile(r"\b[a-z_]*:?serin_[a-z0-9_]+(?::[a-z0-9_]+)?\b")
PARTS = ("_bucket", "_sum", "_count")
RESULT = {
    "final_state": "Promoted", "seconds": {"training": 1.0},
    "quality_before": 0.8, "quality_after": 0.9,
}  # fmt: skip


def shown(text: str) -> set[str]:
    """Names of the series that an exposition may have."""
    found = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:4]
            found |= {name + part for part in PARTS} if kind == "histogram" else {name}
    return found


def asked(expressions: list[str]) -> set[str]:
    """Names of the series that expressions read; those in quotes are values of labels."""
    return {name for text in expressions for name in NAME.findall(re.sub(r'"[^"]*"', '""', text))}


def predictors() -> str:
    """What a predictor with a GPU and a price shows."""
    metrics = PredictorMetrics("1", "assistant-00001")
    metrics.watch(lambda: 0, lambda: 0, lambda: EngineLoad(0, 0.0))
    metrics.watch_policy(lambda: False)
    metrics.watch_resources(Gpus(FakeNvml(1)), {"input": 1.0}, list)
    return metrics.exposition(None)[0].decode()


def exporter(home: Path) -> str:
    """What the exporter shows of a home with a run, a ledger and a watch that has looked."""
    run = home / "reports" / "day-1"
    run.mkdir(parents=True)
    (run / "result.json").write_text(json.dumps(RESULT))
    (run / "stages.json").write_text('[{"name": "training", "seconds": 1.0, "figures": {}}]')
    settings = Settings.read({"SERIN_HOME": str(home)})
    ledger = Ledger(settings.ledger_url)
    Notes(ledger, settings.namespace, settings.service).keep(Remembered(time_seconds=1.0))
    ledger.close()
    return generate_latest(make_registry(settings)).decode()


def test_every_metric_that_is_asked_for_is_shown(
    world: World, stable: Predictor, tmp_path: Path
) -> None:
    world.start_gateway()
    world.route(stable)
    until(lambda: world.ask().status_code == 200)

    def page() -> str:
        """What the gateway shows; of long inputs it says nothing before there were some inputs."""
        assert world.ask().status_code == 200
        text = httpx.get(f"{world.url}/metrics").text
        return text if "input_long_share" in text else ""

    gateway = until(page)
    known = shown("\n".join((gateway, predictors(), exporter(tmp_path), Exits().exposition())))
    recorded = {name for name, _ in RECORDS}
    rules = all_rules(CanaryConfig(), HealthConfig(), "assistant")
    expressions = [rule["expr"] for group in rules["groups"] for rule in group["rules"]]
    expressions += [
        query for panels in DASHBOARDS.values() for panel in panels for query, _ in panel.queries
    ]
    wanted = asked(expressions)
    assert len(wanted) > 40
    assert wanted - known - recorded == set()


def test_the_files_in_deploy_are_the_generated_ones() -> None:
    for path, content in generated():
        assert path.read_text() == content, f"{path}: run `python -m cli.dashboards`"
    assert {path.stem for path in (FOLDER / "dashboards").glob("*.json")} == {*DASHBOARDS}
