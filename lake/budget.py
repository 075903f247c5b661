"""Keeps a snapshot within the training budget without holding more rows than are weighed.

Rows are counted by slice, then drawn by digest while they are read, then chosen among.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from lake.config import SelectionConfig
from lake.selection import Selected, plan_draw, select
from lake.table import Lake

Keep = Callable[[Mapping[str, Any]], bool]
"""Whether a stored row is kept."""
COLUMNS = ["prompt", "response", "slice_name", "content_digest"]


def within_budget(
    lake: Lake,
    versions: Collection[int],
    config: SelectionConfig,
    read: Callable[[Keep | None], pa.Table],
) -> tuple[pa.Table, Selected | None]:
    """Return the rows of a snapshot, training and held-out ones, and how they were chosen.

    `read` returns the versions' rows that are to be kept (None: all). Without a budget that is all.
    Held-out rows are thinned as the training rows are.
    """
    counts = {} if config.rows_max is None else lake.slice_counts(versions)
    if config.rows_max is None or sum(counts.values()) <= config.rows_max:
        return read(None), None
    table = read(plan_draw(config, counts).takes)
    held_out = table["held_out"].to_numpy()
    training = np.flatnonzero(~held_out)
    rows = table.select(COLUMNS).take(training).to_pylist()
    chosen, selected = select(config, rows, counts)
    keep = held_out.copy()
    keep[training[chosen]] = True
    return table.filter(pa.array(keep)), selected
