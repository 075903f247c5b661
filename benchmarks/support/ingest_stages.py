"""The stages of the one pass, each timed alone over the same blocks, on one core."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from core.contracts import Message
from lake.cleaning import clean, shape
from lake.config import IngestConfig
from lake.preparation import Intake, prepare_block
from lake.readers import RawBlock
from lake.sensitive import scrub_many
from lake.sketches import IndexRow, sketch
from lake.sources import day_blocks, list_days
from lake.tokens import token_ids
from validation.records import check_rows

MEGABYTE = 1_000_000
Timed = Callable[[str, Callable[[], Any]], Any]
"""timed(stage, action) -> the action's result, its CPU seconds counted for the stage."""


def stage_rates(path: Path, config: IngestConfig, blocks_max: int) -> list[dict[str, Any]]:
    """Return MB of input per CPU second of each stage, and of the preparation as a whole."""
    blocks = []
    seconds: dict[str, float] = {}

    def timed(name: str, action: Callable[[], Any]) -> Any:
        began = time.process_time()
        result = action()
        seconds[name] = seconds.get(name, 0.0) + time.process_time() - began
        return result

    found = day_blocks(list_days(str(path)).days[0], config)
    for _ in range(blocks_max):
        block = timed("read and cut into blocks", lambda: next(found, None))
        if block is not None:
            blocks.append(block)
    intake = Intake("day", path.name, "0" * 64, config, check_rows, time.time())
    prepare_block(blocks[0], intake)
    for block in blocks:
        _one_block(block, intake, timed)
    size = sum(block.size_bytes for block in blocks) / MEGABYTE
    return [
        {"name": name, "megabytes": round(size, 1), "cpu_seconds": round(spent, 3),
         "megabytes_per_cpu_second": round(size / spent, 1) if spent else None}
        for name, spent in seconds.items()
    ]  # fmt: skip


def _one_block(
    block: RawBlock, intake: Intake, timed: Callable[[str, Callable[[], Any]], Any]
) -> None:
    config = intake.config
    raw = timed("decode", lambda: block.decoded(config.row_bytes_max))
    values = [row.value for row in raw if row.value is not None]
    shaped = timed("shape", lambda: [shape(value, config.mapping) for value in values])
    checked = [row.checked for row in shaped]
    refused = {
        item.index for item in timed("contract", lambda: check_rows(checked, intake.judged_at))
    }
    good = [row for index, row in enumerate(shaped) if index not in refused]
    rows = timed("normalise and digest", lambda: clean(good, list))
    texts = [text for row in rows for text in (*_contents(row.messages), row.response)]
    timed("personal data", lambda: scrub_many(texts))
    asked = [
        IndexRow(row.content_digest, "\n".join(_contents(row.messages)), row.response)
        for row in rows
    ]
    timed("sketch for near duplicates", lambda: sketch(asked, config.duplicates))
    if config.tokenizer:
        timed("count tokens", lambda: token_ids(texts, config.tokenizer))
    whole = "all of a block's preparation" + (", with tokens" if config.tokenizer else "")
    timed(whole, lambda: prepare_block(block, intake))


def _contents(messages: tuple[Message, ...]) -> list[str]:
    return [message.content for message in messages]
