"""`serin up` and `serin down`: everything on loopback started, adopted, and stopped."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from cli.children import Child, table
from cli.environment import MEMBER_VARIABLE, ROOT
from cli.plan import given_from_outside, is_set
from cli.processes import members, python, send, start, stop, wait_gone
from cli.readiness import await_parts
from cli.stack_file import StackFile, read_stack
from cli.supervisor import log_path, stop_parts
from core.errors import ConfigurationError, UnavailableError
from core.settings import STACK_FILE, Settings
from observability.logs import message_of

READY_SECONDS_MAX = 180.0
SUPERVISOR_SECONDS_MAX = 60.0
MEMBER_GRACE_SECONDS = 5.0
POLL_SECONDS = 0.05
WATCH_SECONDS = 0.5
LOG_LINES_SHOWN = 5


def up(
    worker: Annotated[
        bool, typer.Option(help="also apply prefect.yaml and run the Prefect worker")
    ] = True,
    prometheus: Annotated[
        bool, typer.Option(help="also run Prometheus, where its program is installed")
    ] = True,
    detach: Annotated[
        bool, typer.Option("--detach/--foreground", help="return when ready, or stay until Ctrl-C")
    ] = True,
) -> None:
    """Start everything on loopback, or adopt what still runs, and print the addresses."""
    settings = Settings.read()
    if detach:
        start_stack(settings, worker=worker, watching=prometheus)
        return
    with _interruptible():
        try:
            start_stack(settings, worker=worker, watching=prometheus)
            typer.echo("Ctrl-C stops everything.")
            while read_stack(settings.home).supervised:
                time.sleep(WATCH_SECONDS)
        except KeyboardInterrupt:
            typer.echo(f"stopped: {', '.join(stop_stack(settings))}")


def down() -> None:
    """Stop everything that `serin up` started, predictors too."""
    stopped = stop_stack(Settings.read())
    typer.echo(f"stopped: {', '.join(stopped)}" if stopped else "nothing was running")


def start_stack(settings: Settings, *, worker: bool, watching: bool = False) -> dict[str, str]:
    """Bring the home's stack up and return its addresses; a running one is completed, not redone.

    Prints progress. Raises ConfigurationError for a taken or contradicting port, UnavailableError
    when a part does not become ready.
    """
    home = settings.home
    before = read_stack(home)
    supervisor = None
    if not before.supervised:
        prepare_home(settings)
        supervisor = _start_supervisor(home, worker=worker, watching=watching)
    stack = _await_supervisor(home, supervisor)
    _refuse_other_ports(stack)
    wanted = {signal.SIGUSR1: "worker"} if worker else {}
    if watching and "exporter_url" in stack.addresses:
        wanted[signal.SIGUSR2] = "exporter"
    for number, part in wanted.items():
        if part not in stack.processes:
            send(stack.supervisor, number)
            stack = _await_supervisor(home, supervisor, part=part)
    children = children_of(settings, stack)
    ports = {child.name: f" on port {child.port}" for child in children if child.port}
    for found in await_parts(home, children, READY_SECONDS_MAX):
        if not found.ready:
            why = "keeps dying" if found.died else f"is not ready after {found.seconds:.0f} s"
            raise UnavailableError(
                f"{found.name} {why}; `serin down` stops the rest. {_log_tail(home, found.name)}"
            )
        where = ports.get(found.name, "")
        typer.echo(f"{found.name}{where} ready after {found.seconds:.1f} s", err=True)
    _print_addresses(stack)
    return stack.addresses


def stop_stack(settings: Settings) -> list[str]:
    """Stop the supervisor and every part, predictors and orphaned flow runs too, in bounded time.

    Returns the names of what was stopped. Safe to call at any time, and twice.
    """
    from serving.local.processes import stop_all

    home = settings.home
    stack = read_stack(home)
    names = list(stack.living)
    if stack.supervisor is not None and send(stack.supervisor, signal.SIGTERM):
        names.append("supervisor")
        if not wait_gone([stack.supervisor], SUPERVISOR_SECONDS_MAX):
            stop([stack.supervisor], 0.0)
    parts = {child.name: child for child in children_of(settings, stack)}
    stop_parts(home, parts, stack)
    # Without its file the stack is found by its environment, a supervisor that still runs too.
    others = [] if stack.processes else [*members(MEMBER_VARIABLE, str(home))]
    stop(others, SUPERVISOR_SECONDS_MAX if others else 0.0)
    if predictors := stop_all(home):
        names.append(f"{predictors} predictors")
    # Whatever else the parts started: flow runs that outlived their worker.
    rest = [*members(MEMBER_VARIABLE, str(home))]
    stop(rest, MEMBER_GRACE_SECONDS)
    if others or rest:
        names.append(f"{len(others) + len(rest)} other processes")
    (home / STACK_FILE).unlink(missing_ok=True)
    return names


def children_of(settings: Settings, stack: StackFile) -> list[Child]:
    """Return how a stack's parts are run, from what its file says of their ports."""
    ports = {name: record.port for name, record in stack.processes.items() if record.port}
    everything = table(settings.model_copy(update=stack.addresses), ports, worker=True)
    return [child for name, child in everything.items() if name in stack.processes]


def prepare_home(settings: Settings) -> None:
    """Make the home's folders and bring its ledger and lake forward to this version's schema.

    What does not exist yet is made by whoever writes first. Raises ConfigurationError or
    RefusedError for a newer schema.
    """
    for name in ("control", "logs", "prefect", "mlflow/artifacts"):
        settings.folder(name)
    ledger_file = sqlite_path(settings.ledger_url)
    if ledger_file is None or ledger_file.exists():
        from rollout.ledger import Ledger

        Ledger(settings.ledger_url).close()
    if "://" in settings.lake_uri or Path(settings.lake_uri).is_dir():
        from lake.schema import migrate_lake

        migrate_lake(settings.lake_uri)


def sqlite_path(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for another database."""
    prefix = "sqlite:///"
    return Path(url.removeprefix(prefix)) if url.startswith(prefix) else None


def _start_supervisor(home: Path, *, worker: bool, watching: bool) -> subprocess.Popen[bytes]:
    log = log_path(home, "supervisor")
    if log.exists():
        os.replace(log, log.with_suffix(".log.1"))
    bound = {"SERIN_HOME": str(home), MEMBER_VARIABLE: str(home), "PYTHONUNBUFFERED": "1"}
    arguments = ["--worker"] * worker + ["--watching"] * watching
    return start(
        python("cli.supervisor", *arguments),
        environment={**os.environ, **bound},
        folder=ROOT,
        log=log,
    )


def _await_supervisor(
    home: Path, started: subprocess.Popen[bytes] | None, part: str | None = None
) -> StackFile:
    """Wait until a living supervisor has written the stack file (with `part` in it)."""
    deadline = time.monotonic() + SUPERVISOR_SECONDS_MAX
    while time.monotonic() < deadline:
        stack = read_stack(home)
        if stack.supervised and (part is None or part in stack.processes):
            return stack
        if started is not None and started.poll() is not None and not read_stack(home).supervised:
            raise ConfigurationError(_last_words(home))
        time.sleep(POLL_SECONDS)
    raise UnavailableError(f"the supervisor did not start. {_log_tail(home, 'supervisor')}")


def _refuse_other_ports(stack: StackFile) -> None:
    for name, record in stack.processes.items():
        variable = f"SERIN_PORT_{name.upper()}"
        if record.port is None or given_from_outside(name, os.environ):
            continue
        if is_set(name, os.environ) and os.environ[variable] not in ("0", str(record.port)):
            raise ConfigurationError(
                f"{name} already runs on port {record.port}, but {variable} is "
                f"{os.environ[variable]}; run `serin down` first"
            )


def _print_addresses(stack: StackFile) -> None:
    titles = {
        "gateway_url": "Gateway (clients)",
        "prefect_url": "Prefect",
        "mlflow_url": "MLflow",
        "kube_url": "Kubernetes API",
    }
    if "prometheus" in stack.processes:
        titles["prometheus_url"] = "Prometheus"
    for name, title in titles.items():
        if url := stack.addresses.get(name):
            typer.echo(f"{title:18} {url.removesuffix('/api')}")


def _last_words(home: Path) -> str:
    """Return the supervisor's own message, else the end of its log."""
    lines = _lines(home, "supervisor")
    said = [line.removeprefix("serin: ") for line in lines if line.startswith("serin: ")]
    return said[-1] if said else f"the supervisor ended. {_log_tail(home, 'supervisor')}"


def _log_tail(home: Path, name: str) -> str:
    end = " | ".join(_lines(home, name)[-LOG_LINES_SHOWN:])
    return f"Its log {log_path(home, name)} ends: {end}"


def _lines(home: Path, name: str) -> list[str]:
    path = log_path(home, name)
    if not path.exists():
        return []
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (16 << 10)))
        text = file.read().decode(errors="replace")
    return [message_of(line.strip()) for line in text.splitlines() if line.strip()]


@contextmanager
def _interruptible() -> Iterator[None]:
    def interrupt(_number: int, _frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
