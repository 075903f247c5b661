"""From a trained classifier through MLIR to a compiled graph that was checked against it.

Exports with iree-turbine and compiles with IREE for a CPU; knows no text and no server.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from core.classifiers import ClassifierManifest, write_classifier
from core.digests import digest_bytes
from core.errors import ConfigurationError, IntegrityError
from training.classifier import TrainedClassifier

Pass = Literal[
    "inline", "canonicalize", "cse", "dead_symbols", "unit_dimensions", "elementwise_fusion",
    "constant_evaluation", "constant_hoisting", "aggressive_fusion", "data_tiling",
]  # fmt: skip
MLIR_PASSES: Mapping[Pass, str] = {
    "inline": "inline",
    "canonicalize": "canonicalize",
    "cse": "cse",
    "dead_symbols": "symbol-dce",
    "unit_dimensions": "linalg-fold-unit-extent-dims",
    "elementwise_fusion": "linalg-fuse-elementwise-ops",
}
"""Run on the imported module, in the order in which the configuration names them. The compiler
leaves an unknown name out and says so on stderr only, so names that it knows stand here."""
COMPILER_PASSES: Mapping[Pass, str] = {
    "constant_evaluation": "iree-opt-const-eval",
    "constant_hoisting": "iree-opt-const-expr-hoisting",
    "aggressive_fusion": "iree-dispatch-creation-enable-aggressive-fusion",
    "data_tiling": "iree-opt-data-tiling",
}
"""Stages of IREE's own pipeline: each is switched on or off, its place is IREE's."""
CHECK_ROUNDS = 4


class GraphConfig(BaseModel):
    """How the classifier is compiled, and how near to torch it must stay."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    passes: tuple[Pass, ...] = Field(
        default=tuple(name for name in get_args(Pass) if name != "data_tiling"),
        description="compiler passes; one that is not named is not done",
    )
    level: Literal["O0", "O1", "O2", "O3"] = Field(default="O3", description="effort of the rest")
    target_cpu: str = Field(
        default="x86-64-v3",
        pattern=r"^[a-z0-9-]+$",
        description="oldest processor that must run it; host: this one alone",
    )
    rows: int = Field(default=1, ge=1, le=1024, description="texts per call: the fixed shape")
    difference_max: float = Field(
        default=1e-5, gt=0, description="largest difference of a probability from torch's"
    )


@dataclass(frozen=True, slots=True)
class CompiledClassifier:
    """A compiled classifier's folder, its digest, and how far it is from torch."""

    path: Path
    digest: str
    difference: float


def compile_classifier(
    config: GraphConfig, trained: TrainedClassifier, folder: Path
) -> CompiledClassifier:
    """Compile for `config.rows` texts a call, compare with torch, write graph and manifest.

    The same arguments give the same digest. Raises ConfigurationError when the compiler refuses
    its options, IntegrityError when the compiled graph gives other probabilities than torch.
    """
    graph = compile_graph(config, export_module(config, trained))
    difference = largest_difference(config, trained, graph)
    if not difference <= config.difference_max:
        raise IntegrityError(
            f"the compiled classifier differs from torch by {difference:.3g}, "
            f"{config.difference_max:g} allowed; compile it with fewer passes"
        )
    manifest = ClassifierManifest(
        classes=trained.classes,
        features=trained.features,
        rows=config.rows,
        passes=config.passes,
        target_cpu=config.target_cpu,
        graph_digest=digest_bytes(graph),
    )
    write_classifier(folder, manifest, graph)
    return CompiledClassifier(folder, manifest.digest, difference)


def export_module(config: GraphConfig, trained: TrainedClassifier) -> str:
    """Return the module as MLIR text in the torch dialect, weights included."""
    import torch
    from iree.turbine import aot

    example = torch.zeros(config.rows, trained.features.buckets)
    with warnings.catch_warnings():  # torch deprecates what the exporter still calls
        warnings.simplefilter("ignore", FutureWarning)
        return str(aot.export(trained.module, args=(example,)).mlir_module)


def compile_graph(config: GraphConfig, module: str) -> bytes:
    """Return the module compiled for `config.target_cpu`. Raises ConfigurationError."""
    from iree.compiler.tools import CompilerToolError, compile_str

    pipeline = ",".join(MLIR_PASSES[name] for name in config.passes if name in MLIR_PASSES)
    options = [f"--iree-llvmcpu-target-cpu={config.target_cpu}", f"--iree-opt-level={config.level}"]
    for name, option in COMPILER_PASSES.items():
        options.append(f"--{option}={'true' if name in config.passes else 'false'}")
    if pipeline:
        options.append(f"--iree-preprocessing-pass-pipeline=builtin.module({pipeline})")
    try:
        graph: bytes = compile_str(
            module, target_backends=["llvm-cpu"], input_type="torch", extra_args=options
        )
    except CompilerToolError as error:
        lines = [line for line in str(error).splitlines() if "error:" in line]
        raise ConfigurationError(
            f"IREE does not compile the classifier for {config.target_cpu}: "
            f"{lines[0] if lines else error}"
        ) from error
    return graph


def largest_difference(config: GraphConfig, trained: TrainedClassifier, graph: bytes) -> float:
    """Return max |compiled - torch| over fixed rows as dense as texts' are, and an empty one."""
    import torch

    generator = torch.Generator().manual_seed(0)
    shape = (config.rows, trained.features.buckets)
    filled = [torch.rand(shape, generator=generator) for _ in range(CHECK_ROUNDS)]
    run, found = load_graph(graph), []
    with torch.inference_mode():
        for rows in [torch.zeros(shape), *(item * (item > 0.95) for item in filled)]:
            found.append((torch.from_numpy(run(rows.numpy())) - trained.module(rows)).abs().max())
    return float(torch.stack(found).max())


def load_graph(graph: bytes) -> Any:
    """Return a function of one numpy array that runs the compiled graph on this thread."""
    from iree import runtime

    main = runtime.load_vm_flatbuffer(graph, driver="local-sync").main
    return lambda rows: main(rows).to_host()
