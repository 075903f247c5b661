"""A small text classifier of fixed shape: hashed character n-grams, two hidden layers, classes.

Knows texts and labels; knows neither how it is compiled nor who asks it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from core.classifiers import TextFeatures
from core.errors import InputError
from training.loop import limited_threads


class ClassifierConfig(BaseModel):
    """The classifier's shape and how it is trained."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    buckets_log2: int = Field(
        default=12, ge=6, le=20, description="features, as a power of two: 12 gives 4096"
    )
    lengths: tuple[int, int] = Field(
        default=(2, 4), description="shortest and longest character n-gram"
    )
    hidden: tuple[int, ...] = Field(default=(256, 64), description="widths of the hidden layers")
    epochs: int = Field(default=20, ge=0, le=1000, description="passes over the texts")
    batch_rows: int = Field(default=32, ge=1, le=4096, description="texts per optimiser step")
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="Adam's step size")
    weight_decay: float = Field(default=1e-4, ge=0, description="AdamW's decoupled weight decay")
    seed: int = Field(default=7, ge=0, description="seed of initial weights and order")
    threads: int = Field(default=1, ge=1, le=1024, description="CPU threads")

    @property
    def features(self) -> TextFeatures:
        """How a text becomes a row."""
        return TextFeatures(1 << self.buckets_log2, self.lengths)


@dataclass(frozen=True, slots=True)
class TrainedClassifier:
    """A torch module from [rows, buckets] to [rows, classes], which are probabilities."""

    module: Any
    classes: tuple[str, ...]
    features: TextFeatures


def train_classifier(
    config: ClassifierConfig, texts: Sequence[str], labels: Sequence[str]
) -> TrainedClassifier:
    """Train on (text, label) pairs; the same arguments give the same weights.

    Raises InputError when the pairs do not match or name fewer than two classes.
    """
    import torch

    classes = tuple(sorted(set(labels)))
    if len(texts) != len(labels) or len(classes) < 2:
        raise InputError(
            f"{len(texts)} texts have {len(labels)} labels of {len(classes)} classes; give each "
            "text one label, of at least two classes"
        )
    rows = torch.from_numpy(config.features.rows(texts))
    numbers = torch.tensor([classes.index(label) for label in labels])
    with limited_threads(config.threads), torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        logits = new_classifier(config, len(classes))
        _fit(config, logits, rows, numbers)
    module = torch.nn.Sequential(logits, torch.nn.Softmax(dim=-1)).eval()
    return TrainedClassifier(module, classes, config.features)


def new_classifier(config: ClassifierConfig, classes: int) -> Any:
    """Return the untrained layers, from [rows, buckets] to [rows, classes] logits."""
    import torch

    widths = [1 << config.buckets_log2, *config.hidden]
    layers: list[Any] = []
    for before, after in zip(widths, widths[1:], strict=False):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    return torch.nn.Sequential(*layers, torch.nn.Linear(widths[-1], classes))


def _fit(config: ClassifierConfig, logits: Any, rows: Any, numbers: Any) -> None:
    import torch

    optimiser = torch.optim.AdamW(
        logits.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    for _ in range(config.epochs):
        for batch in torch.randperm(len(rows)).split(config.batch_rows):
            loss = torch.nn.functional.cross_entropy(logits(rows[batch]), numbers[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
