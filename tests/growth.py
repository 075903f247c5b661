"""How the CPU time of work grows with its size: a ratio, so neither load nor machine matters."""

import time
from collections.abc import Callable

REPEATS = 3


def growth(work: Callable[[int], object], small: int, large: int) -> float:
    """Return how many times the CPU time of `small` the work of size `large` takes.

    Linear work gives about large / small, quadratic work its square. The least of some turns
    counts, taken by turns: whatever else runs only ever makes a turn slower.
    """
    least = {small: float("inf"), large: float("inf")}
    for _ in range(REPEATS):
        for size in (small, large):
            began = time.thread_time()
            work(size)
            least[size] = min(least[size], time.thread_time() - began)
    return least[large] / least[small]
