"""The GPUs that a process may use, as NVML sees them; none where there is no driver."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("serin.predictor")


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One GPU now: bytes in use and in all, share of the last moment in which it worked."""

    index: str
    used_bytes: int
    total_bytes: int
    utilization: float


class Gpus:
    """Reads every GPU of the machine; `nvml` is the module pynvml, or stands for it."""

    def __init__(self, nvml: Any = None) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        if nvml is None:
            import pynvml

            nvml = pynvml
        try:
            nvml.nvmlInit()
            self._handles = [
                nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())
            ]
            self._nvml = nvml
        except nvml.NVMLError as error:
            log.debug("no GPU is watched: %s", error)

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._handles)

    def read(self) -> Iterator[GpuReading]:
        """Yield each GPU's figures; one that cannot be asked now is left out."""
        for index, handle in enumerate(self._handles):
            try:
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
            except self._nvml.NVMLError as error:
                log.warning("GPU %d cannot be read: %s", index, error)
                continue
            yield GpuReading(str(index), int(memory.used), int(memory.total), busy)
