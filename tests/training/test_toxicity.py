"""The toxicity model: trained from files, measured on unseen ones; the shipped one holds."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from core.digests import digest_bytes
from core.errors import InputError
from core.text_scores import load_scores
from training import toxicity
from training.toxicity import THRESHOLD, train

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "serving" / "safety" / "models"
SHARED = ROOT.parent / "shared" / "data"
ROWS = 60
needs_data = pytest.mark.skipif(
    not (SHARED / "cold").is_dir(), reason=f"the data sets are not in {SHARED}"
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Small data sets in the real files' forms, whose labels follow from single words."""
    random = np.random.default_rng(0)
    folder = tmp_path / "data"
    for name in ("cold", "toxicity_en", "clinc150"):
        (folder / name).mkdir(parents=True)
    fillers = ["天气", "城市", "朋友", "学校", "电影", "音乐"]
    for name in ("train", "dev"):
        with (folder / "cold" / f"{name}.csv").open("w", encoding="utf-8-sig") as file:
            rows = csv.writer(file)
            rows.writerow(["", "split", "topic", "label", "TEXT"])
            for at in range(ROWS):
                said = "".join(random.choice(fillers, 4)) + ("真恶心" if at % 2 else "很漂亮")
                rows.writerow([at, name, "region", at % 2, f"{said}{at}{name}"])
    words = ["weather", "city", "friend", "school", "film", "music"]
    with (folder / "toxicity_en" / "train.csv").open("w") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "is_toxic"])
        for at in range(ROWS):
            said = " ".join(random.choice(words, 5)) + (" disgusting" if at % 2 else " lovely")
            rows.writerow([f"{said} {at}", "Toxic" if at % 2 else "Not Toxic"])
    for name in ("day-01", "day-02", "eval", "out_of_scope"):
        lines = [
            json.dumps({"text": f"play {' '.join(random.choice(words, 3))} {name} {at}"})
            for at in range(ROWS)
        ]
        (folder / "clinc150" / f"{name}.jsonl").write_text("\n".join(lines))
    return folder


def test_a_model_is_trained_measured_and_stored(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toxicity, "BENIGN_ROWS", 30)
    monkeypatch.setattr(toxicity, "FOLDS", 2)
    card = train(data, tmp_path / "model", tmp_path / "no samples")
    for script in ("en", "zh"):
        measured = card.measured[f"{script} held out"]
        assert measured["area_under_curve"] > 0.9
        assert 0 < measured["toxic"] < measured["texts"]
    assert card.measured["clinc150 eval, benign"]["queries"] == ROWS
    scores, stored = load_scores(tmp_path / "model")
    assert stored == card
    assert scores.score("这个城市真恶心") > scores.score("这个城市很漂亮")
    assert scores.score("what a disgusting film") > scores.score("what a lovely film")


def test_missing_data_is_named(data: Path, tmp_path: Path) -> None:
    (data / "cold" / "dev.csv").unlink()
    with pytest.raises(InputError, match=r"dev\.csv cannot be read"):
        train(data, tmp_path / "model", tmp_path)


def test_the_shipped_card_names_the_shipped_weights_and_meets_the_goal() -> None:
    _, card = load_scores(SHIPPED)
    assert card.threshold == THRESHOLD
    assert card.measured["clinc150 eval, benign"]["queries"] == 4500
    assert card.measured["clinc150 eval, benign"]["false_positive_rate"] <= 0.01
    assert {item["name"] for item in card.data} == {"cold", "toxicity_en", "clinc150", "samples"}
    assert card.measured["our samples, benign, learnt from"]["false_positives"] == 0
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 3 << 20


@needs_data
def test_the_shipped_figures_can_be_measured_again() -> None:
    scores, card = load_scores(SHIPPED)
    queries = (SHARED / "clinc150" / "eval.jsonl").read_text(encoding="utf-8").splitlines()
    wrong = sum(scores.score(json.loads(line)["text"]) >= THRESHOLD for line in queries)
    assert wrong == card.measured["clinc150 eval, benign"]["false_positives"]
    english = toxicity.read_english(SHARED)
    found = [scores.score(text) >= THRESHOLD for text in english.held_out.texts]
    recall = np.mean(np.array(found)[english.held_out.labels == 1])
    assert round(float(recall), 4) == card.measured["en held out"]["recall"]


@needs_data
def test_the_card_tells_which_files_it_was_trained_on() -> None:
    _, card = load_scores(SHIPPED)
    for item in card.data:
        for name, digest in item.get("sha256", {}).items():
            assert digest_bytes((SHARED / item["name"] / name).read_bytes()) == digest
