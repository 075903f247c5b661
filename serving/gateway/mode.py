"""How the gateway works now: normal or degraded, long inputs filtered or not; set from outside.

Recoveries and people write <home>/control/mode.json; every gateway of the home follows it.
"""

from pathlib import Path
from typing import Literal

import msgspec

from core.errors import InputError
from core.files import write_whole


class Mode(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is switched, and why.

    `input_filter` "auto" leaves it to the lengths that are seen. `request_filter` refuses everybody
    who lately sent what was malicious, long before that would ban them.
    """

    degraded: bool = False
    input_filter: Literal["auto", "on", "off"] = "auto"
    reason: str = ""
    request_filter: bool = False


class ModeFile:
    """The file that holds the mode; the normal mode without it."""

    def __init__(self, home: Path) -> None:
        self._path = home / "control" / "mode.json"

    def read(self) -> Mode:
        """Return the mode. Raises InputError for a damaged file."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Mode)
        except FileNotFoundError:
            return Mode()
        except msgspec.MsgspecError as error:
            raise InputError(f"{self._path} is damaged: {error}; delete it") from error

    def write(self, mode: Mode) -> None:
        """Set the mode; gateways follow within their `look_seconds`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(self._path, msgspec.json.encode(mode))
