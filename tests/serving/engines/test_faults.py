"""The fault switch's memory: resident while an answer is in work, the system's again after it."""

import psutil

from serving.engines.faults import held_memory

MIB = 1 << 20
HELD = 64 * MIB


def resident() -> int:
    found: int = psutil.Process().memory_info().rss
    return found


def test_held_memory_is_resident_and_goes_back_each_time() -> None:
    before = resident()
    for _ in range(3):
        with held_memory(HELD):
            assert resident() - before > 0.9 * HELD
        assert resident() - before < 0.5 * HELD


def test_no_memory_is_held_without_the_fault() -> None:
    before = resident()
    with held_memory(0):
        assert resident() - before < MIB
