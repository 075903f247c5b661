"""What training and serving must agree on about a compiled text classifier: features and manifest.

Written by training/classifier_graph.py, read by serving/classifier.py; knows no weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from core.digests import digest_file, digest_json
from core.errors import IntegrityError
from core.ngrams import ngram_buckets
from core.plain_text import plain_text

MANIFEST_NAME = "classifier.json"
GRAPH_NAME = "classifier.vmfb"


@dataclass(frozen=True, slots=True)
class TextFeatures:
    """How a text becomes a row: its character n-grams of `lengths`, hashed into `buckets`."""

    buckets: int
    lengths: tuple[int, int]

    def rows(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return [texts, buckets]: 1 / sqrt(count) in each of a text's buckets, so of length 1."""
        rows = np.zeros((len(texts), self.buckets), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            found = ngram_buckets(plain_text(text), self.lengths, self.buckets)
            row[found] = 1 / max(1, len(found)) ** 0.5
        return rows


@dataclass(frozen=True, slots=True)
class ClassifierManifest:
    """A compiled classifier: [rows, features.buckets] in, a probability per class out.

    `passes` and `target_cpu` say how the graph was compiled, `graph_digest` is its SHA-256.
    """

    classes: tuple[str, ...]
    features: TextFeatures
    rows: int
    passes: tuple[str, ...]
    target_cpu: str
    graph_digest: str

    @property
    def digest(self) -> str:
        """The classifier's identity: a digest of the manifest, hence of the graph."""
        return digest_json(msgspec.to_builtins(self))


def write_classifier(folder: Path, manifest: ClassifierManifest, graph: bytes) -> None:
    """Write the graph and its manifest into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / GRAPH_NAME).write_bytes(graph)
    text = msgspec.json.format(msgspec.json.encode(manifest), indent=2)
    (folder / MANIFEST_NAME).write_bytes(text)


def verify_classifier(folder: Path, expected_digest: str | None = None) -> ClassifierManifest:
    """Return the manifest of a folder whose graph is the one that it names.

    Raises IntegrityError when a file is missing, malformed or changed.
    """
    try:
        content = (folder / MANIFEST_NAME).read_bytes()
        manifest = msgspec.json.decode(content, type=ClassifierManifest)
        actual = digest_file(folder / GRAPH_NAME)
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"{folder} is no compiled classifier: {error}") from error
    if actual != manifest.graph_digest or expected_digest not in (None, manifest.digest):
        raise IntegrityError(
            f"the classifier in {folder} is not the promised one; compile it again"
        )
    return manifest
