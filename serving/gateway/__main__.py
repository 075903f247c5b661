"""`python -m serving.gateway`: one process that listens on a port or an inherited socket."""

import argparse
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from core.errors import ConfigurationError, SerinError
from core.keys import predictor_token, read_key
from core.settings import Settings
from core.telemetry import TelemetrySettings
from observability.audit import Audit
from observability.logs import configure
from observability.tracing import Tracing
from serving.gateway.app import Gateway
from serving.gateway.auditing import GatewayAudit
from serving.gateway.cache import open_store
from serving.gateway.config import GatewayConfig, read_config
from serving.gateway.connection import connection_class
from serving.gateway.guard import Guard

log = logging.getLogger("serin.gateway")

BACKLOG = 1024
DEAD_PEER_MILLISECONDS = 60_000


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM, then drain. Returns the exit code."""
    options = _options(arguments)
    configure("gateway")
    try:
        config = read_config(options.config or _own_config(options.home))
        settings = Settings.read()
        store = open_store(config, settings.cache_password.get_secret_value())
        guard = Guard(config.guard, options.home, settings.gateway_keys)
        listener = _inherited(options.fd) if options.fd is not None else _bound(options.port)
        key = read_key(options.home / "control" / "audit.key")
        audit = Audit(options.home / "audit", "gateway", key, config.audit)
        recording = GatewayAudit(audit, config.audit.required)
        pushed = TelemetrySettings.read(mlflow_url=settings.mlflow_url)
        region = {"serin.region": config.regions.name}
        tracing = Tracing(
            pushed, "serin-gateway", settings.service, trusting=False, resource=region
        )
        token = predictor_token(options.home, settings.predictor_token.get_secret_value())
        gateway = Gateway(config, options.home, store, guard, recording, tracing, token)
    except SerinError as error:
        log.error("gateway: %s", error)
        return 1
    if options.port_file is not None:
        _write_port(options.port_file, listener.getsockname()[1])
    serve(gateway, config, listener)
    return 0


def serve(gateway: Gateway, config: GatewayConfig, listener: socket.socket) -> None:
    """Serve on a listening socket until SIGTERM or SIGINT, then finish what runs and return."""
    server = uvicorn.Server(
        uvicorn.Config(
            gateway,
            http=connection_class(config),
            ws="none",
            loop="uvloop",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level=logging.ERROR,
            server_header=False,
            proxy_headers=False,
            backlog=BACKLOG,
            timeout_keep_alive=int(max(config.idle_seconds_max, 1)),
            timeout_graceful_shutdown=int(max(config.drain_seconds_max, 1)),
        )
    )
    for number in (signal.SIGTERM, signal.SIGINT):
        # uvicorn raises the signal again when it has drained; the process shall exit 0 then
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m serving.gateway", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of all state")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--fd", type=int, help="number of an inherited listening socket")
    where.add_argument("--port", type=int, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="file to write the port to")
    parser.add_argument(
        "--config",
        type=Path,
        help="YAML file with the gateway's limits; without it the home's gateway.yaml, if any",
    )
    return parser.parse_args(arguments)


def _own_config(home: Path) -> Path | None:
    path = home / "gateway.yaml"
    return path if path.exists() else None


def _inherited(number: int) -> socket.socket:
    try:
        listener = socket.socket(fileno=number)
        listening = listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ConfigurationError(f"--fd {number} is not an open socket: {error}") from error
    if not listening:
        raise ConfigurationError(f"--fd {number} is not a listening socket")
    return _tuned(listener)


def _bound(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        raise ConfigurationError(
            f"--port {port} cannot be bound ({error.strerror}); choose another port"
        ) from error
    listener.listen(BACKLOG)
    return _tuned(listener)


def _tuned(listener: socket.socket) -> socket.socket:
    """Accepted connections inherit this: one whose client neither reads nor answers ends."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, DEAD_PEER_MILLISECONDS)
    return listener


def _write_port(path: Path, port: int) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(f"{port}\n")
    os.replace(temporary, path)


if __name__ == "__main__":
    sys.exit(main())
