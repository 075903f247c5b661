"""Tokens are counted as the tokenizer's own library counts them."""

from pathlib import Path

import pytest
from lake_rows import make_rows, plain_check, to_lines
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from core.errors import InputError
from lake.sources import IngestConfig, list_days
from lake.table import Lake
from lake.tokens import count_tokens

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
    assert count_tokens(TEXTS, str(tokenizer)) == expected
    with pytest.raises(InputError, match="no tokenizer"):
        count_tokens(TEXTS, str(tokenizer / "none"))


def test_a_day_tells_the_tokens_of_its_kept_rows(
    lake: Lake, config: IngestConfig, data: Path, tokenizer: Path
) -> None:
    (data / "day-1.jsonl").write_bytes(to_lines([*make_rows(5), *make_rows(2)]))
    counting = config.model_copy(update={"tokenizer": str(tokenizer)})
    report = lake.ingest_day(list_days(config.data).days[0], counting, plain_check)
    texts = [f"{row['text']}\n{row['intent']}" for row in make_rows(5)]
    assert report.tokens == sum(count_tokens(texts, str(tokenizer)))
    assert lake.versions()[0].tokens == report.tokens
