"""Tokens are counted as the tokenizer's own library counts them, and stored where wanted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lake_rows import Row, make_rows, plain_check, to_lines
from pydantic import ValidationError
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from core.digests import digest_file
from core.errors import InputError
from lake.config import ScaleConfig
from lake.erasure import bury, erase_rows, find_records
from lake.ingestion import settings_digest
from lake.schema import TOKEN_IDS
from lake.snapshots import create_snapshot, load_rows
from lake.sources import IngestConfig, list_days
from lake.table import IngestReport, Lake
from lake.tokens import token_ids
from tests.spread import in_order

TEXTS = ["question number 12", "我的订单在哪里？", "</s> a", "  spaces\n\nand lines ", ""]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=alphabet, show_progress=False, special_tokens=["</s>"]
    )
    made.train_from_iterator(TEXTS * 9, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_counts_are_those_of_the_library(tokenizer: Path) -> None:
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    own.encode_special_tokens = True
    expected = [len(own.encode(text, add_special_tokens=False).ids) for text in TEXTS]
    assert [len(ids) for ids in token_ids(TEXTS, str(tokenizer))] == expected
    with pytest.raises(InputError, match="no tokenizer"):
        token_ids(TEXTS, str(tokenizer / "none"))


def test_a_day_tells_the_tokens_of_its_kept_rows(
    lake: Lake, config: IngestConfig, data: Path, tokenizer: Path
) -> None:
    (data / "day-1.jsonl").write_bytes(to_lines([*make_rows(5), *make_rows(2)]))
    counting = config.model_copy(update={"tokenizer": str(tokenizer)})
    report = lake.ingest_day(list_days(config.data).days[0], counting, plain_check)
    texts = [f"{row['text']}\n{row['intent']}" for row in make_rows(5)]
    assert report.tokens == sum(map(len, token_ids(texts, str(tokenizer))))
    assert lake.versions()[0].tokens == report.tokens


def take(lake: Lake, config: IngestConfig, day: int, **changes: Any) -> IngestReport:
    chosen = IngestConfig.model_validate({**config.model_dump(), **changes})
    days = {file.day: file for file in list_days(config.data).days}
    spread = in_order if chosen.scale.spread else None
    return lake.ingest_day(days[f"day-{day}"], chosen, plain_check, spread=spread)


def stored(lake: Lake, version: int) -> dict[str, list[int]]:
    batches = [batch.to_pylist() for batch in lake.stored_tokens([version])]
    return {row["record_id"]: row["token_ids"] for batch in batches for row in batch}


def library_ids(tokenizer: Path, rows: list[Row]) -> dict[str, list[int]]:
    own = Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    own.encode_special_tokens = True
    return {
        row["id"]: own.encode(f"{row['text']}\n{row['intent']}", add_special_tokens=False).ids
        for row in rows
    }


@pytest.mark.parametrize("parts", [1, 2])
def test_stored_ids_are_those_of_the_library(
    lake: Lake,
    config: IngestConfig,
    write_day: Callable[[int, list[Row]], Path],
    tokenizer: Path,
    parts: int,
) -> None:
    rows = [{**row, "text": f"{row['text']} </s> 我的订单"} for row in make_rows(9)]
    write_day(1, [*rows, *rows[:3]])
    on = {"tokenizer": str(tokenizer), "tokens_stored": True}
    report = take(lake, config, 1, **on, scale=ScaleConfig(parts=parts))
    assert report.kept == 9
    assert stored(lake, report.version) == library_ids(tokenizer, rows)
    assert report.tokens == sum(map(len, stored(lake, report.version).values()))
    assert lake.versions()[0].tokenizer == digest_file(tokenizer / "tokenizer.json")


@pytest.mark.parametrize("parts", [1, 2])
def test_a_lake_without_the_column_gets_it_with_the_first_day_that_needs_it(
    lake: Lake,
    config: IngestConfig,
    write_day: Callable[[int, list[Row]], Path],
    tokenizer: Path,
    tmp_path: Path,
    parts: int,
) -> None:
    days = {day: make_rows(8, day * 20) for day in (1, 2, 3)}
    for day, rows in days.items():
        write_day(day, rows)
    on = {"tokenizer": str(tokenizer), "tokens_stored": True, "scale": ScaleConfig(parts=parts)}
    plain = Lake(str(tmp_path / "plain"))
    reports = [take(lake, config, day, **(on if day == 2 else {})) for day in days]
    for day in days:
        take(plain, config, day)
    assert [report.kept for report in reports] == [8, 8, 8]
    held = [stored(lake, report.version) for report in reports]
    assert held == [{}, library_ids(tokenizer, days[2]), {}]
    assert all(TOKEN_IDS.name not in row for rows in lake.rows([2, 4, 6]) for row in rows)
    snapshots = [
        create_snapshot(found, None, (), tmp_path / f"snapshots-{name}", 1)
        for name, found in (("with", lake), ("without", plain))
    ]
    assert snapshots[0] is not None
    assert snapshots[1] is not None
    assert snapshots[0].snapshot_id == snapshots[1].snapshot_id
    assert load_rows(snapshots[0]) == load_rows(snapshots[1])
    assert take(lake, config, 1).already_ingested


def test_erasing_a_record_takes_its_ids_and_leaves_the_others(
    lake: Lake, config: IngestConfig, write_day: Callable[[int, list[Row]], Path], tokenizer: Path
) -> None:
    days = {day: make_rows(8, day * 20) for day in (1, 2)}
    for day, rows in days.items():
        write_day(day, rows)
    take(lake, config, 1)
    version = take(lake, config, 2, tokenizer=str(tokenizer), tokens_stored=True).version
    gone = ["r21", "r41"]
    found = find_records(lake, gone)
    bury(lake, gone, found, "b" * 32, 1)
    assert erase_rows(lake, gone, found, "b" * 32, 1).records == 2
    left = [row for row in days[2] if row["id"] != "r41"]
    assert stored(lake, version) == library_ids(tokenizer, left)
    assert lake.statistics().rows == 14


def test_storing_needs_a_tokenizer_and_belongs_to_a_files_settings(
    config: IngestConfig, tokenizer: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValidationError, match="token ids need a tokenizer"):
        IngestConfig(data="days", tokens_stored=True)
    off = config.model_copy(update={"tokenizer": str(tokenizer)})
    on = off.model_copy(update={"tokens_stored": True})
    assert settings_digest(off) == settings_digest(config) != settings_digest(on)
    other = tmp_path / "other.json"
    other.write_bytes((tokenizer / "tokenizer.json").read_bytes() + b"\n")
    changed = on.model_copy(update={"tokenizer": str(other)})
    assert settings_digest(changed) != settings_digest(on)
    nothing_yet = on.model_copy(update={"tokenizer": ""})
    assert settings_digest(nothing_yet) == settings_digest(config)
    assert not nothing_yet.stores_tokens
