"""What an OpenVINO pipeline may hold: tokens of a step, kernels compiled for them, cache blocks.

Kernels are compiled for each number of tokens that a step has, in about 5 ms, and take 1 to 2 MB.
"""

from dataclasses import dataclass
from pathlib import Path

import msgspec

from core.errors import IntegrityError
from core.manifests import BundleManifest
from serving.predictor_config import PredictorConfig

SMALL_MODEL_BYTES = 32 * 2**20
"""Of compiled weights; a step of such a model is shorter than compiling its kernels."""
BLOCK_TOKENS = 32
"""Tokens per cache block of OpenVINO GenAI on a CPU."""
CACHE_BYTES = {"u8": 1, "f16": 2, "bf16": 2, "f32": 4}
CACHE_GIGABYTES = 1.0
CACHE_FULL_ANSWERS = 2
"""Times all answers at full length: each new block costs the pipeline a look at all cached ones."""


@dataclass(frozen=True, slots=True)
class StepLimits:
    """Most tokens of one step, and the compiled kernels that are kept (each of one shape)."""

    tokens: int
    kernels: int


SMALL = StepLimits(tokens=128, kernels=600)
"""Kernels of every number of tokens are kept: they can all be met before the first request."""
LARGE = StepLimits(tokens=512, kernels=100)
"""Compiling is little beside a step, so few are kept; long steps read the weights less often."""


def is_small(folder: Path) -> bool:
    """Return whether compiling kernels takes longer than a step of the model in `folder`.

    Of missing weights the pipeline itself tells.
    """
    weights = folder / "openvino_model.bin"
    return not weights.exists() or weights.stat().st_size <= SMALL_MODEL_BYTES


def step_limits(folder: Path, manifest: BundleManifest, config: PredictorConfig) -> StepLimits:
    """Return a step's limits: the configuration's tokens, else the bundle's, else by model size.

    Without `dynamic_split_fuse` a prompt is one step, and the longest one must fit.
    """
    usual = SMALL if is_small(folder) else LARGE
    asked = config.batched_tokens_max or manifest.settings.get("batched_tokens_max")
    tokens = int(asked or usual.tokens)
    if not manifest.settings.get("dynamic_split_fuse", True):
        tokens = max(tokens, manifest.context_length)
    return StepLimits(tokens, usual.kernels)


def cache_blocks(folder: Path, manifest: BundleManifest, config: PredictorConfig) -> int:
    """Return the cache blocks that fit into the configured gigabytes, and no more than are useful.

    There is room for two prompts at least. The pipeline's own setting counts whole gigabytes only,
    which is too coarse for small models. Raises IntegrityError when the model's shape is unknown.
    """
    gigabytes = config.cache_gigabytes or manifest.settings.get("cache_gigabytes")
    answer = -(-manifest.context_length // BLOCK_TOKENS) + 1
    fitting = int(float(gigabytes or CACHE_GIGABYTES) * 1e9) // _block_bytes(folder, manifest)
    useful = CACHE_FULL_ANSWERS * (config.concurrency_for(manifest) + 1) * answer
    return min(max(fitting, 2 * answer), useful)


class _Shape(msgspec.Struct):
    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None


def _block_bytes(folder: Path, manifest: BundleManifest) -> int:
    try:
        shape = msgspec.json.decode((folder / "config.json").read_bytes(), type=_Shape)
    except (OSError, msgspec.MsgspecError) as error:
        raise IntegrityError(f"{folder}/config.json: {error}; build the bundle again") from error
    head = shape.head_dim or shape.hidden_size // shape.num_attention_heads
    heads = shape.num_key_value_heads or shape.num_attention_heads
    width = CACHE_BYTES.get(str(manifest.settings.get("kv_cache_precision")), 4)
    # Quantised caches keep a scale and a zero point, two floats, beside each head's vector.
    vector = head * width + (8 if width == 1 else 0)
    return 2 * shape.num_hidden_layers * heads * vector * BLOCK_TOKENS
