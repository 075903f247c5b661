"""The stored classifier: read only when whole, scored by windows, each script by its model."""

from pathlib import Path

import msgspec
import numpy as np
import pytest

from core.errors import IntegrityError
from core.ngrams import ngram_buckets
from core.text_scores import (
    CARD_NAME,
    WEIGHTS_NAME,
    ScoreCard,
    ScriptShape,
    load_scores,
    save_scores,
)

BUCKETS = 1 << 12
LENGTHS = (2, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model that knows two words: `bad` in English, 坏 in Chinese."""
    weights = {}
    for script, word, lengths in (("en", " bad ", LENGTHS), ("zh", "坏", (2, 2))):
        weights[script] = np.zeros(BUCKETS, dtype=np.float16)
        weights[script][ngram_buckets(word.strip(), lengths, BUCKETS)] = 30
    shapes = {
        "en": ScriptShape(LENGTHS, BUCKETS, -8.0),
        "zh": ScriptShape((2, 2), BUCKETS, -8.0),
    }
    card = ScoreCard("words", 0.7, shapes, "", "MIT", [], "by hand", {}, [])
    save_scores(tmp_path, card, weights)
    return tmp_path


def test_each_script_is_scored_by_its_own_model(folder: Path) -> None:
    scores, card = load_scores(folder)
    assert card.name == "words"
    assert scores.score("a bad day") > 0.7 > scores.score("a good day")
    assert scores.score("坏天气") > 0.7 > scores.score("好天气")
    assert scores.score("привет") < 0.1
    assert scores.score("") == 0


def test_a_long_harmless_text_hides_nothing(folder: Path) -> None:
    scores, _ = load_scores(folder)
    padding = "the weather is fine today and everybody is happy about it. " * 20
    assert scores.score(padding) < 0.5
    assert scores.score(f"{padding} bad bad bad bad bad bad bad bad bad {padding}") > 0.7


def test_a_changed_model_is_refused(folder: Path) -> None:
    weights = folder / WEIGHTS_NAME
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    with pytest.raises(IntegrityError, match="not what its model card names"):
        load_scores(folder)


@pytest.mark.parametrize("name", [WEIGHTS_NAME, CARD_NAME])
def test_a_missing_part_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(IntegrityError, match=name):
        load_scores(folder)


def test_a_card_for_other_weights_is_refused(folder: Path) -> None:
    card = msgspec.json.decode((folder / CARD_NAME).read_bytes())
    card["scripts"]["en"]["buckets"] = BUCKETS * 2
    (folder / CARD_NAME).write_bytes(msgspec.json.encode(card))
    with pytest.raises(IntegrityError, match="lacks the weights of en"):
        load_scores(folder)


def test_ngrams_are_the_same_everywhere() -> None:
    """Bucket numbers are part of the stored model: they may never change."""
    assert ngram_buckets("ab", (2, 3), 1 << 10).tolist() == [251, 417, 449, 845, 1003]
    assert len(ngram_buckets("", (3, 3), 1 << 10)) == 0
