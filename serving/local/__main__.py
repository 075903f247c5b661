"""`python -m serving.local --home DIR --port P`: the one-machine KServe control plane.

On SIGTERM it ends and leaves the predictors running; `--stop-all` stops those.
"""

import argparse
import asyncio
import contextlib
import logging
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import uvicorn

from core.errors import ConfigurationError, SerinError
from core.files import write_whole
from core.keys import predictor_token
from core.settings import Settings
from observability.logs import configure
from serving.local.api import Api
from serving.local.config import LocalConfig
from serving.local.controller import Controller
from serving.local.files import lock_home
from serving.local.processes import Folders, stop_all
from serving.local.store import Store

log = logging.getLogger("serin.control")

HOST = "127.0.0.1"
BACKLOG = 128
URL_FORM = r"http://[^/:@]+(:\d+)?/?"
SHUTDOWN_SECONDS_MAX = 2
KUBECONFIG = """apiVersion: v1
kind: Config
clusters: [{{name: serin, cluster: {{server: "{url}"}}}}]
users: [{{name: serin, user: {{}}}}]
contexts: [{{name: serin, context: {{cluster: serin, user: serin, namespace: default}}}}]
current-context: serin
"""


class Server(uvicorn.Server):
    """uvicorn without its own signal handling: this program ends in its own order."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to `serve`."""
        yield


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT; return the exit code."""
    options = _options(arguments)
    configure("control")
    try:
        home = options.home.absolute()
        if options.stop_all:
            print(f"stopped {stop_all(home)} predictors")
            return 0
        if options.port is None:
            raise ConfigurationError("--port is missing; 0 takes a free one")
        if options.gateway_url and not re.fullmatch(URL_FORM, options.gateway_url):
            raise ConfigurationError("--gateway-url must look like http://127.0.0.1:8800")
        config = LocalConfig.read(options.config)
        changes = {
            "predictor_command": tuple(shlex.split(options.predictor_command or "")),
            "bundle_roots": tuple(options.bundle_root or ()),
            "threads": options.threads,
        }
        config = config.model_copy(update={name: value for name, value in changes.items() if value})
        asyncio.run(serve(home, config, options.port, options.port_file, options.gateway_url))
    except SerinError as error:
        log.error("serving.local: %s", error)
        return 1
    return 0


async def serve(
    home: Path, config: LocalConfig, port: int, port_file: Path | None, gateway_url: str
) -> None:
    """Serve the API and reconcile until a signal comes.

    Raises RefusedError when the home has a control plane, ConfigurationError for a taken port.
    """
    folders = Folders(home)
    given = Settings.read().predictor_token.get_secret_value()
    folders.make()
    lock = lock_home(folders.control)
    listener = _listen(port)
    try:
        store = Store(folders.control / "services.json")
        controller = Controller(home, store, config, gateway_url, predictor_token(home, given))
        server = Server(
            uvicorn.Config(
                Api(store, controller.roster.exits).application(),
                lifespan="off",
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=SHUTDOWN_SECONDS_MAX,
            )
        )
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        url = f"http://{HOST}:{listener.getsockname()[1]}"
        write_whole(folders.control / "kubeconfig", KUBECONFIG.format(url=url).encode())
        tasks = {
            asyncio.create_task(server.serve(sockets=[listener])),
            asyncio.create_task(controller.run()),
            asyncio.create_task(stop.wait()),
        }
        if port_file is not None:
            write_whole(port_file, str(listener.getsockname()[1]).encode())
        log.info("InferenceServices at %s", url)
        done, running = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        store.end_watches()
        server.should_exit = True
        await asyncio.wait(running, timeout=SHUTDOWN_SECONDS_MAX)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        for task in done:
            task.result()
    finally:
        listener.close()
        os.close(lock)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"port {port} (--port, SERIN_PORT_CONTROL) cannot be used: {error.strerror}"
        ) from error
    listener.listen(BACKLOG)
    return listener


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m serving.local", description="one-machine KServe control plane"
    )
    parser.add_argument("--home", type=Path, required=True, help="folder of all state")
    parser.add_argument("--port", type=int, help="port on 127.0.0.1; 0 takes a free one")
    parser.add_argument("--port-file", type=Path, help="the port is written here when it listens")
    parser.add_argument("--gateway-url", default="", help="address of the gateway for clients")
    parser.add_argument("--config", type=Path, help="YAML or JSON file of limits and times")
    parser.add_argument("--predictor-command", help="program that serves a bundle")
    parser.add_argument(
        "--bundle-root", type=Path, action="append", help="bundles may lie here (repeatable)"
    )
    parser.add_argument("--threads", type=int, help="threads of each predictor")
    parser.add_argument(
        "--stop-all", action="store_true", help="stop all predictors of this home, and end"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
