"""A ledger and an in-memory control plane for each test."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rollout.conductor import Conductor
from rollout.fake_inference_service import FakeInferenceServices
from rollout.ledger import Ledger


@pytest.fixture
def fast_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: for tests with thousands of durable writes."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as name:
        yield Path(name)


@pytest.fixture
def ledger(fast_folder: Path) -> Iterator[Ledger]:
    opened = Ledger(f"sqlite:///{fast_folder}/ledger.db")
    yield opened
    opened.close()


@pytest.fixture
def services() -> FakeInferenceServices:
    return FakeInferenceServices()


@pytest.fixture
def conductor(ledger: Ledger, services: FakeInferenceServices) -> Conductor:
    return Conductor(ledger, services, "flow")
