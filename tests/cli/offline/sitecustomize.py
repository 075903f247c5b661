"""Put first on PYTHONPATH: refuses and records each attempt to reach anything but loopback."""

import os
import socket
import sys
from typing import Any

RECORD = os.environ.get("SERIN_TEST_OUTGOING", "")
INSIDE = ("127.", "::1", "localhost", "0.0.0.0", "::ffff:127.")


def _is_inside(host: object) -> bool:
    name = host.decode() if isinstance(host, bytes) else str(host or "localhost")
    return name.startswith(INSIDE) or name == socket.gethostname()


def _watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif event in ("socket.connect", "socket.sendto") and isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return
    if _is_inside(host):
        return
    with open(RECORD, "a") as file:
        file.write(f"{os.getpid()} {' '.join(sys.argv[:4])}: {event} {host}\n")
    raise PermissionError(f"tests reach nothing but loopback, not {host}")


if RECORD:
    sys.addaudithook(_watch)
