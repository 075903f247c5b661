"""Which earlier rows are seen again, so that new slices do not push out the old ones.

Pure choice by seed; knows neither the lake nor the model.
"""

from collections import defaultdict
from collections.abc import Sequence

from core.contracts import Record
from core.digests import digest_bytes
from training.config import TrainConfig


def replay_count(rows: int, config: TrainConfig) -> int:
    """Return how many rows make up `replay_share` of all rows beside `rows` new ones."""
    wanted = round(rows * config.replay_share / (1 - config.replay_share))
    return min(wanted, config.replay_rows_max)


def choose_replay(
    rows: Sequence[Record], earlier: Sequence[Record], config: TrainConfig
) -> list[Record]:
    """Choose earlier rows in equal numbers per (slice, answer), seeded, without repetition.

    Balance matters more than proportion: a rare answer is the first to be forgotten. Records that
    are among the new rows are left out. The order of `earlier` does not matter.
    """
    new = {row.record_id for row in rows}
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in {row.record_id: row for row in earlier}.values():
        if record.record_id not in new:
            groups[(record.slice_name, record.response)].append(record)
    queues = [
        sorted(group, key=lambda record: _draw(record.record_id, config.seed))
        for group in groups.values()
    ]
    # Groups take turns in a seeded order: with fewer places than answers none is always left out.
    queues.sort(key=lambda queue: _draw(queue[0].record_id, config.seed), reverse=True)
    ranked = [
        (turn, place, record)
        for place, queue in enumerate(queues)
        for turn, record in enumerate(queue)
    ]
    ranked.sort(key=lambda item: item[:2])
    return [record for _, _, record in ranked[: replay_count(len(rows), config)]]


def _draw(record_id: str, seed: int) -> str:
    return digest_bytes(f"{seed}:{record_id}".encode())
