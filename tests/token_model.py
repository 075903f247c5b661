"""A tiny token-classification model, made here, that knows three words."""

from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "zorblax", "quint", "lives", "in", "mossgard", "and"]
LABELS = ["O", "B-PER", "I-PER", "B-LOC"]
LABEL_OF = {"zorblax": "B-PER", "quint": "I-PER", "mossgard": "B-LOC"}


def make_token_model(path: Path) -> Path:
    """A BERT without layers that matter: each word's embedding is its label's logit."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForTokenClassification, PreTrainedTokenizerFast

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
