"""What a predictor uses of its machine and what its tokens cost, read when somebody scrapes."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from serving.gpus import Gpus

PREFIX = "serin_predictor_"
TOKENS_PER_PRICE = 1e6
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class ResourceCollector(Collector):
    """CPU, memory and GPUs of one process with its children, and the price of its tokens.

    `prices` are those of a million tokens by direction; empty: nothing is said of cost.
    `tokens` are those counted so far, `spans` those of its traces by what became of them.
    """

    def __init__(
        self,
        labels: Mapping[str, str],
        gpus: Gpus,
        prices: Mapping[str, float],
        tokens: Callable[[], Mapping[str, float]],
        spans: Callable[[], Iterable[tuple[str, int]]],
    ) -> None:
        self._names, self._values = tuple(labels), tuple(labels.values())
        self._gpus = gpus
        self._prices = prices
        self._tokens = tokens
        self._spans = spans
        self._process = psutil.Process()
        self._started = time.monotonic()
        self._limit_bytes = memory_limit_bytes()

    def collect(self) -> Iterator[Metric]:
        """Yield everything as Prometheus' client wants it."""
        cpu_seconds, memory_bytes = self._usage()
        yield self._counter("cpu_seconds", "CPU time, children included", cpu_seconds)
        yield self._gauge("memory_bytes", "Resident memory, children included", memory_bytes)
        yield self._gauge("memory_limit_bytes", "Memory there may be", self._limit_bytes)
        spans = CounterMetricFamily(
            PREFIX + "trace_spans",
            "Spans by whether somebody took them",
            labels=(*self._names, "outcome"),
        )
        for outcome, count in self._spans():
            spans.add_metric((*self._values, outcome), count)
        yield spans
        if self._gpus.count:
            held = (time.monotonic() - self._started) * self._gpus.count
            yield self._counter("gpu_seconds", "GPU time held: GPUs times seconds", held)
            yield from self._gpu_families()
        if self._prices:
            yield from self._cost_families()

    def _usage(self) -> tuple[float, float]:
        seconds = memory = 0.0
        for process in (self._process, *self._process.children(recursive=True)):
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    seconds += times.user + times.system
                    memory += process.memory_info().rss
            except psutil.Error:
                continue  # it has just ended
        return seconds, memory

    def _gpu_families(self) -> Iterator[Metric]:
        texts = {
            "gpu_memory_bytes": "GPU memory in use",
            "gpu_memory_limit_bytes": "GPU memory there is",
            "gpu_utilization_ratio": "Share of the last moment in which the GPU worked",
        }
        families = {name: self._family(name, text, "gpu") for name, text in texts.items()}
        for gpu in self._gpus.read():
            figures = (gpu.used_bytes, gpu.total_bytes, gpu.utilization)
            for family, value in zip(families.values(), figures, strict=True):
                family.add_metric((*self._values, gpu.index), value)
        yield from families.values()

    def _cost_families(self) -> Iterator[Metric]:
        price = self._family("price_per_million_tokens", "Configured price", "direction")
        for direction, value in self._prices.items():
            price.add_metric((*self._values, direction), value)
        yield price
        tokens = self._tokens()
        cost = sum(self._prices.get(name, 0.0) * count for name, count in tokens.items())
        yield self._counter("cost", "Price of the tokens so far", cost / TOKENS_PER_PRICE)

    def _family(self, name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(PREFIX + name, text, labels=(*self._names, *labels))

    def _gauge(self, name: str, text: str, value: float) -> Metric:
        found = self._family(name, text)
        found.add_metric(self._values, value)
        return found

    def _counter(self, name: str, text: str, value: float) -> Metric:
        found = CounterMetricFamily(PREFIX + name, text, labels=self._names)
        found.add_metric(self._values, value)
        return found


def memory_limit_bytes(cgroup: Path = CGROUP_LIMIT) -> int:
    """Return the memory that this process may use: its control group's, else the machine's."""
    total = int(psutil.virtual_memory().total)
    try:
        return min(int(cgroup.read_text()), total)
    except (OSError, ValueError):  # no control group, or "max"
        return total
