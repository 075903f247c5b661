"""The environment that Serin's processes run in: telemetry off, state of every tool below the home.

Knows the tools' variables; does not know ports or processes.
"""

import os
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from core.settings import Settings

ROOT = Path(__file__).resolve().parent.parent
MEMBER_VARIABLE = "SERIN_STACK_MEMBER"
"""Set in every process of a stack to its home: descendants that were orphaned are found by it."""

LOOPBACK_NAMES = ("127.0.0.1", "localhost")

QUIET: Mapping[str, str] = {
    "DO_NOT_TRACK": "true",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "NNCF_CI": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
    "RAY_USAGE_STATS_ENABLED": "0",
    # OpenVINO reports its mere import; the only switch it has is to run in an automated build.
    "TF_BUILD": "true",
}
"""Nothing that Serin starts reports to anybody."""


def silence(environ: MutableMapping[str, str] | None = None) -> None:
    """Switch the telemetry of every library off in `environ` (this process's by default)."""
    (os.environ if environ is None else environ).update(QUIET)


def stack_environment(
    settings: Settings, environ: Mapping[str, str] = os.environ
) -> dict[str, str]:
    """Return the variables that bind a process to the home's Prefect and MLflow servers.

    Loopback is added to the proxy exceptions of `environ`.
    """
    home = settings.home
    around = {*environ.get("NO_PROXY", environ.get("no_proxy", "")).split(","), *LOOPBACK_NAMES}
    no_proxy = ",".join(sorted(around - {""}))
    variables = {
        **QUIET,
        "SERIN_HOME": str(home),
        "PREFECT_HOME": str(home / "prefect"),
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
        "PREFECT_WORKER_QUERY_SECONDS": "3",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONUNBUFFERED": "1",
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }
    if settings.prefect_url:
        variables["PREFECT_API_URL"] = settings.prefect_url
    if settings.mlflow_url:
        variables["MLFLOW_TRACKING_URI"] = settings.mlflow_url
    return variables
