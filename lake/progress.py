"""How far a day is on its way in, told to people: a bar on a terminal, else a line now and then.

Knows figures; how they come about, ingestion.py and spreading.py know.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TextIO

LINE_SECONDS = 10.0
MEGABYTE = 1_000_000
LOG = logging.getLogger("serin.ingestion")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a file is in this run: rows and decoded bytes, and where its reader stands.

    By parts `position` is the share of the work that is done, in bytes of the file.
    """

    source: str
    rows_in: int = 0
    duplicates: int = 0
    quarantined: int = 0
    decoded_bytes: int = 0
    position: int = 0
    size_bytes: int = 0


Watch = Callable[[Progress], None]


def told(progress: Progress, seconds: float) -> str:
    """Return the rate, the rows and the time left, after so many seconds; pure."""
    rate = progress.decoded_bytes / MEGABYTE / max(seconds, 1e-9)
    parts = [
        f"{rate:.1f} MB/s",
        f"{progress.rows_in} rows",
        f"{progress.duplicates} duplicates",
        f"{progress.quarantined} quarantined",
    ]
    if 0 < progress.position <= progress.size_bytes:
        left = seconds * (progress.size_bytes - progress.position) / progress.position
        parts.append(f"{left:.0f} s left")
    return "  ".join(parts)


@contextmanager
def telling(stream: TextIO | None = None, say: Callable[[str], None] = LOG.info) -> Iterator[Watch]:
    """Give a `watch` for an intake: a bar where `stream` (stderr) is a terminal, else `say` lines.

    The first line comes after LINE_SECONDS, so that a small day says nothing.
    """
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(stream) as bar:
            yield bar
        return
    clock = _Clock()
    last = clock.began

    def watch(progress: Progress) -> None:
        nonlocal last
        seconds = clock.seconds(progress.source)
        now = time.monotonic()
        if now - last >= LINE_SECONDS:
            last = now
            share = 100 * progress.position / max(1, progress.size_bytes)
            say(f"{progress.source}  {share:.0f} %  {told(progress, seconds)}")

    yield watch


class _Clock:
    """Counts the seconds of the file that is on its way."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self._source = ""

    def seconds(self, source: str) -> float:
        if source != self._source:
            first = not self._source
            self._source = source
            if not first:
                self.began = time.monotonic()
        return time.monotonic() - self.began


@contextmanager
def _bar(stream: TextIO) -> Iterator[Watch]:
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bar

    clock = _Clock()
    name, figures = TextColumn("{task.description}"), TextColumn("{task.fields[told]}")
    with Bar(
        name, BarColumn(bar_width=24), figures, console=Console(file=stream), transient=True
    ) as bar:
        shown = bar.add_task("", total=1, told="")

        def watch(progress: Progress) -> None:
            bar.update(
                shown,
                description=progress.source,
                total=max(1, progress.size_bytes),
                completed=progress.position,
                told=told(progress, clock.seconds(progress.source)),
            )

        yield watch
