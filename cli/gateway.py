"""`serin bans` and `serin gateway`: who is shut out, and how the gateway works for now.

Both change files below the home, which every gateway of that home follows within a second.
"""

import json
import time
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from core.errors import InputError, NotFoundError
from core.settings import Settings

JsonOption = Annotated[bool, typer.Option("--json", help="print JSON")]
AddressArgument = Annotated[str, typer.Argument(help="IP address; of IPv6 its /64 counts")]
ReasonOption = Annotated[str, typer.Option(help="kept with it, for whoever looks later")]
MINUTE_SECONDS = 60

bans = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Client addresses that the gateway shuts out."
)
gateway = typer.Typer(
    add_completion=False, no_args_is_help=True, help="How the gateway works for now."
)


class OnOff(StrEnum):
    """What `degrade` takes."""

    ON = "on"
    OFF = "off"


class Filter(StrEnum):
    """What `input-filter` takes."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


@bans.command("list")
def list_bans(as_json: JsonOption = False) -> None:
    """List the bans in force, the longest first."""
    from serving.gateway.bans import BanFile

    found = sorted(BanFile(Settings.read().home).read().values(), key=lambda b: -b.until_seconds)
    if as_json:
        typer.echo(json.dumps([msgspec.to_builtins(ban) for ban in found]))
        return
    for ban in found:
        minutes = (ban.until_seconds - time.time()) / MINUTE_SECONDS
        typer.echo(f"{ban.address:<40} {minutes:7.1f} min left  {ban.reason}")
    if not found:
        typer.echo("no address is banned")


@bans.command("add")
def add_ban(
    address: AddressArgument,
    minutes: Annotated[float, typer.Option(min=0.01, help="how long")] = 60.0,
    reason: ReasonOption = "by hand",
) -> None:
    """Shut an address out."""
    from serving.gateway.bans import Ban, BanFile

    now = time.time()
    name = _client(address)
    BanFile(Settings.read().home).add(Ban(name, now, now + minutes * MINUTE_SECONDS, reason))
    typer.echo(f"{name} is banned for {minutes:g} min")


@bans.command("lift")
def lift_ban(address: AddressArgument) -> None:
    """Let an address in again."""
    from serving.gateway.bans import BanFile

    name = _client(address)
    if not BanFile(Settings.read().home).lift(name):
        raise NotFoundError(f"{name} is not banned; `serin bans list` shows who is")
    typer.echo(f"{name} may ask again")


@gateway.command()
def show(as_json: JsonOption = False) -> None:
    """Show the mode that is set."""
    from serving.gateway.mode import ModeFile

    mode = ModeFile(Settings.read().home).read()
    if as_json:
        typer.echo(msgspec.json.encode(mode).decode())
        return
    state = "degraded" if mode.degraded else "normal"
    reason = f" ({mode.reason})" if mode.reason else ""
    strict = "on" if mode.request_filter else "off"
    filters = f"filter of long inputs: {mode.input_filter}, of malicious clients: {strict}"
    typer.echo(f"{state}, {filters}{reason}")


@gateway.command()
def degrade(
    switch: Annotated[OnOff, typer.Argument(help="on or off")], reason: ReasonOption = ""
) -> None:
    """Keep answers short, give kept ones first and refuse the least important under load."""
    _set(degraded=switch is OnOff.ON, reason=reason)


@gateway.command("input-filter")
def input_filter(
    switch: Annotated[Filter, typer.Argument(help="auto, on or off")], reason: ReasonOption = ""
) -> None:
    """Refuse long inputs always, never, or while they are too many (auto)."""
    _set(input_filter=str(switch), reason=reason)


@gateway.command("request-filter")
def request_filter(
    switch: Annotated[OnOff, typer.Argument(help="on or off")], reason: ReasonOption = ""
) -> None:
    """Refuse addresses that lately sent malicious requests, long before a ban."""
    _set(request_filter=switch is OnOff.ON, reason=reason)


def _set(**changes: object) -> None:
    from serving.gateway.mode import ModeFile

    file = ModeFile(Settings.read().home)
    file.write(msgspec.structs.replace(file.read(), **changes))
    show()


def _client(address: str) -> str:
    from serving.gateway.addresses import UNKNOWN, client_address

    found = client_address(address.split("/")[0], {}, ())
    if found == UNKNOWN:
        raise InputError(f"{address} is not an IP address")
    return found
