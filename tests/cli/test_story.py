"""Stories: read strictly, merged under a person's options, and held against what happened."""

from pathlib import Path
from typing import Any

import pytest

from cli.run import _parameters, _wrong
from cli.story import Story, read_story
from core.errors import ConfigurationError

ROOT = Path(__file__).resolve().parent.parent.parent


def row(day: str, ended: str, before: float | None = None, after: float | None = None) -> Any:
    return {
        "day": day,
        "final_state": ended,
        "reason": "",
        "quality_before": before,
        "quality_after": after,
    }


def test_the_shipped_story_fits_the_sample_and_the_flow() -> None:
    from flows.retrain import retrain

    told = read_story(ROOT / "samples/story.yaml")
    days = {path.stem for path in (ROOT / "samples/days").glob("*.jsonl")}
    assert set(told.days) == days
    assert told.has_faults
    assert told.settings["canary"]["requests_min"] >= 200
    ingest = {"data": str(ROOT / "samples/days"), "mapping": {}, "evaluation": {"uri": ""}}
    retrain.validate_parameters(_parameters(told, ingest, None))


@pytest.mark.parametrize(
    ("text", "where"),
    [("rps: -1", "rps"), ("days: {a: {}}", "days.a.ends"), ("x: 1", "x"), ("a: [", "not YAML")],
)
def test_a_broken_story_names_what_is_wrong(tmp_path: Path, text: str, where: str) -> None:
    path = tmp_path / "story.yaml"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=where):
        read_story(path)
    with pytest.raises(ConfigurationError, match="no story"):
        read_story(tmp_path / "absent.yaml")


def test_options_go_over_the_story() -> None:
    told = Story(settings={"ingest": {"rows_min": 9, "mapping": {"prompt": "text"}}})
    ingest = {"data": "/d", "mapping": {"prompt": "q"}, "evaluation": {"uri": "e.jsonl"}}
    found = _parameters(told, ingest, "/models/base")
    assert found["ingest"]["rows_min"] == 9
    assert found["ingest"]["mapping"] == {"prompt": "q"}
    assert found["ingest"]["evaluation"]["uri"].endswith("/e.jsonl")
    assert found["base"] == {"source": "/models/base"}


def test_a_day_that_ends_otherwise_is_a_problem() -> None:
    told = Story.model_validate({"days": {"d": {"ends": "Promoted", "improves": True}}})
    assert _wrong(row("d", "Promoted", 0.8, 0.9), told) == []
    assert "did not improve" in _wrong(row("d", "Promoted", 0.9, 0.9), told)[0]
    assert "not Promoted" in _wrong(row("d", "Rolled back", 0.8, 0.9), told)[0]


def test_without_a_story_only_unnamed_ends_are_problems() -> None:
    assert _wrong(row("d", "Stopped by gates"), Story()) == []
    assert _wrong(row("d", "Crashed"), Story())
