"""Slots are bounded, given in order, and never lost when somebody leaves."""

import asyncio

import pytest

from serving.admission import Admission
from serving.api_errors import ApiError


async def test_slots_are_given_first_come_first_served() -> None:
    admission = Admission(concurrency=2, queue_requests_max=2)
    order: list[str] = []

    async def work(name: str, wanted: int, leave: asyncio.Event) -> None:
        async with admission.slots(wanted):
            order.append(name)
            await leave.wait()

    leave = [asyncio.Event() for _ in range(3)]
    tasks = []
    for name, wanted, event in (
        ("small", 1, leave[0]),
        ("big", 2, leave[1]),
        ("late", 1, leave[2]),
    ):
        tasks.append(asyncio.create_task(work(name, wanted, event)))
        await asyncio.sleep(0)
    assert (order, admission.waiting, admission.running) == (["small"], 2, 1)
    with pytest.raises(ApiError, match="2 requests wait") as caught:
        async with admission.slots(1):
            pass
    assert caught.value.status == 429
    tasks[1].cancel()  # the one in front leaves: the next must not stay behind it
    await asyncio.gather(tasks[1], return_exceptions=True)
    await asyncio.sleep(0)
    assert (order, admission.waiting, admission.running) == (["small", "late"], 0, 2)
    for event in leave:
        event.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert (admission.waiting, admission.running) == (0, 0)


async def test_a_slot_given_while_its_owner_leaves_is_not_lost() -> None:
    admission = Admission(concurrency=1, queue_requests_max=5)

    async def hold() -> None:
        async with admission.slots(1):
            await asyncio.sleep(0)

    async with admission.slots(1):
        waiting = [asyncio.create_task(hold()) for _ in range(3)]
        await asyncio.sleep(0)
    waiting[0].cancel()  # its slot was given as this one's block ended
    await asyncio.gather(*waiting, return_exceptions=True)
    assert (admission.waiting, admission.running) == (0, 0)
