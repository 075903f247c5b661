"""Which requests are traced, decided before any span exists: one that is not costs next to nothing.

Reads W3C trace contexts (w3.org/TR/trace-context); makes no span.
"""

import random
import re
import time
from dataclasses import dataclass

from core.telemetry import TelemetrySettings

TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?:-.*)?")
SAMPLED = 1
RATIO_BITS = 64


@dataclass(frozen=True, slots=True)
class Parent:
    """The span of whoever asks, and whether it is recorded there."""

    trace_id: int
    span_id: int
    sampled: bool

    @property
    def header(self) -> str:
        """The traceparent header that says so."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.sampled):02x}"


def read_parent(header: str) -> Parent | None:
    """Return what a traceparent header says; None for one that says nothing valid."""
    found = TRACEPARENT.fullmatch(header)
    if found is None:
        return None
    trace_id, span_id = int(found[1], 16), int(found[2], 16)
    if not (trace_id and span_id):
        return None
    return Parent(trace_id, span_id, bool(int(found[3], 16) & SAMPLED))


class RequestSampler:
    """OpenTelemetry's samplers by their names; without one, so many requests per second.

    `trusting`: who asks is a process of ours that has decided already. Anybody else's wish to be
    traced counts as a request like the others, unless a sampler says to follow it.
    """

    def __init__(self, settings: TelemetrySettings, trusting: bool) -> None:
        self._name = settings.sampler.removeprefix("parentbased_")
        self._follows = settings.sampler.startswith("parentbased_") or (
            trusting and not settings.sampler
        )
        self._ratio = settings.sampler_argument
        self._interval = 1 / settings.traces_per_second if settings.traces_per_second else 0.0
        self._next = 0.0

    def wants(self, parent: Parent | None) -> bool:
        """Whether to record a request."""
        if parent is not None and self._follows:
            return parent.sampled
        if self._name == "always_on":
            return True
        if self._name == "traceidratio":
            if parent is None:
                return random.random() < self._ratio
            drawn = parent.trace_id & ((1 << RATIO_BITS) - 1)
            return drawn < self._ratio * (1 << RATIO_BITS)
        if self._name or (parent is not None and not parent.sampled):
            return False
        return self._interval > 0 and self._is_due()

    def _is_due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval
        return True
