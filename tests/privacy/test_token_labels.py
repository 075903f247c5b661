"""A tiny token-classification model made here: its labels become spans of the text."""

from pathlib import Path

import pytest

from core.errors import ConfigurationError
from privacy.pii import Scanner
from privacy.token_labels import TokenLabels, TokenLabelsConfig
from tests.token_model import make_token_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_token_model(tmp_path_factory.mktemp("model"))


def test_labels_become_spans_of_the_text(folder: Path) -> None:
    model = TokenLabels(TokenLabelsConfig(folder=folder))
    texts = ["Zorblax Quint lives in Mossgard", "", "and Zorblax and Zorblax Zorblax"]
    found = [
        [(span.type, text[span.start : span.end]) for span in spans]
        for text, spans in zip(texts, model.recognise(texts), strict=True)
    ]
    assert found == [
        [("PERSON", "Zorblax Quint"), ("LOCATION", "Mossgard")],
        [],
        [("PERSON", "Zorblax")] * 3,
    ]
    assert model.recognise([]) == []


def test_long_texts_are_read_in_windows_and_merged_by_the_scanner(folder: Path) -> None:
    config = TokenLabelsConfig(folder=folder, window_tokens=16, overlap_tokens=4, batch_windows=3)
    scanner = Scanner(recognisers=[TokenLabels(config)])
    text = "and " * 40 + "Zorblax Quint lives in Mossgard, jo@example.com " + "and " * 40
    found = [(span.type, text[span.start : span.end]) for span in scanner.scan(text)]
    assert found == [
        ("PERSON", "Zorblax Quint"),
        ("LOCATION", "Mossgard"),
        ("EMAIL_ADDRESS", "jo@example.com"),
    ]


def test_what_is_no_model_or_names_nothing_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no model"):
        TokenLabels(TokenLabelsConfig(folder=tmp_path))
    with pytest.raises(ConfigurationError, match="none is a name"):
        TokenLabels(TokenLabelsConfig(folder=folder), labels={"GENE": "GENE"})
    with pytest.raises(ConfigurationError, match="smaller"):
        TokenLabels(TokenLabelsConfig(folder=folder, window_tokens=16, overlap_tokens=16))
