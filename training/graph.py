"""From merged weights to a compiled graph: export, the named optimisations, stable bytes.

Knows optimum, nncf, OpenVINO and its tokenizers; knows neither adapters nor who serves the graph.
"""

import io
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import InputError
from training.base import load_model
from training.batches import load_tokenizer
from training.config import BundleConfig, Optimisation

MODEL_FILE = "openvino_model.xml"
TOKENIZER_FILE = "openvino_tokenizer.xml"
DETOKENIZER_FILE = "openvino_detokenizer.xml"
COUNTED_NAME = re.compile(r"\b([A-Z][A-Za-z0-9]*_|Model)(\d+)(?![A-Za-z0-9])")
NAME_ATTRIBUTE = re.compile(r'\b((?:output_)?names?)="([^"]*)"')


@dataclass(frozen=True, slots=True)
class BuildStep:
    """One step of a build: its seconds, and the bytes of weights or files that it left.

    `operations` counts the graph's nodes after a step that worked on the graph, else it is 0.
    """

    name: str
    seconds: float
    bytes: int
    operations: int = 0


def compile_graph(config: BundleConfig, weights: Path, folder: Path) -> list[BuildStep]:
    """Write OpenVINO's graph of the model, stateful, and of its tokenizer and detokenizer.

    Raises InputError for an architecture that OpenVINO cannot compile.
    """
    import openvino

    steps: list[BuildStep] = []
    exported = folder / "exported"
    started = time.monotonic()
    with quiet():
        _export(weights, exported)
        graph = openvino.Core().read_model(exported / MODEL_FILE)
        steps.append(_graph_step("export", started, graph))
        for name, optimise in GRAPH_OPTIMISATIONS.items():
            if name in config.optimisations:
                started = time.monotonic()
                graph = optimise(config, graph)
                steps.append(_graph_step(name, started, graph))
        started = time.monotonic()
        _write_graph(graph, folder / MODEL_FILE)
        del graph
        for path in exported.glob("*.json"):
            path.rename(folder / path.name)
        shutil.rmtree(exported)
        _write_tokenizer(weights, folder)
    steps.append(BuildStep("write", time.monotonic() - started, folder_bytes(folder)))
    return steps


def folder_bytes(folder: Path) -> int:
    """Return the size of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _graph_step(name: str, started: float, graph: Any) -> BuildStep:
    nodes = graph.get_ops()
    constants = (node for node in nodes if node.get_type_name() == "Constant")
    size = sum(node.get_byte_size() for node in constants)
    return BuildStep(name, time.monotonic() - started, size, len(nodes))


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


def _fuse(_: BundleConfig, graph: Any) -> Any:
    """Fold constants and fuse operations now, once, instead of at each start of a predictor."""
    from openvino._offline_transformations import apply_moc_transformations

    apply_moc_transformations(graph, cf=True)
    return graph


def _compress_weights(config: BundleConfig, graph: Any) -> Any:
    import nncf
    from openvino._offline_transformations import compress_model_transformation

    if config.weight_precision == "fp16":
        compress_model_transformation(graph)
    if config.weight_precision not in ("int8", "int4"):
        return graph
    logging.getLogger("nncf").setLevel(logging.ERROR)  # its import has just set it
    with redirect_stdout(io.StringIO()):  # its progress bar is not for a log
        if config.weight_precision == "int8":
            return nncf.compress_weights(graph, mode=nncf.CompressWeightsMode.INT8_ASYM)
        # A layer whose width the group does not divide gets smaller groups, or else int8.
        adjusted = nncf.GroupSizeFallbackMode.ADJUST
        return nncf.compress_weights(
            graph,
            mode=nncf.CompressWeightsMode.INT4_SYM,
            ratio=1.0,
            group_size=config.int4_group_size,
            advanced_parameters=nncf.AdvancedCompressionParameters(
                group_size_fallback_mode=adjusted
            ),
        )


def _compress_cache(config: BundleConfig, graph: Any) -> Any:
    graph.set_rt_info(config.kv_cache_precision, ["runtime_options", "KV_CACHE_PRECISION"])
    return graph


GRAPH_OPTIMISATIONS: Mapping[Optimisation, Callable[[BundleConfig, Any], Any]] = {
    "fusion": _fuse,
    "weight_compression": _compress_weights,
    "cache_compression": _compress_cache,
}
"""In the order in which they are done; batching is the scheduler's and changes no graph."""


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


def _write_tokenizer(weights: Path, folder: Path) -> None:
    from openvino_tokenizers import convert_tokenizer

    tokenizer = load_tokenizer(weights)
    tokenizer.save_pretrained(str(folder))
    encoder, decoder = convert_tokenizer(tokenizer, with_detokenizer=True)
    _write_graph(encoder, folder / TOKENIZER_FILE)
    _write_graph(decoder, folder / DETOKENIZER_FILE)


@contextmanager
def quiet() -> Iterator[None]:
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
