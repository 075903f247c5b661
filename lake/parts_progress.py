"""How far a file is that comes in by parts: what share of the work its finished parts are.

Knows the steps and what each weighs; how they are done, spreading.py knows.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Literal, TypeVar

from lake.progress import Progress, Watch

Step = Literal["prepare", "match", "look", "write"]
WEIGHTS: Mapping[Step, float] = MappingProxyType(
    {"prepare": 77.0, "match": 3.0, "look": 5.0, "write": 7.0}
)
"""Microseconds a row, about (docs/scale.md): so the time left is told of all steps, not of one."""
Item = TypeVar("Item")


class PartsProgress:
    """Tells `watch` of each part that is done with a step; nothing where nobody watches."""

    def __init__(self, source: str, size_bytes: int, watch: Watch | None) -> None:
        self._watch = watch
        self._done = 0.0
        self.progress = Progress(source, size_bytes=size_bytes)

    def following(self, step: Step, items: Iterable[Item], count: int) -> Iterator[Item]:
        """Yield the results of a step's `count` orders, and tell of each after it was used."""
        for item in items:
            yield item
            self.tell(step, 1 / max(1, count))

    def tell(self, step: Step, share: float) -> None:
        """Tell that a share of a step is done, 1 for all of it."""
        self._done += share * WEIGHTS[step] / sum(WEIGHTS.values())
        place = round(min(1.0, self._done) * self.progress.size_bytes)
        self.progress = replace(self.progress, position=place)
        if self._watch is not None:
            self._watch(self.progress)

    def add(
        self, rows_in: int = 0, duplicates: int = 0, quarantined: int = 0, decoded_bytes: int = 0
    ) -> None:
        """Count what a part came to; the next `tell` shows it."""
        now = self.progress
        self.progress = replace(
            now,
            rows_in=now.rows_in + rows_in,
            duplicates=now.duplicates + duplicates,
            quarantined=now.quarantined + quarantined,
            decoded_bytes=now.decoded_bytes + decoded_bytes,
        )
