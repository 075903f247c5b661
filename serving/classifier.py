"""A compiled text classifier: texts in, a probability per class out, on the thread that asks.

Knows IREE's runtime and the classifier's folder; knows nothing of how it was trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from core.classifiers import GRAPH_NAME, verify_classifier
from core.errors import UnavailableError


class Classifier:
    """One loaded classifier. Not for several threads at once: IREE's context is not locked."""

    def __init__(self, folder: Path, expected_digest: str | None = None) -> None:
        """Load and warm up. Raises IntegrityError for another graph than the manifest names,
        UnavailableError when this machine cannot run it."""
        self._manifest = verify_classifier(folder, expected_digest)
        self.classes = self._manifest.classes
        self._run = _load(folder / GRAPH_NAME)
        self.probabilities([""])

    def probabilities(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Return {class: probability 0..1} of each text, in order."""
        count, rows = len(texts), self._manifest.rows
        features = self._manifest.features.rows(texts)
        missing = -count % rows  # the shape is fixed: the last call is filled up with empty rows
        features = np.pad(features, ((0, missing), (0, 0)))
        parts = [self._run(features[at : at + rows]) for at in range(0, len(features), rows)]
        found = [row for part in parts for row in part.tolist()][:count]
        return [dict(zip(self.classes, row, strict=True)) for row in found]


def _load(path: Path) -> Any:
    from iree import runtime

    try:
        module = runtime.load_vm_flatbuffer_file(str(path), driver="local-sync")
    except (RuntimeError, ValueError) as error:
        raise UnavailableError(
            f"{path} cannot run on this machine: {error}; compile it for an older target_cpu"
        ) from error
    return lambda rows: module.main(rows).to_host()
