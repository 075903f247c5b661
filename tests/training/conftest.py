"""A tiny base, adapter and bundle, made once: real training on rows that are easy to learn."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from core.contracts import Message, Record
from training.base import BaseRef, build_base
from training.bundle import BundleRef, build_bundle
from training.config import BaseConfig, BundleConfig, TrainConfig
from training.lora import AdapterRef, train_adapter

THINGS = ("kettle", "lamp", "jacket", "chair", "tent", "clock", "rug", "helmet")
OPENINGS = ("", "hi ", "please ", "well ", "你好，")
ASKED = {
    "track": ("where is my {}", "has the {} been sent"),
    "cancel": ("cancel the {}", "i no longer want the {}"),
    "refund": ("give me money back for the {}", "refund the {}"),
    "repair": ("the {} is broken", "my {} stopped working"),
}
LATER = {"warranty": ("is the {} still under guarantee", "how long is the {} covered")}


def make_rows(asked: Mapping[str, tuple[str, ...]], day: str = "day-1") -> list[Record]:
    """Every opening, phrase and thing once; the answer is the intent's name."""
    return [
        Record(
            record_id=f"{day}-{intent}-{index}-{thing}-{opening}",
            day=day,
            created_at="2026-05-01T00:00:00+00:00",
            slice_name="late" if intent in LATER else "early",
            messages=(Message("user", opening + phrase.format(thing)),),
            response=intent,
        )
        for intent, phrases in asked.items()
        for index, phrase in enumerate(phrases)
        for thing in THINGS
        for opening in OPENINGS
    ]


TINY = {"hidden_size": 64, "layers": 2, "heads": 2, "kv_heads": 1, "context_length": 256}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def rows() -> list[Record]:
    return make_rows(ASKED)


@pytest.fixture(scope="session")
def later_rows() -> list[Record]:
    return make_rows(LATER, "day-2")


@pytest.fixture(scope="session")
def base_config() -> BaseConfig:
    return BaseConfig(**TINY, vocabulary=500, epochs=8, learning_rate=4e-3, threads=1)


@pytest.fixture(scope="session")
def train_config() -> TrainConfig:
    return TrainConfig(rank=8, epochs=4, threads=1)


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@pytest.fixture(scope="session")
def base(base_config: BaseConfig, rows: list[Record], models: Path) -> BaseRef:
    return build_base(base_config, rows, models)


@pytest.fixture(scope="session")
def adapter(
    train_config: TrainConfig, base: BaseRef, rows: list[Record], models: Path
) -> AdapterRef:
    return train_adapter(train_config, base, rows, [], None, models / "adapter-1")


@pytest.fixture(scope="session")
def bundle(base: BaseRef, adapter: AdapterRef, models: Path) -> BundleRef:
    return build_bundle(BundleConfig(), base, adapter, "snapshot-1", models / "bundles")
