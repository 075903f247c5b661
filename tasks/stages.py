"""What every step shares: the run's folder, its journal of stages, and the Prefect policy.

A stage's seconds and figures are kept in the run's folder, so that a report never asks a server.
"""

import functools
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import msgspec
from prefect import task
from prefect.cache_policies import NO_CACHE

from core.contracts import Figure
from core.settings import Settings

P = ParamSpec("P")
R = TypeVar("R")
JOURNAL_NAME = "stages.json"
LOG = logging.getLogger("serin.stages")


@dataclass(frozen=True, slots=True)
class Stage:
    """One finished step of a run: wall seconds, what it counted, when it ended."""

    name: str
    seconds: float
    figures: dict[str, Figure]
    ended_at_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class DayRun:
    """One pass of the daily loop: its label (a day or a release) and the folder of its papers."""

    label: str
    folder: str

    def path(self, name: str) -> Path:
        """Return a path inside the run's folder."""
        return Path(self.folder) / name

    def stages(self) -> list[Stage]:
        """Return the stages finished so far, in order."""
        path = self.path(JOURNAL_NAME)
        return msgspec.json.decode(path.read_bytes(), type=list[Stage]) if path.exists() else []

    def record(self, name: str, seconds: float, **figures: Figure) -> None:
        """Add a finished stage to the journal and tell whoever watches the log."""
        stages = [*self.stages(), Stage(name, round(seconds, 3), figures, time.time())]
        self.path(JOURNAL_NAME).write_bytes(msgspec.json.encode(stages))
        counted = "  ".join(f"{key} {value}" for key, value in figures.items())
        LOG.info("%s  %-16s %6.1f s  %s", self.label, name, seconds, counted)


def open_run(label: str, run_id: str) -> DayRun:
    """Make the folder of a run's papers: <home>/reports/<label>-<run id>.

    The same run id gives the same folder, so a retried flow continues its journal.
    """
    folder = Settings.read().folder("reports") / f"{label}-{run_id}"
    folder.mkdir(parents=True, exist_ok=True)
    return DayRun(label=label, folder=str(folder))


def stage(
    name: str, *, retries: int = 0, timeout_seconds: float | None = None
) -> Callable[[Callable[Concatenate[DayRun, P], R]], Callable[Concatenate[DayRun, P], R]]:
    """Make a Prefect task of a step `f(run, ...)` and journal its seconds.

    Retries wait 2, 4, 8 ... seconds. Results stay in memory: what must survive is in a store.
    """

    def decorate(
        function: Callable[Concatenate[DayRun, P], R],
    ) -> Callable[Concatenate[DayRun, P], R]:
        @functools.wraps(function)
        def timed(run: DayRun, /, *args: P.args, **kwargs: P.kwargs) -> R:
            started = time.monotonic()
            LOG.debug("%s  %s starts", run.label, name)
            result = function(run, *args, **kwargs)
            run.record(name, time.monotonic() - started, **_figures(result))
            return result

        policy = task(
            name=name,
            retries=retries,
            retry_delay_seconds=[2.0 * 2**index for index in range(retries)] or None,
            timeout_seconds=timeout_seconds,
            cache_policy=NO_CACHE,
            persist_result=False,
        )
        return cast(Callable[Concatenate[DayRun, P], R], policy(timed))

    return decorate


def _figures(result: Any) -> dict[str, Figure]:
    """Return what a result counts about itself, when it is a value that says so."""
    counted = getattr(result, "figures", None)
    if not isinstance(counted, dict):
        return {}
    return {key: value for key, value in counted.items() if not isinstance(value, dict)}
