"""The parts of a stack as a table: command line, environment, socket, health address, order of end.

Knows each part's command; does not start anything.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from cli.environment import MEMBER_VARIABLE, stack_environment
from cli.ports import LOOPBACK
from cli.processes import python
from core.settings import Settings

PartName = Literal[
    "prefect", "mlflow", "gateway", "control", "keeper", "worker", "exporter", "prometheus"
]
PORT_PARTS: tuple[PartName, ...] = ("gateway", "control", "mlflow", "prefect")
WATCHING_PARTS: tuple[PartName, ...] = ("prometheus", "exporter")
"""Parts that only look at the others; they run where Prometheus is installed."""
ADDRESS_OF: Mapping[str, str] = {
    "gateway": "gateway_url",
    "control": "kube_url",
    "mlflow": "mlflow_url",
    "prefect": "prefect_url",
    "prometheus": "prometheus_url",
    "exporter": "exporter_url",
}
PATH_OF: Mapping[str, str] = {"prefect": "/api"}
WORK_POOL = "local"
WORKER_READY_FILE = "worker.ready"


@dataclass(frozen=True, slots=True)
class Child:
    """How to run one part.

    With `holds_socket` the supervisor listens on `port` and hands the socket down as `{fd}` in
    `argv`. `stop_phase` orders the end: lower phases first. `sweeps_group` kills what the part's
    dead process left in its group before it is started again.
    """

    name: str
    argv: tuple[str, ...]
    port: int | None = None
    holds_socket: bool = False
    health_path: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)
    stop_phase: int = 1
    grace_seconds: float = 10.0
    sweeps_group: bool = True


def addresses(ports: Mapping[str, int]) -> dict[str, str]:
    """Return the addresses that core.settings reads, for the parts that have a port."""
    return {
        ADDRESS_OF[name]: f"http://{LOOPBACK}:{port}{PATH_OF.get(name, '')}"
        for name, port in ports.items()
        if name in ADDRESS_OF
    }


def table(settings: Settings, ports: Mapping[str, int], *, worker: bool) -> dict[str, Child]:
    """Return the parts to run, in the order of starting: the slowest to become ready first.

    A part whose address was given from outside has no port in `ports` and is not run.
    """
    children = [
        _prefect(settings, ports.get("prefect")),
        _mlflow(settings, ports.get("mlflow")),
        _gateway(settings, ports.get("gateway")),
        _control(settings, ports.get("control")),
        Child(
            "keeper",
            python("rollout.keeper", "--home", str(settings.home)),
            environment=stack_environment(settings),
        ),
        _worker(settings) if worker else None,
        *_watching(settings, ports),
    ]
    return {child.name: child for child in children if child is not None}


def member_environment(home: Path) -> dict[str, str]:
    """Return the variable that marks a process, and all that it starts, as part of this stack."""
    return {MEMBER_VARIABLE: str(home)}


def _prefect(settings: Settings, port: int | None) -> Child | None:
    if port is None:
        return None
    database = settings.home / "prefect" / "prefect.db"
    return Child(
        "prefect",
        # `prefect server start` does the same, 2.5 s later, and cannot take over a socket.
        _uvicorn("--factory", "prefect.server.api.server:create_app"),
        port=port,
        holds_socket=True,
        health_path="/api/health",
        environment={
            **stack_environment(settings),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{database}",
            "PREFECT_UI_API_URL": settings.prefect_url,
            "PREFECT__SERVER_FINAL": "1",
        },
        stop_phase=2,
    )


def _mlflow(settings: Settings, port: int | None) -> Child | None:
    if port is None:
        return None
    folder = settings.home / "mlflow"
    return Child(
        "mlflow",
        # `mlflow server` hands these variables to the same application, but imports MLflow twice:
        # 7 s and 250 MB more, and a process that survives the death of its parent.
        _uvicorn("mlflow.server.fastapi_app:app"),
        port=port,
        holds_socket=True,
        health_path="/health",
        environment={
            **stack_environment(settings),
            "_MLFLOW_SERVER_FILE_STORE": f"sqlite:///{folder / 'mlflow.db'}",
            "_MLFLOW_SERVER_ARTIFACT_ROOT": "mlflow-artifacts:/",
            "_MLFLOW_SERVER_ARTIFACT_DESTINATION": str(folder / "artifacts"),
            "_MLFLOW_SERVER_SERVE_ARTIFACTS": "true",
            "_MLFLOW_SGI_NAME": "uvicorn",
        },
        stop_phase=2,
    )


def _uvicorn(*application: str) -> tuple[str, ...]:
    return python("uvicorn", *application, "--fd", "{fd}", "--log-level", "warning")


def _gateway(settings: Settings, port: int | None) -> Child | None:
    if port is None:
        return None
    return Child(
        "gateway",
        python("serving.gateway", "--home", str(settings.home), "--fd", "{fd}"),
        port=port,
        holds_socket=True,
        health_path="/healthz",
        environment=stack_environment(settings),
    )


def _control(settings: Settings, port: int | None) -> Child | None:
    if port is None:
        return None
    gateway = ("--gateway-url", settings.gateway_url) if settings.gateway_url else ()
    return Child(
        "control",
        python("serving.local", "--home", str(settings.home), "--port", str(port), *gateway),
        port=port,
        health_path="/readyz",
        environment=stack_environment(settings),
    )


def _watching(settings: Settings, ports: Mapping[str, int]) -> list[Child]:
    """Prometheus, and what it reads beside the other parts; those that have a port."""
    environment = stack_environment(settings)
    exporter, prometheus = ports.get("exporter"), ports.get("prometheus")
    found = []
    if exporter is not None:
        found.append(
            Child(
                "exporter",
                python("cli.exporter", "--port", str(exporter)),
                port=exporter,
                health_path="/healthz",
                environment=environment,
                stop_phase=0,
                grace_seconds=5.0,
            )
        )
    if prometheus is not None:
        found.append(
            Child(
                "prometheus",
                python("cli.prometheus", "--port", str(prometheus)),
                port=prometheus,
                health_path="/-/ready",
                environment=environment,
                stop_phase=0,
            )
        )
    return found


def _worker(settings: Settings) -> Child:
    return Child(
        "worker",
        python("cli.worker", "--home", str(settings.home)),
        environment={
            **stack_environment(settings),
            "PREFECT_LOGGING_HANDLERS_CONSOLE_FORMATTER": "json",
            "PREFECT_LOGGING_COLORS": "false",
        },
        stop_phase=0,
        grace_seconds=5.0,
        # Its flow runs are in its group: they go on without it and report to the server themselves.
        sweeps_group=False,
    )
