"""What most commands work on: a state folder of the test's own, and its ledger."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from core.settings import Settings
from rollout.ledger import Ledger


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    monkeypatch.setenv("SERIN_HOME", str(tmp_path))
    return Settings.read()


@pytest.fixture
def ledger(settings: Settings) -> Iterator[Ledger]:
    opened = Ledger(settings.ledger_url)
    yield opened
    opened.close()
