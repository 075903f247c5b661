"""The routes that the control plane wrote: which arms a service has and where they answer.

Reads and checks the file; knows nothing of health, draws or sockets.
"""

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from core.errors import InputError

log = logging.getLogger(__name__)

ROUTES_BYTES_MAX = 4 << 20


class EndpointRoute(msgspec.Struct, frozen=True):
    """One predictor process: its base URL, and whether the control plane found it ready."""

    url: str
    ready: bool = True


class ArmRoute(msgspec.Struct, frozen=True):
    """One arm of a service: a revision, its declared percent of the traffic, its processes."""

    arm: Literal["stable", "canary"]
    revision: str
    percent: float
    model_version: str = ""
    bundle_digest: str = ""
    endpoints: tuple[EndpointRoute, ...] = ()


class ServiceRoute(msgspec.Struct, frozen=True):
    """The arms of one service: one, stable, with 100 %, or stable and canary."""

    arms: tuple[ArmRoute, ...]


class Routes(msgspec.Struct, frozen=True):
    """One generation of the routes of all services, by the name that clients call `model`."""

    generation: int = 0
    services: dict[str, ServiceRoute] = {}


def parse_routes(content: bytes) -> Routes:
    """Decode and check a routes file. Raises InputError naming what is wrong."""
    try:
        routes = msgspec.json.decode(content, type=Routes)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(f"routes are malformed: {error}") from error
    for name, service in routes.services.items():
        _check_service(name, service)
    return routes


def _check_service(name: str, service: ServiceRoute) -> None:
    names = [arm.arm for arm in service.arms]
    if names and (sorted(set(names)) != sorted(names) or "stable" not in names):
        raise InputError(f"routes of {name}: arms are {names}; one stable, at most one canary")
    percents = [arm.percent for arm in service.arms]
    if any(not 0 <= percent <= 100 for percent in percents) or (
        percents and abs(sum(percents) - 100) > 1e-6
    ):
        raise InputError(f"routes of {name}: percents {percents} are not shares of 100")
    for arm in service.arms:
        for endpoint in arm.endpoints:
            parts = urlsplit(endpoint.url)
            if parts.scheme != "http" or not parts.hostname or parts.query or parts.fragment:
                raise InputError(f"routes of {name}: {endpoint.url!r} is not an http:// address")


class RoutesFile:
    """Looks at one file again and again; hands each new good content on, keeps the last one."""

    def __init__(self, path: Path, apply: Callable[[Routes], None]) -> None:
        self._path = path
        self._apply = apply
        self._seen: tuple[int, int, int] | None = None
        self._timer: asyncio.TimerHandle | None = None

    def read(self) -> bool:
        """Apply the file if it changed since the last look; True when routes were applied.

        A missing, unreadable or malformed file changes nothing; the reason is logged once.
        """
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        identity = (found.st_mtime_ns, found.st_ino, found.st_size)
        if identity == self._seen:
            return False
        self._seen = identity
        try:
            if found.st_size > ROUTES_BYTES_MAX:
                raise InputError(f"routes are larger than {ROUTES_BYTES_MAX} bytes")
            routes = parse_routes(self._path.read_bytes())
        except (OSError, InputError) as error:
            log.error("%s not applied, the last good routes stay: %s", self._path, error)
            return False
        self._apply(routes)
        return True

    def watch(self, poll_seconds: float) -> None:
        """Read now and every `poll_seconds` on the running loop, until `close`."""
        self.read()
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(poll_seconds, self.watch, poll_seconds)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
