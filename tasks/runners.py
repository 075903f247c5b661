"""Which of Prefect's task runners works on the parts of a day: local threads, Dask or Ray.

Knows runners and tasks; what the work is, lake/parts.py knows.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from prefect import Flow, task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner

from core.errors import ConfigurationError
from lake.config import ScaleConfig
from lake.spreading import Spread

RETRIES, RETRY_SECONDS = 2, 5.0


@contextmanager
def spreading(config: ScaleConfig) -> Iterator[Spread | None]:
    """Give a function that spreads steps over the configured runner; None when nothing is spread.

    A worker that dies costs a retry of its part: parts overwrite what an earlier attempt left.
    """
    if not config.spread:
        yield None
        return
    with _runner(config) as runner:

        def spread(step: Callable[[Any], Any], orders: Sequence[Any]) -> Iterator[Any]:
            work = task(
                name=step.__name__,
                retries=RETRIES,
                retry_delay_seconds=RETRY_SECONDS,
                cache_policy=NO_CACHE,
                persist_result=False,
            )(step)
            with portable_flow():
                futures = [runner.submit(work, {"order": order}) for order in orders]
            return (future.result() for future in futures)

        yield spread


@contextmanager
def portable_flow() -> Iterator[None]:
    """Let submitted tasks carry a flow of the same name that every process can load.

    A task carries its flow with it, and a deployment's flow was loaded from a file under a name
    that means nothing to Dask's and Ray's workers.
    """
    context = FlowRunContext.get()
    if context is None or context.flow is None:
        yield
        return
    with context.model_copy(update={"flow": Flow(_nothing, name=context.flow.name)}):
        yield


def _nothing() -> None:
    """Stands for a flow's body, which no worker runs."""


def _runner(config: ScaleConfig) -> TaskRunner[Any]:
    """Return the runner. Raises ConfigurationError when its package is not installed."""
    if config.runner == "local":
        return ThreadPoolTaskRunner(max_workers=config.workers)
    try:
        if config.runner == "dask":
            from prefect_dask.task_runners import DaskTaskRunner

            if config.address:
                return DaskTaskRunner(address=config.address)
            # Processes with one thread each; the dashboard would need a port of its own.
            started = {
                "n_workers": config.workers,
                "threads_per_worker": 1,
                "dashboard_address": None,
            }
            return DaskTaskRunner(cluster_kwargs=started)
        from prefect_ray.task_runners import RayTaskRunner

        if config.address:
            return RayTaskRunner(address=config.address)
        return RayTaskRunner(init_kwargs={"num_cpus": config.workers, "include_dashboard": False})
    except ImportError as error:
        raise ConfigurationError(
            f"the {config.runner} runner is not installed: {error}; install serin[{config.runner}]"
        ) from error
