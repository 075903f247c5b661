"""`python -m cli.worker`: applies prefect.yaml to the server, then runs flow runs from its pool.

One process for the three Prefect commands: each of them alone spends seconds on its imports.
"""

import argparse
import http
import logging
import os
import sys
import time
from pathlib import Path

from cli.children import WORK_POOL, WORKER_READY_FILE
from cli.readiness import PROBE_SECONDS, get_status
from observability.logs import configure

log = logging.getLogger("serin.worker")

SERVER_SECONDS_MAX = 180.0
POLL_SECONDS = 0.2
WORKER_NAME = "serin"


def main() -> int:
    """Deploy and work until told to stop; returns the exit code of the command that failed."""
    parser = argparse.ArgumentParser(prog="python -m cli.worker", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of all state")
    home = parser.parse_args().home
    configure("worker")
    ready = home / "control" / WORKER_READY_FILE
    ready.parent.mkdir(parents=True, exist_ok=True)
    ready.unlink(missing_ok=True)
    if not await_server(os.environ["PREFECT_API_URL"], SERVER_SECONDS_MAX):
        log.error("serin: the Prefect server does not answer; see its log")
        return 1
    for command in (
        ["work-pool", "create", WORK_POOL, "--type", "process", "--overwrite"],
        ["--no-prompt", "deploy", "--all"],
    ):
        if code := prefect(command):
            log.error("serin: `prefect %s` failed", " ".join(command))
            return code
    ready.write_text(str(os.getpid()))
    return prefect(
        ["worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", WORKER_NAME]
    )


def await_server(api_url: str, seconds: float) -> bool:
    """Wait until a Prefect server answers at `api_url`. Returns False after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if get_status(f"{api_url}/health", PROBE_SECONDS) == http.HTTPStatus.OK:
            return True
        time.sleep(POLL_SECONDS)
    return False


def prefect(command: list[str]) -> int:
    """Run one command of Prefect's own command line in this process; returns its exit code."""
    from prefect.cli import app

    sys.argv = ["prefect", *command]
    try:
        app()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


if __name__ == "__main__":
    sys.exit(main())
