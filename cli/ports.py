"""Listening sockets on loopback: the wanted port, the next free one, or a clear refusal."""

import errno
import socket
from collections.abc import Collection

from core.errors import ConfigurationError

LOOPBACK = "127.0.0.1"
BACKLOG = 1024
NEIGHBOURS_MAX = 64
EPHEMERAL_TRIES_MAX = 16


def bind(port: int) -> socket.socket:
    """Return a socket bound to `port` on loopback (0: any). Raises OSError when it is taken."""
    bound = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((LOOPBACK, port))
        # Binding alone succeeds beside another socket that is bound but not yet listening.
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def claim(name: str, wanted: int, *, explicit: bool, avoid: Collection[int] = ()) -> socket.socket:
    """Return a listening socket for the part `name`.

    An `explicit` port (set by SERIN_PORT_<NAME>) is taken or refused with ConfigurationError; a
    default one gives way to the next free port. `avoid` holds ports promised to other parts.
    """
    if explicit or wanted == 0:
        return _claim_exactly(name, wanted, avoid)
    for port in range(wanted, min(wanted + NEIGHBOURS_MAX, 65536)):
        if port in avoid:
            continue
        try:
            return bind(port)
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise
    return _claim_exactly(name, 0, avoid)


def _claim_exactly(name: str, port: int, avoid: Collection[int]) -> socket.socket:
    variable = f"SERIN_PORT_{name.upper()}"
    for _ in range(EPHEMERAL_TRIES_MAX):
        try:
            bound = bind(port)
        except OSError as error:
            raise ConfigurationError(
                f"port {port} for {name} cannot be used ({error.strerror}); stop what uses it "
                f"or set {variable} to another port (0 takes any free one)"
            ) from error
        if port or bound.getsockname()[1] not in avoid:
            return bound
        bound.close()
    raise ConfigurationError(f"no free port was found for {name}; set {variable}")
