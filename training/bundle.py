"""From base and adapter to a serving bundle: merged weights, compiled graph, manifest with digests.

Knows what a bundle consists of and what is tried when it is refused; knows nothing about who
refuses or serves it.
"""

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.contracts import Figure
from core.digests import digest_files, digest_folder
from core.errors import IntegrityError
from core.manifests import ADAPTER_FOLDER, BUILD_NAME, BundleManifest, write_manifest
from training.base import BaseRef, load_model
from training.batches import load_tokenizer
from training.config import BundleConfig
from training.graph import BuildStep, compile_graph, folder_bytes, quiet
from training.lora import AdapterRef, load_adapter

WEIGHTS_FOLDER = "weights"
OPENVINO_FOLDER = "openvino"
CONTEXT_LENGTH_UNKNOWN = 2048


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a bundle is made of, and the folder that the finished one appears in."""

    config: BundleConfig
    base: BaseRef
    adapter: AdapterRef
    snapshot_id: str
    bundles: Path


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle's folder `bundles/<digest>`, how long it took to build and its size."""

    path: Path
    digest: str
    seconds: float
    bytes: int
    recipe: Recipe
    steps: tuple[BuildStep, ...] = ()

    @property
    def figures(self) -> dict[str, Figure]:
        """The weights' precision, the size, and the seconds of each step of the build."""
        seconds = {f"{step.name}_seconds": round(step.seconds, 2) for step in self.steps}
        precision = self.recipe.config.settings["weight_precision"]
        return {"precision": precision, "bytes": self.bytes, **seconds}


def build_bundle(
    config: BundleConfig, base: BaseRef, adapter: AdapterRef, snapshot_id: str, bundles: Path
) -> BundleRef:
    """Merge, compile and describe; the finished folder appears at once as `bundles/<digest>`.

    The same arguments give the same digest: it covers every file but build.json, which keeps what
    each step took. Raises IntegrityError when the adapter's files are not those of its digest,
    InputError for an architecture that OpenVINO cannot compile.
    """
    started = time.monotonic()
    actual = digest_folder(adapter.path)
    if actual != adapter.digest:
        raise IntegrityError(
            f"adapter {adapter.path} has digest {actual[:12]}, expected {adapter.digest[:12]}"
        )
    bundles.mkdir(parents=True, exist_ok=True)
    partial = bundles / f".building-{adapter.digest[:12]}-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    try:
        weights = partial / WEIGHTS_FOLDER
        with quiet():
            context_length = _merge(base, adapter, weights)
        shutil.copytree(adapter.path, partial / ADAPTER_FOLDER)
        merged = BuildStep("merge", time.monotonic() - started, folder_bytes(weights))
        steps = (merged, *compile_graph(config, weights, partial / OPENVINO_FOLDER))
        manifest = BundleManifest(
            base_digest=base.digest,
            adapter_digest=adapter.digest,
            snapshot_id=snapshot_id,
            context_length=context_length,
            files=digest_files(partial),
            settings=config.settings,
        )
        write_manifest(partial, manifest)
        (partial / BUILD_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(steps)))
        folder = bundles / manifest.digest
        _place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    seconds = time.monotonic() - started
    recipe = Recipe(config, base, adapter, snapshot_id, bundles)
    return BundleRef(folder, manifest.digest, seconds, folder_bytes(folder), recipe, steps)


def build_less_aggressive(bundle: BundleRef) -> BundleRef | None:
    """Build the same with the next wider precision; None when the ladder has no further rung.

    Raises what `build_bundle` raises.
    """
    recipe = bundle.recipe
    config = recipe.config.less_aggressive()
    if config is None:
        return None
    return build_bundle(config, recipe.base, recipe.adapter, recipe.snapshot_id, recipe.bundles)


def _merge(base: BaseRef, adapter: AdapterRef, folder: Path) -> int:
    """Write base plus adapter as an ordinary model folder; return its context length in tokens."""
    model = load_adapter(load_model(base.path), adapter.path).merge_and_unload()
    tokenizer = load_tokenizer(base.path)
    ends = model.generation_config.eos_token_id
    ends = [ends] if isinstance(ends, int) else list(ends or ())
    if tokenizer.eos_token_id not in ends:  # Training taught answers to end with this one.
        ends.append(tokenizer.eos_token_id)
    model.generation_config.eos_token_id = ends[0] if len(ends) == 1 else ends
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    model.save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    known = getattr(model.config, "max_position_embeddings", None)
    return int(known or CONTEXT_LENGTH_UNKNOWN)


def _place(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise
        # The same bundle was built before: its name is its content, so it stays.
