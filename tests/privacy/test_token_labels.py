"""A tiny token-classification model made here: its labels become spans of the text."""

from pathlib import Path

import pytest

from core.errors import ConfigurationError
from privacy.pii import Scanner
from privacy.token_labels import TokenLabels, TokenLabelsConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "zorblax", "quint", "lives", "in", "mossgard", "and"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
LABEL_OF = {"zorblax": "B-PER", "quint": "I-PER", "mossgard": "B-LOC"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A BERT without layers that matter: each word's embedding is its label's logit."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("model")
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
        sep_token="[SEP]", model_max_length=64,
    ).save_pretrained(path)  # fmt: skip
    config = BertConfig(
        vocab_size=len(WORDS), hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=8, max_position_embeddings=64, num_labels=len(LABELS),
        id2label=dict(enumerate(LABELS)), label2id={name: i for i, name in enumerate(LABELS)},
    )  # fmt: skip
    model = BertForTokenClassification(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for module in model.modules():
            if isinstance(module, torch.nn.LayerNorm):
                module.weight.fill_(1.0)
        for word, index in vocabulary.items():
            place = LABELS.index(LABEL_OF.get(word, "O"))
            model.bert.embeddings.word_embeddings.weight[index, place] = 4.0
        for place in range(len(LABELS)):
            model.classifier.weight[place, place] = 4.0
    model.save_pretrained(path)
    return path


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
