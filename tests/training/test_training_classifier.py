"""A text classifier learns; compiled through MLIR it answers as torch does, the same each time."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from pydantic import ValidationError

from core.classifiers import GRAPH_NAME, TextFeatures, verify_classifier
from core.errors import ConfigurationError, InputError, IntegrityError
from training.classifier import ClassifierConfig, TrainedClassifier, train_classifier
from training.classifier_graph import (
    GraphConfig,
    Pass,
    compile_classifier,
    compile_graph,
    export_module,
    largest_difference,
    load_graph,
)

SAID = {
    "kind": ("thank you so much", "what a lovely day", "you were a great help", "多谢，辛苦了"),
    "rude": ("you are an idiot", "shut up you fool", "what a stupid answer", "你这个笨蛋"),
    "asks": ("where is my parcel", "when does the shop open", "how do I pay", "快递到哪里了"),
}
SMALL = ClassifierConfig(buckets_log2=9, hidden=(16, 8), epochs=40, learning_rate=5e-3)


@pytest.fixture(scope="module")
def trained() -> TrainedClassifier:
    pairs = [(text, label) for label, texts in SAID.items() for text in texts]
    return train_classifier(SMALL, [text for text, _ in pairs], [label for _, label in pairs])


@pytest.fixture(scope="module")
def module(trained: TrainedClassifier) -> str:
    return export_module(GraphConfig(rows=4), trained)


def test_a_texts_features_do_not_depend_on_how_its_letters_are_written() -> None:
    features = TextFeatures(512, (2, 4))
    plain, wide, other, empty = features.rows(["Hello", "ｈｅｌｌｏ", "goodbye", ""])
    assert np.array_equal(plain, wide)
    assert not np.array_equal(plain, other)
    assert np.linalg.norm(plain) == pytest.approx(1)
    assert np.isfinite(empty).all()


def test_it_learns_what_it_was_shown_and_the_same_each_time(trained: TrainedClassifier) -> None:
    import torch

    texts = [text for said in SAID.values() for text in said]
    labels = [label for label, said in SAID.items() for _ in said]
    rows = torch.from_numpy(trained.features.rows(texts))
    with torch.inference_mode():
        probabilities = trained.module(rows)
    assert [trained.classes[index] for index in probabilities.argmax(-1)] == labels
    assert torch.allclose(probabilities.sum(-1), torch.ones(len(texts)))
    again = train_classifier(SMALL, texts, labels)
    assert all(
        torch.equal(one, other)
        for one, other in zip(
            again.module.state_dict().values(), trained.module.state_dict().values(), strict=True
        )
    )


def test_labels_must_fit_the_texts() -> None:
    for texts, labels in ((["a", "b"], ["x"]), (["a", "b"], ["x", "x"]), ([], [])):
        with pytest.raises(InputError, match="give each text one label"):
            train_classifier(SMALL, texts, labels)


def test_the_compiled_graph_gives_torchs_probabilities_and_is_the_same_each_time(
    trained: TrainedClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    every = GraphConfig(rows=4, passes=get_args(Pass))
    compiled = compile_classifier(every, trained, tmp_path / "one")
    assert compiled.difference <= every.difference_max
    assert "error" not in capfd.readouterr().err, "the compiler knows every named pass"
    manifest = verify_classifier(compiled.path, compiled.digest)
    assert (manifest.classes, manifest.rows) == (trained.classes, 4)
    assert manifest.passes == every.passes
    again = compile_classifier(every, trained, tmp_path / "two")
    assert again.digest == compiled.digest
    graph = compiled.path / GRAPH_NAME
    graph.write_bytes(graph.read_bytes()[:-1] + b"x")
    with pytest.raises(IntegrityError, match="not the promised one"):
        verify_classifier(compiled.path)


def test_the_passes_of_the_configuration_are_those_that_run(
    trained: TrainedClassifier, module: str
) -> None:
    none = compile_graph(GraphConfig(rows=4, passes=(), level="O0"), module)
    tiled = compile_graph(GraphConfig(rows=4, passes=("data_tiling",), level="O0"), module)
    assert none != tiled
    for graph in (none, tiled):
        assert largest_difference(GraphConfig(rows=4), trained, graph) < 1e-5
    with pytest.raises(ValidationError, match="passes"):
        GraphConfig.model_validate({"passes": ["magic"]})


def test_a_graph_that_differs_from_torch_is_refused(
    trained: TrainedClassifier, tmp_path: Path
) -> None:
    config = GraphConfig(rows=4, difference_max=1e-30)
    with pytest.raises(IntegrityError, match="differs from torch by"):
        compile_classifier(config, trained, tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_another_models_graph_is_seen_to_differ(trained: TrainedClassifier, module: str) -> None:
    other = train_classifier(SMALL.model_copy(update={"seed": 8}), ["a", "b"], ["x", "y"])
    config = GraphConfig(rows=4)
    graph = compile_graph(config, module)
    assert load_graph(graph)(np.zeros((4, 512), dtype=np.float32)).shape == (4, 3)
    three = TrainedClassifier(trained.module[0], trained.classes, other.features)
    assert largest_difference(config, three, graph) > 0.1


def test_an_unknown_processor_is_refused(module: str) -> None:
    with pytest.raises(ConfigurationError, match="does not compile the classifier for abacus"):
        compile_graph(GraphConfig(rows=4, target_cpu="abacus"), module)
