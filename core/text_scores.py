"""A linear classifier of text per script, over hashed character n-grams; safetensors and JSON.

Written by training/toxicity.py, read by serving's safety chain: both score with this code, so
what was measured is what is shipped. Knows no policy.
"""

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.digests import digest_file
from core.errors import IntegrityError
from core.ngrams import Distinct, all_buckets
from core.plain_text import HAN, plain_text, shorten_repeats

CARD_NAME = "toxicity.json"
WEIGHTS_NAME = "toxicity.safetensors"
WINDOW_CHARACTERS = 240
WINDOW_STEP_CHARACTERS = 120
"""Longer texts are scored by overlapping windows: a long harmless text hides nothing."""
REPEATS_KEPT = 3
LATIN_LETTERS_MIN = 3
LATIN_LETTERS_BESIDE_HAN_MIN = 12
"""A few Latin letters in a Chinese text are a name, not an English text."""
NO_LETTERS = bytes(code for code in range(128) if not chr(code).isalpha())
_own = threading.local()


class ScriptShape(msgspec.Struct, frozen=True):
    """How one script's texts are cut and hashed, and the intercept of its log-odds."""

    lengths: tuple[int, int]
    buckets: int
    bias: float


class ScoreCard(msgspec.Struct, frozen=True):
    """The model card, as JSON beside the weights: what it is, from what, and what was measured."""

    name: str
    threshold: float
    scripts: dict[str, ScriptShape]
    weights_sha256: str
    licence: str
    data: list[dict[str, Any]]
    method: str
    measured: dict[str, Any]
    limits: list[str]


@dataclass(frozen=True, slots=True)
class ScriptWeights:
    """One script's classifier: `weights` has one log-odds weight for each bucket."""

    shape: ScriptShape
    weights: NDArray[np.float32]

    def log_odds(self, texts: Sequence[str]) -> list[float]:
        """Return the log-odds of the positive class for each text, already in plain form."""
        distinct = _distinct(self.shape.buckets)
        odds = []
        for buckets in all_buckets(texts, self.shape.lengths, self.shape.buckets):
            found = distinct(buckets)
            total = float(self.weights[found].sum(dtype=np.float64))
            odds.append(total / math.sqrt(max(1, len(found))) + self.shape.bias)
        return odds


class TextScores:
    """Scores a text 0..1 with the model of each script in it; the highest score counts."""

    def __init__(self, scripts: Mapping[str, ScriptWeights]) -> None:
        self._scripts = dict(scripts)

    def score(self, text: str) -> float:
        """Return the highest score of any window of `text`; 0 for a script without a model."""
        parts = windows(scored_form(text))
        han = [part for part in parts if HAN.search(part)]
        latin = [HAN.sub(" ", part) for part in parts if _latin(part)]
        return max(self._highest("zh", han), self._highest("en", latin))

    def _highest(self, script: str, parts: Sequence[str]) -> float:
        model = self._scripts.get(script)
        return sigmoid(max(model.log_odds(parts))) if model and parts else 0.0


def _latin(text: str) -> bool:
    """Whether a text has enough Latin letters to be an English one."""
    least = LATIN_LETTERS_BESIDE_HAN_MIN if HAN.search(text) else LATIN_LETTERS_MIN
    return len(text.encode("ascii", "ignore").translate(None, NO_LETTERS)) >= least


def _distinct(buckets: int) -> Distinct:
    """Return this thread's working memory."""
    kept: dict[int, Distinct] = _own.__dict__.setdefault("distinct", {})
    if buckets not in kept:
        kept[buckets] = Distinct(buckets)
    return kept[buckets]


def scored_form(text: str) -> str:
    """Return the form of a text that is cut into n-grams."""
    return shorten_repeats(plain_text(text), REPEATS_KEPT).strip()


def windows(text: str) -> list[str]:
    """Return overlapping windows of a text; a short text is its only window."""
    if len(text) <= WINDOW_CHARACTERS:
        return [text] if text else []
    starts = range(0, len(text) - WINDOW_STEP_CHARACTERS, WINDOW_STEP_CHARACTERS)
    return [text[start : start + WINDOW_CHARACTERS] for start in starts]


def sigmoid(log_odds: float) -> float:
    """Return the probability of log-odds, without overflow."""
    return 0.5 * (1.0 + math.tanh(0.5 * log_odds))


def save_scores(
    folder: Path, card: ScoreCard, weights: Mapping[str, NDArray[np.float16]]
) -> ScoreCard:
    """Write weights and card; return the card with the digest of what was written."""
    from safetensors.numpy import save

    folder.mkdir(parents=True, exist_ok=True)
    (folder / WEIGHTS_NAME).write_bytes(save(dict(weights)))
    card = msgspec.structs.replace(card, weights_sha256=digest_file(folder / WEIGHTS_NAME))
    text = msgspec.json.format(msgspec.json.encode(card), indent=2)
    (folder / CARD_NAME).write_bytes(text + b"\n")
    return card


def load_scores(folder: Path) -> tuple[TextScores, ScoreCard]:
    """Read a model. Raises IntegrityError when it is missing, malformed or changed."""
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        card = msgspec.json.decode((folder / CARD_NAME).read_bytes(), type=ScoreCard)
        if digest_file(folder / WEIGHTS_NAME) != card.weights_sha256:
            raise IntegrityError(f"{folder / WEIGHTS_NAME} is not what its model card names")
        arrays = load_file(folder / WEIGHTS_NAME)
    except (OSError, msgspec.MsgspecError, SafetensorError) as error:
        raise IntegrityError(
            f"the text model in {folder} cannot be read: {error}; run training/toxicity.py anew"
        ) from error
    missing = [
        name
        for name, shape in card.scripts.items()
        if name not in arrays or arrays[name].shape != (shape.buckets,)
    ]
    if missing:
        raise IntegrityError(f"{folder / WEIGHTS_NAME} lacks the weights of {', '.join(missing)}")
    scripts = {
        name: ScriptWeights(shape, arrays[name].astype(np.float32))
        for name, shape in card.scripts.items()
    }
    return TextScores(scripts), card
