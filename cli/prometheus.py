"""`python -m cli.prometheus`: writes what Prometheus needs for one home, then becomes Prometheus.

Everything it keeps lies below the home; it listens on loopback and is reloaded by a restart.
"""

import argparse
import logging
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import yaml

from cli.alert_rule import make_rules
from cli.environment import ROOT
from cli.ports import LOOPBACK
from core.errors import ConfigurationError, SerinError
from core.keys import predictor_token
from core.settings import Settings
from observability.logs import configure
from serving.gateway.config import read_config

log = logging.getLogger("serin.prometheus")

PROGRAM = "prometheus"
SCRAPE_SECONDS = 5
EVALUATE_SECONDS = 60
DISCOVERY_SECONDS = 5
RETENTION = ("15d", "2GB")
RULES_FILE = "rules.yaml"
TOKEN_FILE = "predictor.token"


def scrape_config(settings: Settings) -> dict[str, Any]:
    """Return Prometheus' configuration of one home: who is scraped, and by which rules.

    Every series gets the gateway's region, unless it says another one itself.
    """
    listening = {
        "serin-gateway": settings.gateway_url,
        "serin-control": settings.kube_url,
        "serin-exporter": settings.exporter_url,
    }
    jobs: list[dict[str, Any]] = [
        {"job_name": name, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        for name, url in listening.items()
        if url
    ]
    discovery = {
        "url": f"{settings.exporter_url}/targets",
        "refresh_interval": f"{DISCOVERY_SECONDS}s",
    }
    jobs.append(
        {
            "job_name": "serin-predictor",
            "authorization": {"credentials_file": TOKEN_FILE},
            "http_sd_configs": [discovery],
        }
    )
    config = settings.home / "gateway.yaml"
    region = read_config(config if config.exists() else None).regions.name
    for job in jobs:
        job["honor_labels"] = True
        job["relabel_configs"] = [{"target_label": "region", "replacement": region}]
    every, evaluated = f"{SCRAPE_SECONDS}s", f"{EVALUATE_SECONDS}s"
    return {
        "global": {"scrape_interval": every, "evaluation_interval": evaluated},
        "rule_files": [RULES_FILE],
        "scrape_configs": jobs,
    }


def write_files(settings: Settings, rules: dict[str, Any]) -> Path:
    """Write configuration, rules and the predictors' token; return the folder."""
    folder = settings.folder(PROGRAM)
    token = predictor_token(settings.home, settings.predictor_token.get_secret_value())
    secret = folder / TOKEN_FILE
    secret.touch(mode=0o600)
    secret.write_text(token)
    for name, content in ((RULES_FILE, rules), ("prometheus.yaml", scrape_config(settings))):
        (folder / name).write_text(yaml.safe_dump(content, sort_keys=False, width=100))
    return folder


def command(program: str, folder: Path, port: int) -> list[str]:
    """Return the command line of Prometheus on a folder of its own."""
    seconds, size = RETENTION
    return [
        program,
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--storage.tsdb.retention.time={seconds}",
        f"--storage.tsdb.retention.size={size}",
        f"--web.listen-address={LOOPBACK}:{port}",
        "--log.format=json",
    ]


def main() -> int:
    """Become Prometheus; returns an exit code only when that is not possible."""
    parser = argparse.ArgumentParser(prog="python -m cli.prometheus", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    options = parser.parse_args()
    configure("prometheus")
    try:
        settings = Settings.read()
        program = shutil.which(PROGRAM)
        if program is None:
            raise ConfigurationError(f"the program {PROGRAM} is not installed any more")
        folder = write_files(settings, make_rules(ROOT / "prefect.yaml", settings.service))
    except SerinError as error:
        log.error("serin: %s", error)
        return 1
    return os.execv(program, command(program, folder, options.port))


if __name__ == "__main__":
    sys.exit(main())
