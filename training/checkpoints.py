"""A training's state on disk: weights that learn, optimiser moments, random state and the step.

One safetensors file, replaced atomically; knows nothing about models or data.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.errors import IntegrityError

CHECKPOINT_NAME = "checkpoint.safetensors"


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stood: steps done, tokens and seconds spent, smoothed loss."""

    job: str
    step: int
    tokens: int
    seconds: float
    loss: float


def save_checkpoint(folder: Path, progress: Progress, tensors: Mapping[str, Any]) -> None:
    """Replace the checkpoint in `folder`; a kill at any moment leaves the old or the new one."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{CHECKPOINT_NAME}.{os.getpid()}.partial"
    metadata = {"progress": msgspec.json.encode(progress).decode()}
    save_file(dict(tensors), str(partial), metadata=metadata)
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(partial, folder / CHECKPOINT_NAME)


def load_checkpoint(folder: Path, job: str) -> tuple[Progress, dict[str, Any]] | None:
    """Return the checkpoint of `job`, or None when there is none of exactly this job.

    Raises IntegrityError when the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = folder / CHECKPOINT_NAME
    if not path.is_file():
        return None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            progress = msgspec.json.decode(metadata["progress"], type=Progress)
            if progress.job != job:
                return None
            return progress, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"{path} cannot be read: {error}; delete it to start anew") from error
