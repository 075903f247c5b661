"""Trains the safety chain's toxicity model: a linear classifier of English and of Chinese text.

`python -m training.toxicity --data FOLDER --out FOLDER` reads cold/, toxicity_en/ and clinc150/ of
the data folder and our own samples, and writes the weights and a model card with what it measured.
"""

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from core.digests import digest_bytes, digest_file
from core.errors import InputError
from core.ngrams import ngram_buckets
from core.plain_text import HAN
from core.text_scores import (
    ScoreCard,
    ScriptShape,
    ScriptWeights,
    TextScores,
    save_scores,
    scored_form,
    sigmoid,
    windows,
)

THRESHOLD = 0.7
FOLDS = 5
HELD_OUT_SHARE = 0.2
BENIGN_ROWS = 2000
BENIGN_WEIGHT = 0.3
"""Comments are one kind of text: queries keep the model from taking another kind for toxic."""
QUERY, ANSWER = "text", "intent"
"""Fields of the daily files: an answer is the name of an intent, such as jump_start."""
SAMPLES = Path(__file__).resolve().parent.parent / "samples" / "days"
FALSE_POSITIVES_QUERIES_MAX = 0.003
FALSE_POSITIVES_COMMENTS_MAX = 0.08
"""Where the threshold is put, on texts that a fold's model has not seen: at most so many of the
benign queries (the published goal is 1 %), and of the comments labelled harmless."""
SHAPES = {"en": ((2, 5), 1 << 17, 30.0), "zh": ((1, 3), 1 << 17, 6.0)}
"""Script -> (shortest and longest n-gram, buckets, inverse strength of the L2 penalty)."""
LIMITS = [
    "English was learnt from a few hundred comments of social media, Chinese from comments on "
    "race, region and gender: other topics and styles are scored less surely.",
    "Irony, quotation and coded insults are not understood.",
    "A score is no proof of intent; it is one filter of a chain.",
]


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts with labels: 1 is toxic."""

    texts: tuple[str, ...]
    labels: NDArray[np.int64]

    def where(self, chosen: Sequence[int] | NDArray[Any]) -> "Texts":
        """Return the rows of these indices."""
        return Texts(tuple(self.texts[index] for index in chosen), self.labels[chosen])


@dataclass(frozen=True, slots=True)
class Data:
    """What one language learns from and is measured on."""

    train: Texts
    held_out: Texts
    learnt: tuple[str, ...]
    """Benign queries and answers to learn from."""
    unseen: tuple[str, ...]
    """Benign queries that only place the threshold (English only)."""


def read_chinese(folder: Path, samples: Sequence[str] = ()) -> Data:
    """Read COLD; texts of its training file that occur in dev.csv too are left out of training."""
    train, held_out = (_cold(folder / "cold" / name) for name in ("train.csv", "dev.csv"))
    seen = {scored_form(text) for text in held_out.texts}
    kept = [at for at, text in enumerate(train.texts) if scored_form(text) not in seen]
    own = tuple(text for text in samples if HAN.search(text))
    return Data(train.where(kept), held_out, own, ())


def read_english(folder: Path, samples: Sequence[str] = ()) -> Data:
    """Read the English comments, a fifth held out by digest, and CLINC150's training queries."""
    rows = _rows(folder / "toxicity_en" / "train.csv", ("text", "is_toxic"))
    labels = np.array([row["is_toxic"] == "Toxic" for row in rows], dtype=np.int64)
    whole = Texts(tuple(row["text"] for row in rows), labels)
    drawn = [int(digest_bytes(scored_form(text).encode())[:8], 16) for text in whole.texts]
    out = np.array(drawn) < HELD_OUT_SHARE * 2**32
    queries = [text for file in _days(folder) for text in _queries(file)]
    answers = sorted({text for file in _days(folder) for text in _queries(file, ANSWER)})
    queries.sort(key=lambda text: digest_bytes(text.encode()))
    own = tuple(text for text in samples if not HAN.search(text))
    return Data(
        whole.where(np.flatnonzero(~out)),
        whole.where(np.flatnonzero(out)),
        (*queries[:BENIGN_ROWS], *answers, *own),
        tuple(queries[BENIGN_ROWS:]),
    )


def read_samples(folder: Path) -> tuple[str, ...]:
    """Return the distinct queries and answers of daily files; malformed rows have none."""
    found: dict[str, None] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            values = (row.get(name) for name in (QUERY, ANSWER)) if isinstance(row, dict) else ()
            found.update((value, None) for value in values if isinstance(value, str))
    return tuple(found)


def fit(texts: Texts, script: str, benign: Sequence[str] = ()) -> ScriptWeights:
    """Return a logistic regression on binary n-grams, each text of length one (L2)."""
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    lengths, buckets, strength = SHAPES[script]
    every = [*texts.texts, *benign]
    rows = [ngram_buckets(scored_form(text), lengths, buckets) for text in every]
    values = np.concatenate([np.full(len(row), 1 / np.sqrt(max(1, len(row)))) for row in rows])
    starts = np.cumsum([0, *map(len, rows)])
    matrix = csr_matrix((values, np.concatenate(rows), starts), shape=(len(rows), buckets))
    labels = np.concatenate([texts.labels, np.zeros(len(benign), dtype=np.int64)])
    weight = np.concatenate([np.ones(len(texts.texts)), np.full(len(benign), BENIGN_WEIGHT)])
    model = LogisticRegression(C=strength, max_iter=1000, solver="liblinear", random_state=0)
    model.fit(matrix, labels, sample_weight=weight)
    shape = ScriptShape(lengths, buckets, float(model.intercept_[0]))
    # rounded now, so that what is measured is what is stored
    return ScriptWeights(shape, model.coef_[0].astype(np.float16).astype(np.float32))


def fit_and_place(data: Data, script: str) -> ScriptWeights:
    """Fit on everything; then shift the intercept so that THRESHOLD is where errors are bounded.

    The place comes from cross-validation: each text is scored by a model that has not seen it.
    """
    from sklearn.model_selection import StratifiedKFold

    learnt, unseen = data.learnt, data.unseen
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    harmless: list[float] = []
    queries = np.zeros(len(unseen))
    for train, rest in folds.split(data.train.texts, data.train.labels):
        model = fit(data.train.where(train), script, learnt)
        rows = data.train.where(rest)
        harmless += [
            log_odds(model, text)
            for text, label in zip(rows.texts, rows.labels, strict=True)
            if not label
        ]
        queries += np.array([log_odds(model, text) for text in unseen]) / FOLDS
    places = [float(np.quantile(harmless, 1 - FALSE_POSITIVES_COMMENTS_MAX))]
    if unseen:
        places.append(float(np.quantile(queries, 1 - FALSE_POSITIVES_QUERIES_MAX)))
    model = fit(data.train, script, learnt)
    wanted = float(np.log(THRESHOLD / (1 - THRESHOLD)))
    bias = model.shape.bias - max(places) + wanted
    shape = ScriptShape(model.shape.lengths, model.shape.buckets, bias)
    return ScriptWeights(shape, model.weights)


def log_odds(model: ScriptWeights, text: str) -> float:
    """Return the highest log-odds of a text's windows."""
    parts = windows(scored_form(text)) or [""]
    return max(model.log_odds(parts))


def measure(model: ScriptWeights, texts: Texts) -> dict[str, float | int]:
    """Return precision, recall and false positives at THRESHOLD, and the area under the curve."""
    from sklearn.metrics import roc_auc_score

    scores = np.array([sigmoid(log_odds(model, text)) for text in texts.texts])
    toxic, found = texts.labels == 1, scores >= THRESHOLD
    hits = int((found & toxic).sum())
    return {
        "texts": len(scores),
        "toxic": int(toxic.sum()),
        "precision": round(hits / max(1, int(found.sum())), 4),
        "recall": round(hits / max(1, int(toxic.sum())), 4),
        "false_positive_rate": round(float(found[~toxic].mean()), 4),
        "area_under_curve": round(float(roc_auc_score(texts.labels, scores)), 4),
    }


def measure_benign(scores: TextScores, queries: Sequence[str]) -> dict[str, float | int]:
    """Return how many benign queries reach THRESHOLD, scored as serving scores."""
    wrong = sum(scores.score(text) >= THRESHOLD for text in queries)
    rate = round(wrong / max(1, len(queries)), 5)
    return {"queries": len(queries), "false_positives": wrong, "false_positive_rate": rate}


def train(folder: Path, out: Path, samples: Path = SAMPLES) -> ScoreCard:
    """Read, fit, measure and write; return the model card. Raises InputError for missing data."""
    own = read_samples(samples)
    data = {"en": read_english(folder, own), "zh": read_chinese(folder, own)}
    models = {script: fit_and_place(found, script) for script, found in data.items()}
    measured: dict[str, Any] = {
        f"{script} held out": measure(model, data[script].held_out)
        for script, model in models.items()
    }
    scores = TextScores(models)
    for name in ("eval", "out_of_scope"):
        queries = _queries(folder / "clinc150" / f"{name}.jsonl")
        measured[f"clinc150 {name}, benign"] = measure_benign(scores, queries)
    measured["our samples, benign, learnt from"] = measure_benign(scores, own)
    card = ScoreCard(
        name="toxicity",
        threshold=THRESHOLD,
        scripts={script: model.shape for script, model in models.items()},
        weights_sha256="",
        licence="Apache-2.0 (weights); the data's own licences are listed with the data",
        data=[*describe(folder, data), describe_samples(data)],
        method=(
            "Per script: logistic regression with L2 penalty on binary hashed character n-grams "
            "of the normalised text, scored by overlapping windows; the intercept is shifted so "
            f"that in {FOLDS}-fold cross-validation at most "
            f"{FALSE_POSITIVES_QUERIES_MAX:.1%} of unseen benign queries and "
            f"{FALSE_POSITIVES_COMMENTS_MAX:.0%} of comments labelled harmless reach the threshold."
        ),
        measured=measured,
        limits=LIMITS,
    )
    weights = {name: model.weights.astype(np.float16) for name, model in models.items()}
    return save_scores(out, card, weights)


def describe(folder: Path, data: dict[str, Data]) -> list[dict[str, Any]]:
    """Return what was read: name, source, licence, file digests, rows by use."""
    sources = (
        ("cold", "COLD, Deng et al. 2022", "Apache-2.0", "zh"),
        ("toxicity_en", "Surge AI toxicity", "MIT", "en"),
        ("clinc150", "CLINC150, Larson et al. 2019: benign queries", "CC BY 3.0", ""),
    )
    found = []
    for name, source, licence, script in sources:
        files = sorted(item for item in (folder / name).iterdir() if item.is_file())
        unseen = len(data["en"].unseen)
        rows = {"trained on": BENIGN_ROWS, "placed the threshold on": unseen}
        if script:
            both = data[script].train, data[script].held_out
            rows = {"trained on": len(both[0].texts), "held out": len(both[1].texts)}
        digests = {item.name: digest_file(item) for item in files}
        found.append(
            {"name": name, "source": source, "licence": licence, "rows": rows, "sha256": digests}
        )
    return found


def describe_samples(data: dict[str, Data]) -> dict[str, Any]:
    """Return what was learnt from our own samples."""
    learnt = len(data["zh"].learnt) + len(data["en"].learnt)
    source = "samples/days: queries and answers written for Serin, all benign"
    rows = {"trained on, with the benign rows of clinc150": learnt}
    return {"name": "samples", "source": source, "licence": "Serin's own", "rows": rows}


def _cold(file: Path) -> Texts:
    rows = _rows(file, ("TEXT", "label"))
    labels = np.array([int(row["label"]) for row in rows], dtype=np.int64)
    return Texts(tuple(row["TEXT"] for row in rows), labels)


def _rows(file: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.DictReader(stream))
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}; give its folder with --data") from error
    if not rows or any(name not in rows[0] for name in columns):
        raise InputError(f"{file} lacks the columns {', '.join(columns)}")
    return rows


def _days(folder: Path) -> list[Path]:
    return sorted((folder / "clinc150").glob("day-*.jsonl"))


def _queries(file: Path, field: str = QUERY) -> list[str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{file} cannot be read: {error}; give its folder with --data") from error
    rows = [json.loads(line) for line in lines if line.strip()]
    return [str(row[field]) for row in rows if field in row]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, write, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m training.toxicity", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets")
    parser.add_argument("--out", type=Path, required=True, help="folder of the model")
    parser.add_argument("--samples", type=Path, default=SAMPLES, help="benign daily files")
    given = parser.parse_args(arguments)
    print(json.dumps(train(given.data, given.out, given.samples).measured, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
