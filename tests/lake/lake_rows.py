"""What the lake's tests share: rows, lines and a plain contract."""

import json
from pathlib import Path
from typing import Any

from core.contracts import Rejection
from lake.sources import FieldMapping

MAPPING = FieldMapping(prompt="text", response="intent", slice_name="domain")
SAMPLES = Path(__file__).resolve().parents[2] / "samples"
Row = dict[str, Any]


def plain_check(rows: list[Row], now_seconds: float = 0) -> list[Rejection]:
    """A contract without Great Expectations: text where text belongs."""
    wanted = ("prompt", "response", "slice_name", "record_id")
    return [
        Rejection(index, "not text")
        for index, row in enumerate(rows)
        if not all(isinstance(row[name], str) and row[name].strip() for name in wanted)
    ]


def make_rows(count: int, first: int = 0, **fields: Any) -> list[Row]:
    return [
        {
            "id": f"r{first + index}",
            "text": f"question number {first + index}",
            "intent": f"label_{(first + index) % 3}",
            "domain": "known",
            "created_at": "2026-05-01T06:00:00+00:00",
            **fields,
        }
        for index in range(count)
    ]


def to_lines(rows: list[Row]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
