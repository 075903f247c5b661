"""Decides which parts a stack runs and on which ports: adopted, asked for, default or next free.

Claims the ports, starts nothing.
"""

import shutil
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from cli.children import ADDRESS_OF, PORT_PARTS, WATCHING_PARTS, Child, addresses, table
from cli.ports import claim
from cli.stack_file import StackFile
from core.errors import ConfigurationError
from core.settings import PREFIX, Settings


@dataclass(frozen=True, slots=True)
class Plan:
    """What a supervisor is to run. `listeners` are the sockets that it holds from the start."""

    children: dict[str, Child]
    optional: dict[str, Child]
    addresses: dict[str, str]
    listeners: dict[str, socket.socket]


def plan_stack(
    settings: Settings,
    environ: Mapping[str, str],
    before: StackFile,
    *,
    worker: bool,
    watching: bool = False,
) -> Plan:
    """Return the plan for a home whose stack file says `before`.

    `watching`: also Prometheus, where its program is installed; it and the worker can be added
    later.
    A part whose address is in the environment (SERIN_MLFLOW_URL, ...) is somebody else's and is not
    run. Raises ConfigurationError when a port that was set is taken or contradicts a living part.
    """
    ports: dict[str, int] = {}
    sockets: dict[str, socket.socket] = {}
    adopted = before.living
    can_watch = shutil.which("prometheus") is not None or given_from_outside("prometheus", environ)
    for name in (*PORT_PARTS, *(WATCHING_PARTS if can_watch else ())):
        if given_from_outside(name, environ):
            continue
        record = before.processes.get(name)
        if name in adopted and record and record.port:
            ports[name] = _adopted_port(name, record.port, environ)
            continue
        wanted, explicit = getattr(settings, f"port_{name}"), is_set(name, environ)
        if adopted and record and record.port and not (explicit and wanted):
            # The parts that live on know this address.
            wanted, explicit = record.port, False
        promised = {*ports.values()} | {item.port or 0 for item in before.processes.values()}
        avoid = promised - {wanted}
        sockets[name] = claim(name, wanted, explicit=explicit, avoid=avoid)
        ports[name] = sockets[name].getsockname()[1]
    bound = settings.model_copy(update=addresses(ports))
    everything = table(bound, ports, worker=True)
    optional = {
        name: child
        for name, child in everything.items()
        if name == "worker" or name in WATCHING_PARTS
    }
    wanted_parts = {*(("worker",) if worker else ()), *(WATCHING_PARTS if watching else ())}
    children = {
        name: child
        for name, child in everything.items()
        if name not in optional or name in wanted_parts
    }
    for own in [
        name for name in sockets if name not in everything or not everything[name].holds_socket
    ]:
        # The part listens itself; until now the port was kept from the others.
        sockets.pop(own).close()
    return Plan(children, optional, addresses(ports), sockets)


def is_set(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the part's port was set in the environment, rather than taken by default."""
    return bool(environ.get(f"{PREFIX}PORT_{name.upper()}"))


def given_from_outside(name: str, environ: Mapping[str, str]) -> bool:
    """Whether the part is a server of somebody else's, whose address is in the environment.

    A cluster (SERIN_KUBE_URL) splits its own traffic, so that no local gateway is run with it.
    """
    given = bool(environ.get(PREFIX + ADDRESS_OF[name].upper()))
    return given or (name == "gateway" and given_from_outside("control", environ))


def _adopted_port(name: str, port: int, environ: Mapping[str, str]) -> int:
    variable = f"{PREFIX}PORT_{name.upper()}"
    if is_set(name, environ) and environ[variable] not in ("0", str(port)):
        raise ConfigurationError(
            f"{name} already runs on port {port}, but {variable} is {environ[variable]}; "
            "run `serin down` first"
        )
    return port
