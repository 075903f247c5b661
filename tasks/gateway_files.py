"""The two files by which the gateway of a home is told how to work: its mode, and who is banned.

Their formats are docs/operations.md's; every gateway of the home follows them within a second.
"""

import fcntl
import time
from collections.abc import Mapping
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import msgspec

from core.errors import InputError, UnavailableError
from core.files import write_whole

SWITCHES: Mapping[str, tuple[Any, Any]] = {
    "degraded": (True, False),
    "input_filter": ("on", "auto"),
    "request_filter": (True, False),
}
"""Field of the mode: its value while health holds it, and its normal one."""


def read_mode(home: Path) -> dict[str, Any]:
    """Return the mode that is set. Raises InputError for a damaged file."""
    found: dict[str, Any] = _read(home / "control" / "mode.json", dict[str, Any], {})
    return found


def switch(
    home: Path, wanted: Mapping[str, str], held: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Bring the mode to what is wanted: {switch: why}; return (what is held now, what changed).

    `held` are the switches that health has set, with their values before. One that is no longer
    wanted gets that value back, unless a person has changed it meanwhile.
    Raises InputError for a damaged file, UnavailableError where it cannot be written.
    """
    mode = read_mode(home)
    holds, changed = dict(held), dict[str, Any]()
    for name, (on, normal) in SWITCHES.items():
        now = mode.get(name, normal)
        if name in wanted and name not in holds:
            holds[name] = now
            changed |= {name: on} if now != on else {}
        elif name not in wanted and name in holds:
            before = holds.pop(name)
            changed |= {name: before} if now == on and before != on else {}
    if changed:
        reason = "; ".join(f"health: {why}" for why in dict.fromkeys(wanted.values()))
        _write(home / "control" / "mode.json", {**mode, **changed, "reason": reason})
    return holds, changed


def ban(home: Path, address: str, seconds: float, reason: str) -> bool:
    """Shut an address out; False if it is already. Raises InputError, UnavailableError."""
    path = home / "control" / "bans.json"
    try:
        with open(path.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            now = time.time()
            bans = _read(path, list[dict[str, Any]], [])
            if any(one["address"] == address and one["until_seconds"] > now for one in bans):
                return False
            new = {
                "address": address,
                "since_seconds": now,
                "until_seconds": now + seconds,
                "reason": reason,
            }
            _write(path, [one for one in bans if one["address"] != address] + [new])
            return True
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error}") from error


def banned(home: Path, now: float) -> set[str]:
    """Return the addresses that are shut out now. Raises InputError for a damaged file."""
    bans = _read(home / "control" / "bans.json", list[dict[str, Any]], [])
    return {one["address"] for one in bans if one["until_seconds"] > now}


def is_exempt(address: str, networks: tuple[str, ...]) -> bool:
    """Whether an address lies in one of the networks, or is none at all."""
    try:
        found = ip_address(address.split("/")[0])
        return any(found in ip_network(network) for network in networks)
    except ValueError:
        return True


def _read(path: Path, kind: Any, nothing: Any) -> Any:
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return nothing
    except (OSError, msgspec.MsgspecError) as error:
        raise InputError(f"{path} is damaged: {error}; delete it") from error


def _write(path: Path, content: Any) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, msgspec.json.encode(content))
    except OSError as error:
        raise UnavailableError(f"{path} cannot be written: {error}") from error
