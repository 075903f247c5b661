"""Prometheus' text format: families of samples, labels, escapes. Knows no metric."""

from collections.abc import Iterable, Iterator
from typing import Protocol


class Counting(Protocol):
    """A part that counts what it does."""

    def lines(self) -> Iterator[str]:
        """Yield its counts in Prometheus' text format."""


def family(name: str, kind: str, text: str, values: Iterable[tuple[str, float]]) -> Iterator[str]:
    """Yield the lines of one metric; `values` are (labels as text, value)."""
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"
    for named, value in values:
        yield f"{name}{named} {value!r}"


def labels(**values: str) -> str:
    """Return labels as they stand behind a metric's name."""
    return "{" + ",".join(f'{name}="{_escape(text)}"' for name, text in values.items()) + "}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
