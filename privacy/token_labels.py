"""Names and addresses by a token-classification model: labels of tokens become spans of text.

Any transformers model with BIO or plain entity labels; what it learnt is its own affair.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.errors import ConfigurationError
from privacy.pii import Span

LABELS: Mapping[str, str] = MappingProxyType(
    {
        "PER": "PERSON", "PERS": "PERSON", "PERSON": "PERSON", "NAME": "PERSON",
        "GIVENNAME": "PERSON", "SURNAME": "PERSON", "FIRSTNAME": "PERSON", "LASTNAME": "PERSON",
        "LOC": "LOCATION", "LOCATION": "LOCATION", "GPE": "LOCATION", "ADDRESS": "LOCATION",
        "STREET": "LOCATION", "CITY": "LOCATION", "ZIPCODE": "LOCATION",
    }
)  # fmt: skip
"""Entity labels of common models, and the type that each stands for; others are left out."""
SPECIAL_TOKENS = 2


class TokenLabelsConfig(BaseModel):
    """Which model finds names and addresses, and how sure it must be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: Path = Field(description="local folder of the model and its fast tokenizer")
    score_min: float = Field(
        default=0.6, ge=0, le=1, description="mean probability below which an entity is dropped"
    )
    window_tokens: int = Field(
        default=256, ge=16, description="tokens read at once; longer texts are cut into windows"
    )
    overlap_tokens: int = Field(
        default=32, ge=0, description="tokens that neighbouring windows share"
    )
    batch_windows: int = Field(default=16, ge=1, description="windows computed at once")
    device: str = Field(default="cpu", description="torch device")


class TokenLabels:
    """A recogniser for `privacy.pii.Scanner` around a transformers token-classification model."""

    def __init__(self, config: TokenLabelsConfig, labels: Mapping[str, str] | None = None) -> None:
        from transformers import AutoModelForTokenClassification, AutoTokenizer

        if config.overlap_tokens >= config.window_tokens - SPECIAL_TOKENS:
            raise ConfigurationError("overlap_tokens must be smaller than window_tokens")
        if not (config.folder / "config.json").is_file():
            raise ConfigurationError(f"{config.folder} holds no model: give a local model folder")
        self._config = config
        self._labels = LABELS if labels is None else labels
        self._tokenizer = AutoTokenizer.from_pretrained(config.folder, local_files_only=True)
        if not self._tokenizer.is_fast:
            raise ConfigurationError(f"{config.folder} needs a fast tokenizer (tokenizer.json)")
        model = AutoModelForTokenClassification.from_pretrained(
            config.folder, local_files_only=True
        )
        self._model = model.to(config.device).eval()
        names = {index: str(name) for index, name in model.config.id2label.items()}
        self._types = {index: self._type_of(name) for index, name in names.items()}
        self._begins = {index: name.startswith("B-") for index, name in names.items()}
        if not any(self._types.values()):
            raise ConfigurationError(
                f"{config.folder} labels {sorted(names.values())}: none is a name or an address"
            )

    def recognise(self, texts: Sequence[str]) -> list[list[Span]]:
        """Return each text's entities in characters of the text; windows may report one twice."""
        found: list[list[Span]] = [[] for _ in texts]
        if not texts:
            return found
        encoded = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._config.window_tokens,
            stride=self._config.overlap_tokens,
            return_overflowing_tokens=True,
            return_offsets_mapping=True,
        )
        of_text = encoded.pop("overflow_to_sample_mapping")
        offsets = encoded.pop("offset_mapping")
        for first in range(0, len(of_text), self._config.batch_windows):
            rows = range(first, min(first + self._config.batch_windows, len(of_text)))
            batch = {name: [values[row] for row in rows] for name, values in encoded.items()}
            for row, (labels, scores) in zip(rows, self._classify(batch), strict=True):
                found[of_text[row]] += self._entities(offsets[row], labels, scores)
        return found

    def _classify(self, batch: dict[str, Any]) -> list[tuple[list[int], list[float]]]:
        import torch

        padded = self._tokenizer.pad(batch, return_tensors="pt").to(self._config.device)
        with torch.inference_mode():
            best = self._model(**padded).logits.float().softmax(dim=-1).max(dim=-1)
        return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))

    def _entities(
        self, offsets: list[tuple[int, int]], labels: list[int], scores: list[float]
    ) -> list[Span]:
        """Join neighbouring tokens of one type; a label that begins with B- starts anew."""
        spans: list[Span] = []
        current: tuple[str, int, int, list[float]] | None = None
        # Padding has no offsets: the shorter list ends the row.
        for (start, end), label, score in zip(offsets, labels, scores, strict=False):
            type_ = self._types.get(label) if end > start else None
            joins = current is not None and type_ == current[0] and not self._begins[label]
            if current is not None and joins:
                current = (current[0], current[1], end, [*current[3], score])
                continue
            if current is not None:
                spans.append(_span(*current))
            current = (type_, start, end, [score]) if type_ else None
        if current is not None:
            spans.append(_span(*current))
        return [span for span in spans if span.score >= self._config.score_min]

    def _type_of(self, label: str) -> str | None:
        plain = label[2:] if label[:2] in {"B-", "I-", "E-", "S-", "L-", "U-"} else label
        return self._labels.get(plain.upper())


def _span(type_: str, start: int, end: int, scores: list[float]) -> Span:
    return Span(type_, start, end, round(sum(scores) / len(scores), 4))
