"""From base and adapter to a serving bundle: merged weights, compiled graph, manifest with digests.

Knows peft, optimum, nncf and OpenVINO's tokenizers; knows nothing about who serves the bundle.
"""

import io
import logging
import os
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.digests import digest_files, digest_folder
from core.errors import InputError, IntegrityError
from core.manifests import BundleManifest, write_manifest
from training.base import BaseRef, load_model
from training.batches import load_tokenizer
from training.config import BundleConfig
from training.lora import AdapterRef, load_adapter

WEIGHTS_FOLDER = "weights"
OPENVINO_FOLDER = "openvino"
MODEL_FILE = "openvino_model.xml"
TOKENIZER_FILE = "openvino_tokenizer.xml"
DETOKENIZER_FILE = "openvino_detokenizer.xml"
CONTEXT_LENGTH_UNKNOWN = 2048
COUNTED_NAME = re.compile(r"\b([A-Z][A-Za-z0-9]*_|Model)(\d+)\b")
NAME_ATTRIBUTE = re.compile(r'\b((?:output_)?names?)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class BundleRef:
    """A bundle's folder `bundles/<digest>`, how long it took to build and its size."""

    path: Path
    digest: str
    seconds: float
    bytes: int


def build_bundle(
    config: BundleConfig, base: BaseRef, adapter: AdapterRef, snapshot_id: str, bundles: Path
) -> BundleRef:
    """Merge, compile and describe; the finished folder appears at once as `bundles/<digest>`.

    The same arguments give the same bytes, hence the same digest. Raises IntegrityError when the
    adapter's files are not those of its digest, InputError for an architecture that OpenVINO
    cannot compile.
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
        with _quiet():
            context_length = _merge(base, adapter, partial / WEIGHTS_FOLDER)
            _compile(config, partial / WEIGHTS_FOLDER, partial / OPENVINO_FOLDER)
        manifest = BundleManifest(
            base_digest=base.digest,
            adapter_digest=adapter.digest,
            snapshot_id=snapshot_id,
            context_length=context_length,
            files=digest_files(partial),
            settings=config.model_dump(mode="json"),
        )
        write_manifest(partial, manifest)
        folder = bundles / manifest.digest
        _place(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return BundleRef(folder, manifest.digest, time.monotonic() - started, size)


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


def _compile(config: BundleConfig, weights: Path, folder: Path) -> None:
    """Write OpenVINO's graph of the model, stateful, and of its tokenizer and detokenizer."""
    import openvino
    from openvino_tokenizers import convert_tokenizer

    exported = folder / "exported"
    _export(weights, exported)
    graph = openvino.Core().read_model(exported / MODEL_FILE)
    if config.weight_precision == "int8":
        graph = _compress(graph)
    graph.set_rt_info(config.kv_cache_precision, ["runtime_options", "KV_CACHE_PRECISION"])
    _write_graph(graph, folder / MODEL_FILE)
    del graph
    for path in exported.glob("*.json"):
        path.rename(folder / path.name)
    shutil.rmtree(exported)
    tokenizer = load_tokenizer(weights)
    tokenizer.save_pretrained(str(folder))
    encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    _write_graph(encoder, folder / TOKENIZER_FILE)
    _write_graph(decoder, folder / DETOKENIZER_FILE)


def _export(weights: Path, folder: Path) -> None:
    from optimum.exporters.openvino import export_from_model
    from optimum.intel.openvino import OVConfig

    model = load_model(weights)
    try:
        export_from_model(
            model,
            folder,
            task="text-generation-with-past",
            stateful=True,
            ov_config=OVConfig(dtype="fp32"),
        )
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"OpenVINO cannot compile a {model.config.model_type} model: {error}; choose another "
            "base or the reference engine"
        ) from error


def _compress(graph: Any) -> Any:
    import nncf

    with redirect_stdout(io.StringIO()):  # its progress bar is not for a log
        return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)


def _write_graph(graph: Any, path: Path) -> None:
    """Save a graph under names that do not count what the process converted before it."""
    import openvino

    openvino.save_model(graph, path, compress_to_fp16=False)
    counted: dict[str, str] = {}

    def rename(match: re.Match[str]) -> str:
        return counted.setdefault(match[0], f"{match[1]}{len(counted)}")

    def rename_attribute(match: re.Match[str]) -> str:
        return f'{match[1]}="{COUNTED_NAME.sub(rename, match[2])}"'

    path.write_text(NAME_ATTRIBUTE.sub(rename_attribute, path.read_text()))


def _place(partial: Path, folder: Path) -> None:
    try:
        os.rename(partial, folder)
    except OSError:
        if not folder.is_dir():
            raise
        # The same bundle was built before: its name is its content, so it stays.


@contextmanager
def _quiet() -> Iterator[None]:
    """Tracing warns about every branch on a shape, and nncf draws tables: neither tells us more."""
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    nncf_logger = logging.getLogger("nncf")
    level = nncf_logger.level
    nncf_logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        nncf_logger.setLevel(level)
