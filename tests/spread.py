"""The parts of a day done here, one after the other: what a task runner does elsewhere."""

from collections.abc import Callable, Sequence
from typing import Any


def in_order(step: Callable[[Any], Any], orders: Sequence[Any]) -> list[Any]:
    return [step(order) for order in orders]
