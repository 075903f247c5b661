"""The file that says what a stack consists of: addresses, processes, and who supervises them.

Written by the supervisor alone, atomically; core.settings reads the addresses from it.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from cli.processes import Identity, alive
from core.errors import ConfigurationError
from core.settings import STACK_FILE


@dataclass(frozen=True, slots=True)
class ChildRecord:
    """One part of the stack. `identity` is None while it is down and waits to be started again.

    `argv` is its command line before the socket's number is filled in, `binding` the digest of its
    environment and of the stack's addresses: a part is adopted only if both are as they would be
    now.
    """

    argv: tuple[str, ...]
    binding: str = ""
    identity: Identity | None = None
    port: int | None = None
    restarts: int = 0
    started_at_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class StackFile:
    """A stack as its supervisor last knew it."""

    addresses: dict[str, str] = field(default_factory=dict)
    supervisor: Identity | None = None
    processes: dict[str, ChildRecord] = field(default_factory=dict)

    @property
    def supervised(self) -> bool:
        """Whether the supervisor that wrote this is alive."""
        return alive(self.supervisor)

    @property
    def living(self) -> dict[str, Identity]:
        """The parts whose processes run now."""
        found = {name: record.identity for name, record in self.processes.items()}
        return {name: identity for name, identity in found.items() if identity and alive(identity)}


def read_stack(home: Path) -> StackFile:
    """Read a home's stack file; an empty one when no stack was ever started there.

    Raises ConfigurationError when the file is malformed.
    """
    path = home / STACK_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=StackFile)
    except FileNotFoundError:
        return StackFile()
    except msgspec.MsgspecError as error:
        raise ConfigurationError(
            f"{path} is malformed ({error}); remove it and run `serin down`"
        ) from error


def write_stack(home: Path, stack: StackFile) -> None:
    """Replace a home's stack file in one step."""
    path = home / STACK_FILE
    temporary = path.with_suffix(".new")
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(stack), indent=2))
    os.replace(temporary, path)
