"""routes.json: what the gateway follows. Written whole, with a generation that only grows."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from core.files import write_whole
from serving.local.files import read_as
from serving.local.reconcile import Routes


@dataclass(slots=True)
class RoutesFile:
    """The file's content. Each change of `services` is a new generation."""

    generation: int = 0
    services: dict[str, dict[str, Any]] = field(default_factory=dict)


class RoutesWriter:
    """Keeps the file and remembers which generation the gateway has applied."""

    def __init__(self, path: Path, generation_min: int) -> None:
        content = read_as(path, RoutesFile) or RoutesFile()
        self.path = path
        self.written = path.exists()
        self.services: Routes = content.services
        # A lost file must not bring back a generation that the gateway has seen.
        self.generation = max(content.generation, generation_min)
        self.applied: int | None = None

    @property
    def settled(self) -> bool:
        """Whether the gateway follows what is in the file."""
        return self.written and self.applied == self.generation

    def write(self, services: Routes) -> None:
        """Write a new generation. Raises OSError; the old file then stands."""
        content = RoutesFile(self.generation + 1, services)
        text = msgspec.json.format(msgspec.json.encode(content), indent=1)
        write_whole(self.path, text, durable=True)
        self.generation += 1
        self.services = services
        self.written = True

    def urls(self) -> set[str]:
        """Return every address that clients are sent to."""
        return {
            endpoint["url"]
            for service in self.services.values()
            for arm in service["arms"]
            for endpoint in arm["endpoints"]
        }
