"""Fixtures of the lake's tests: a data folder and a lake in a temporary folder."""

from collections.abc import Callable
from pathlib import Path

import pytest
from lake_rows import MAPPING, Row, to_lines

from lake.sources import IngestConfig
from lake.table import Lake


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def lake(tmp_path: Path) -> Lake:
    return Lake(str(tmp_path / "lake"))


@pytest.fixture
def config(data: Path) -> IngestConfig:
    return IngestConfig(data=str(data), mapping=MAPPING, rows_min=5)


@pytest.fixture
def write_day(data: Path) -> Callable[[int, list[Row]], Path]:
    def write(day: int, rows: list[Row]) -> Path:
        path = data / f"day-{day}.jsonl"
        path.write_bytes(to_lines(rows))
        return path

    return write
