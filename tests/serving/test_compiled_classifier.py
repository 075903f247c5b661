"""A compiled classifier in the serving process: batches of any size, without torch."""

import subprocess
import sys
from pathlib import Path

import pytest

from core.classifiers import GRAPH_NAME
from core.errors import IntegrityError
from serving.classifier import Classifier
from training.classifier import ClassifierConfig, train_classifier
from training.classifier_graph import CompiledClassifier, GraphConfig, compile_classifier

TEXTS = ("thank you so much", "great help, thanks", "you are an idiot", "shut up, you fool")
LABELS = ("kind", "kind", "rude", "rude")


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> CompiledClassifier:
    config = ClassifierConfig(buckets_log2=9, hidden=(16, 8), epochs=40, learning_rate=5e-3)
    trained = train_classifier(config, TEXTS, LABELS)
    return compile_classifier(GraphConfig(rows=3), trained, tmp_path_factory.mktemp("classifier"))


@pytest.mark.parametrize("count", [0, 1, 3, 4, 7])
def test_any_number_of_texts_is_answered_in_order(compiled: CompiledClassifier, count: int) -> None:
    classifier = Classifier(compiled.path, compiled.digest)
    texts = [TEXTS[index % 4] for index in range(count)]
    found = classifier.probabilities(texts)
    assert [max(one, key=lambda name: one[name]) for one in found] == [
        LABELS[index % 4] for index in range(count)
    ]
    assert all(sum(one.values()) == pytest.approx(1) for one in found)


def test_a_text_is_judged_alike_alone_and_in_company(compiled: CompiledClassifier) -> None:
    classifier = Classifier(compiled.path)
    together = classifier.probabilities(list(TEXTS))
    for text, found in zip(TEXTS, together, strict=True):
        (alone,) = classifier.probabilities([text])
        assert alone == pytest.approx(found, abs=1e-6)


def test_it_needs_no_torch_and_no_compiler(compiled: CompiledClassifier) -> None:
    code = (
        "import sys; from pathlib import Path; from serving.classifier import Classifier; "
        f"Classifier(Path({str(compiled.path)!r})).probabilities(['hello']); "
        "print({'torch', 'iree.compiler', 'iree.turbine'} & set(sys.modules))"
    )
    root = Path(__file__).resolve().parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == "set()", done.stderr


def test_another_graph_than_the_manifests_is_refused(
    compiled: CompiledClassifier, tmp_path: Path
) -> None:
    with pytest.raises(IntegrityError, match="not the promised one"):
        Classifier(compiled.path, "0" * 64)
    for path in compiled.path.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / GRAPH_NAME).unlink()
    with pytest.raises(IntegrityError, match="no compiled classifier"):
        Classifier(tmp_path)
