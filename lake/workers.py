"""Blocks prepared in this process or in several, in order, a bounded number ahead of their use."""

import gc
import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing.connection import wait

import pyarrow as pa

from lake.preparation import Intake, PreparedBlock, prepare_block
from lake.readers import RawBlock

BLOCKS_AHEAD = 3
"""Blocks that wait or are at work for each process: more are not read before one is done."""

GC_OBJECTS = 100_000


def prepared_blocks(
    blocks: Iterable[RawBlock], intake: Intake, processes: int, fields_required: bool = False
) -> Iterator[PreparedBlock]:
    """Yield each block prepared, in the order of `blocks`; `fields_required` is for the first.

    With one process the work is done here. Backpressure: blocks are read only while fewer than
    BLOCKS_AHEAD for each process wait for their turn.
    """
    if processes <= 1:
        for block in blocks:
            yield prepare_block(block, intake, fields_required)
            fields_required = False
        return
    pool = ProcessPoolExecutor(
        processes, mp_context=multiprocessing.get_context("spawn"), initializer=_begin_work
    )
    pending: deque[Future[PreparedBlock]] = deque()
    try:
        for block in blocks:
            pending.append(pool.submit(prepare_block, block, intake, fields_required))
            fields_required = False
            if len(pending) >= BLOCKS_AHEAD * processes:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin_work() -> None:
    """Leave no worker behind when the parent is killed: it would wait for work for ever.

    Blocks make many objects and no cycles, so the collector looks seldom. Arrow's own pool would
    keep what a block took: the system's gives it back, at the same speed.
    """
    pa.set_memory_pool(pa.system_memory_pool())
    gc.set_threshold(GC_OBJECTS, 50, 50)
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
