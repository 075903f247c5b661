"""KServe's ModelServer for one model on loopback: our routes, its health routes, nothing else.

KServe's predict, infer, explain and repository routes are not registered: they answer 404.
"""

import asyncio
import importlib
import importlib.util
import logging
import os
import signal
import socket
import sys
import types
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from core.errors import ConfigurationError
from serving.api import PredictorApi
from serving.api_errors import ApiError
from serving.auditing import PredictorAudit
from serving.connections import Envelope, error_response
from serving.credentials import TokenCheck
from serving.edge import Edge
from serving.engines.engine import Engine
from serving.lifecycle import Identity, Lifecycle

log = logging.getLogger("serin.predictor")

KEEP_ALIVE_SECONDS = 65
BACKLOG = 1024
STARTED_POLL_SECONDS = 0.005
ENGINE_POLL_SECONDS = 0.5
CLOSE_SECONDS = 1
"""After the drain, how long uvicorn may take to close what is left."""


@dataclass(slots=True)
class Site:
    """Where one server runs and what it serves, to whom; `failed` once the engine died under it."""

    identity: Identity
    lifecycle: Lifecycle
    engine: Engine
    listener: socket.socket
    port_file: Path | None
    drain_seconds: float
    token: str = field(repr=False)
    metrics_open: bool = False
    failed: bool = False


def load_kserve() -> None:
    """Import kserve's model server without what serving never uses: 1.3 s instead of 4.2 s.

    `kserve/__init__` imports the Kubernetes client and 150 model classes, `kserve.protocol` imports
    pandas for its predict routes. So the package is entered without running its __init__, and
    pandas is an empty name while kserve's modules are read. sys.argv is hidden because kserve
    parses it at import (our --config would be taken for its --configure_logging).
    """
    if "kserve.model_server" in sys.modules:
        return
    found = importlib.util.find_spec("kserve")
    if found is None or found.submodule_search_locations is None:
        raise ConfigurationError("kserve is not installed; run `make` to install what is pinned")
    package = types.ModuleType("kserve")
    package.__spec__, package.__file__ = found, found.origin
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["kserve"] = package
    arguments, sys.argv = sys.argv, sys.argv[:1]
    placeholder = "pandas" not in sys.modules
    if placeholder:
        sys.modules["pandas"] = types.ModuleType("pandas")
        sys.modules["pandas"].DataFrame = object  # type: ignore[attr-defined]
    try:
        importlib.import_module("kserve.model_server")
    finally:
        sys.argv = arguments
        if placeholder:
            del sys.modules["pandas"]


def bind(host: str, port: int) -> socket.socket:
    """Return a bound socket; port 0 takes a free one. Raises ConfigurationError when taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
    except OSError as error:
        bound.close()
        raise ConfigurationError(
            f"{host}:{port} cannot be used ({error.strerror}); choose another --http-port"
        ) from error
    bound.set_inheritable(False)
    return bound


def write_port(file: Path, port: int) -> None:
    """Write the port in one step, so that a reader sees all of it or nothing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    partial.write_text(f"{port}\n")
    os.replace(partial, file)


def build_server(site: Site, api: PredictorApi, audit: PredictorAudit) -> Any:
    """Return a kserve ModelServer; `start([model])` serves until a signal has drained it."""
    load_kserve()
    from kserve.constants.constants import FASTAPI_APP_IMPORT_STRING
    from kserve.model_server import ModelServer
    from kserve.protocol.rest.server import RESTServer
    from kserve.protocol.rest.v2_endpoints import V2Endpoints

    class RouteServer(RESTServer):
        """Serves the routes named here only, on a listener that is bound already."""

        def _register_endpoints(self, app: Any) -> None:
            health = V2Endpoints(self.dataplane, self.model_repository_extension)

            async def model_ready(model_name: str) -> Any:
                return await health.model_ready(model_name)

            async def ready() -> Any:
                # kserve's own route says ready whatever its models say
                await health.model_ready(site.identity.model_name)
                return await health.ready()

            get: dict[str, Any] = {"methods": ["GET"], "response_class": JSONResponse}
            app.add_api_route("/v2/health/live", health.live, **get)
            app.add_api_route("/v2/health/ready", ready, **get)
            app.add_api_route("/v2/models/{model_name}/ready", model_ready, **get)
            api.add_to(app)

        def _add_middlewares(self, app: Any) -> None:
            app.add_middleware(Edge, audit=audit)
            app.add_middleware(
                TokenCheck, token=site.token, metrics_open=site.metrics_open, refused=audit.refused
            )
            app.add_middleware(Envelope, identity=site.identity, lifecycle=site.lifecycle)

        def _add_exception_handlers(self, app: Any) -> None:
            super()._add_exception_handlers(app)
            del app.exception_handlers[Exception]  # kserve's own shows the exception's text
            app.add_exception_handler(HTTPException, http_error)

        async def start(self) -> None:
            self.create_application()
            await serve(self._server, site)

    class PredictorServer(ModelServer):
        """kserve's server with one process, no gRPC, and our drain in place of its stop."""

        def start(self, models: list[Any]) -> None:
            self._register_and_check_atleast_one_model_is_ready(models)
            rest = RouteServer(
                FASTAPI_APP_IMPORT_STRING,
                self.dataplane,
                self.model_repository_extension,
                self.http_port,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
            )
            with asyncio.Runner(loop_factory=rest.config.get_loop_factory()) as runner:
                runner.run(rest.start())

    port = site.listener.getsockname()[1]
    return PredictorServer(http_port=port, enable_grpc=False, enable_latency_logging=False)


def build_model(name: str, engine: Engine, lifecycle: Lifecycle) -> Any:
    """Return the model that kserve's health routes ask about."""
    load_kserve()
    from kserve.model import Model

    class AssistantModel(Model):
        """Ready while the process takes requests and its engine lives."""

        async def healthy(self) -> bool:
            return lifecycle.ready and engine.load().alive

    model = AssistantModel(name)
    model.ready = True  # the engine is loaded and warm before the server is built
    return model


async def serve(server: uvicorn.Server, site: Site) -> None:
    """Serve until SIGTERM or SIGINT, or until the engine died; then drain and return."""
    config = server.config
    config.lifespan, config.access_log, config.backlog = "off", False, BACKLOG
    config.timeout_graceful_shutdown = CLOSE_SECONDS
    vars(server)["capture_signals"] = nullcontext  # uvicorn's handlers would end it undrained
    asked = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, asked.set)
    serving = asyncio.create_task(server.serve(sockets=[site.listener]))
    while not (server.started or serving.done()):
        await asyncio.sleep(STARTED_POLL_SECONDS)
    site.lifecycle.ready = True
    port = site.listener.getsockname()[1]
    if site.port_file is not None:
        write_port(site.port_file, port)
    log.info("%s ready on port %d", site.identity.revision, port)
    while not asked.is_set() and site.engine.load().alive:
        with suppress(TimeoutError):
            await asyncio.wait_for(asked.wait(), ENGINE_POLL_SECONDS)
    site.failed = not site.engine.load().alive
    log.info("draining %d requests", site.lifecycle.in_flight)
    if not await site.lifecycle.drain(site.drain_seconds):
        log.warning("%d requests did not end in time", site.lifecycle.in_flight)
    server.should_exit = True
    await serving


async def http_error(request: Request, error: Exception) -> Response:
    """Answer unknown paths and methods in the API's own form."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    code = {404: "not_found", 405: "method_not_allowed"}.get(status)
    text = f"{request.method} {request.url.path[:200]} is not offered here."
    response = error_response(ApiError(text, status=status, code=code))
    if isinstance(error, HTTPException):
        response.headers.update(error.headers or {})  # 405 names the methods that are offered
    return response
