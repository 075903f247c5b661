"""CPU, memory, GPUs and cost of a predictor process, as a scrape shows them."""

import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from serving.gpus import Gpus
from serving.predictor_metrics import PredictorMetrics
from serving.resource_metrics import ResourceCollector, memory_limit_bytes

LABELS = {"model_version": "3", "revision": "assistant-00003"}


@dataclass
class Memory:
    used: int = 30 << 30
    total: int = 80 << 30


@dataclass
class Rates:
    gpu: int = 40


class FakeNvml:
    """NVML on a machine with `gpus` GPUs, or without a driver."""

    class NVMLError(Exception):
        pass

    def __init__(self, gpus: int = 0, driver: bool = True) -> None:
        self._gpus, self._driver = gpus, driver
        self.silent: set[int] = set()

    def nvmlInit(self) -> None:
        if not self._driver:
            raise self.NVMLError("no driver")

    def nvmlDeviceGetCount(self) -> int:
        return self._gpus

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        return index

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Memory:
        if handle in self.silent:
            raise self.NVMLError("fallen off the bus")
        return Memory()

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Rates:
        return Rates()


def samples(collector: ResourceCollector) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(collector)
    return {
        sample.name + "".join(f",{v}" for k, v in sample.labels.items() if k not in LABELS): (
            sample.value
        )
        for family in registry.collect()
        for sample in family.samples
    }


def collect(gpus: Gpus, prices: dict[str, float]) -> dict[str, float]:
    tokens = {"input": 2_000_000.0, "output": 500_000.0}
    spans = [("sent", 7), ("dropped", 0)]
    return samples(ResourceCollector(LABELS, gpus, prices, lambda: tokens, lambda: spans))


def test_a_machine_without_a_gpu_has_no_gpu_series_and_without_a_price_no_cost() -> None:
    found = collect(Gpus(FakeNvml(driver=False)), {})
    assert not [name for name in found if "gpu" in name or "cost" in name or "price" in name]
    assert found["serin_predictor_memory_bytes"] < found["serin_predictor_memory_limit_bytes"]
    assert found["serin_predictor_trace_spans_total,sent"] == 7


def test_cpu_time_grows_with_work() -> None:
    collector = ResourceCollector(LABELS, Gpus(FakeNvml(driver=False)), {}, dict, list)
    before, began = samples(collector)["serin_predictor_cpu_seconds_total"], time.process_time()
    while time.process_time() < began + 0.1:  # the process's own: the figure has its children's too
        pass
    assert samples(collector)["serin_predictor_cpu_seconds_total"] >= before + 0.05


def test_each_gpu_has_its_figures_and_one_that_is_silent_none() -> None:
    nvml = FakeNvml(gpus=2)
    nvml.silent.add(1)
    found = collect(Gpus(nvml), {})
    assert found["serin_predictor_gpu_memory_bytes,0"] == 30 << 30
    assert found["serin_predictor_gpu_memory_limit_bytes,0"] == 80 << 30
    assert found["serin_predictor_gpu_utilization_ratio,0"] == 0.4
    assert "serin_predictor_gpu_memory_bytes,1" not in found
    assert found["serin_predictor_gpu_seconds_total"] >= 0


def test_tokens_cost_what_is_configured() -> None:
    found = collect(Gpus(FakeNvml(driver=False)), {"input": 0.5, "output": 2.0})
    assert found["serin_predictor_cost_total"] == pytest.approx(2 * 0.5 + 0.5 * 2.0)
    assert found["serin_predictor_price_per_million_tokens,output"] == 2.0


def test_the_counted_tokens_are_the_ones_that_cost() -> None:
    metrics = PredictorMetrics("3", "assistant-00003")
    metrics.watch_resources(Gpus(FakeNvml(driver=False)), {"input": 1.0, "output": 1.0}, list)
    metrics.tokens(600_000, 400_000)
    text = metrics.exposition(None)[0].decode()
    cost = next(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "serin_predictor_cost_total"
    )
    assert cost == pytest.approx(1.0)


def test_a_control_group_limits_the_memory(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    whole = memory_limit_bytes(limit)
    limit.write_text("1048576\n")
    assert memory_limit_bytes(limit) == 1 << 20
    limit.write_text("max\n")
    assert memory_limit_bytes(limit) == whole
