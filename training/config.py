"""How the base is built, how an adapter is trained and how a bundle is compiled: frozen forms.

Knows names, defaults and limits only; Prefect shows these models as forms.
"""

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from core.digests import digest_json

BUILTIN_SOURCE = "builtin:small"

Optimisation = Literal["fusion", "weight_compression", "cache_compression", "batching"]
WeightPrecision = Literal["int4", "int8", "fp16", "fp32"]
CachePrecision = Literal["u8", "f16", "f32"]
Setting = str | int | float | bool | None
WEIGHT_PRECISIONS: tuple[WeightPrecision, ...] = get_args(WeightPrecision)
"""From the smallest to the one that the reference has."""
CACHE_PRECISIONS: tuple[CachePrecision, ...] = get_args(CachePrecision)
CACHE_AT_LEAST: Mapping[WeightPrecision, CachePrecision] = {"fp16": "f16", "fp32": "f32"}
"""Wider weights after a refusal bring a wider cache too: either may have been the cause."""
LEFT_OUT: Mapping[Optimisation, Mapping[str, Setting]] = {
    "weight_compression": {"weight_precision": "fp32"},
    "cache_compression": {"kv_cache_precision": "f32"},
    "batching": {"sequences_max": 1},
}
"""What holds instead of the settings of an optimisation that is left out."""


class LoopConfig(BaseModel):
    """What every optimisation has: length, step size, batches, device and how often it reports."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    epochs: int = Field(default=6, ge=0, le=1000, description="passes over the rows")
    batch_rows: int = Field(
        default=32, ge=1, le=4096, description="rows per optimiser step, over all processes"
    )
    batch_tokens_max: int = Field(
        default=16384, ge=16, description="tokens per optimiser step at most, padding included"
    )
    tokens_max: int = Field(
        default=512, ge=8, description="tokens per row at most; the prompt's oldest tokens go first"
    )
    prompt_loss_weight: float = Field(
        default=0.0, ge=0, le=1, description="weight of a prompt token's loss; an answer's has 1"
    )
    learning_rate: float = Field(default=2e-3, gt=0, le=1, description="peak learning rate")
    warmup_share: float = Field(
        default=0.05, ge=0, lt=1, description="share of the steps with a rising learning rate"
    )
    weight_decay: float = Field(default=0.01, ge=0, description="AdamW's decoupled weight decay")
    gradient_norm_max: float = Field(
        default=1.0, gt=0, description="gradients are scaled down to this norm"
    )
    seed: int = Field(default=7, ge=0, description="seed of initial weights, batches and dropout")
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="auto takes a GPU where there is one (bf16), else the CPU"
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads; 0 means one for a small model, else the physical cores",
    )
    checkpoint_seconds: float = Field(
        default=30.0, gt=0, description="seconds of work that a kill may cost at most"
    )
    metrics_steps: int = Field(default=10, ge=1, description="steps between two reports of metrics")

    @property
    def digest(self) -> str:
        """The identity of everything that changes the result (reports and threads do not)."""
        ignored = {"checkpoint_seconds", "metrics_steps", "threads"}
        return digest_json(self.model_dump(mode="json", exclude=ignored))


class BaseConfig(LoopConfig):
    """The base model: a builtin one made from scratch, a local folder or a hub id."""

    epochs: int = Field(default=10, ge=0, le=1000, description="builtin: passes over the rows")
    prompt_loss_weight: float = Field(
        default=0.1, ge=0, le=1, description="weight of a prompt token's loss; an answer's has 1"
    )
    source: str = Field(
        default=BUILTIN_SOURCE,
        min_length=1,
        description="builtin:small, a local model folder, or a Hugging Face hub id",
    )
    revision: str = Field(default="main", description="revision of a hub model")
    vocabulary: int = Field(
        default=4096, ge=300, le=65536, description="builtin: entries of the byte-level BPE at most"
    )
    hidden_size: int = Field(default=128, ge=16, le=1024, description="builtin: width")
    layers: int = Field(default=2, ge=1, le=32, description="builtin: decoder layers")
    heads: int = Field(default=4, ge=1, le=32, description="builtin: attention heads")
    kv_heads: int = Field(default=2, ge=1, le=32, description="builtin: key and value heads")
    context_length: int = Field(
        default=1024, ge=32, le=32768, description="builtin: positions of prompt and answer"
    )


class TrainConfig(LoopConfig):
    """One day's LoRA training on the new rows and a replayed share of earlier ones."""

    epochs: int = Field(default=4, ge=0, le=1000, description="passes over the rows")
    batch_rows: int = Field(
        default=16, ge=1, le=4096, description="rows per optimiser step, over all processes"
    )
    learning_rate: float = Field(default=1e-3, gt=0, le=1, description="peak learning rate")
    rank: int = Field(default=16, ge=1, le=512, description="rank of the adapter's matrices")
    alpha: float = Field(default=16.0, gt=0, description="scale of the adapter's contribution")
    rslora: bool = Field(
        default=True, description="scale by alpha / sqrt(rank): Kalajdzievski 2023"
    )
    dora: bool = Field(default=False, description="learn magnitude apart: DoRA, Liu et al. 2024")
    dropout: float = Field(default=0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: str = Field(
        default="all-linear",
        description="all-linear, or names of linear layers separated by commas",
    )
    adapt_vocabulary: bool = Field(
        default=True,
        description="adapt token embeddings and output head too, where the base does not tie them",
    )
    rate_ratio: float = Field(
        default=4.0, ge=1, le=64, description="rate of B over rate of A: LoRA+, Hayou et al. 2024"
    )
    replay_share: float = Field(
        default=0.65, ge=0, lt=1, description="share of replayed rows among all training rows"
    )
    replay_rows_max: int = Field(default=4000, ge=0, description="replayed rows at most")
    compiled: bool = Field(
        default=False,
        description="torch.compile the model: takes minutes first; a CPU needs a C++ compiler",
    )


class BundleConfig(BaseModel):
    """What a predictor loads: how its graph is compiled, and its scheduler's limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    optimisations: tuple[Optimisation, ...] = Field(
        default=get_args(Optimisation),
        description="what is done to the graph, in this order; one left out is not done, whatever "
        "its settings say",
    )
    weight_precision: WeightPrecision = Field(
        default="int8", description="precision of the compiled weights that is tried first"
    )
    fallback_precisions: tuple[WeightPrecision, ...] = Field(
        default=WEIGHT_PRECISIONS,
        description="precisions that may be tried after one that the parity gate refused; the "
        "smallest wider one is next, and none ends the tries",
    )
    int4_group_size: int = Field(
        default=64, ge=16, le=1024, description="int4: weights that share one scale"
    )
    kv_cache_precision: CachePrecision = Field(
        default="u8", description="precision of the key-value cache"
    )
    inference_precision: Literal["f32", "bf16", "f16"] = Field(
        default="f32", description="arithmetic of the compiled graph"
    )
    cache_gigabytes: float = Field(default=0.25, gt=0, description="key-value cache, in GB")
    batched_tokens_max: int | None = Field(
        default=None,
        ge=16,
        description="tokens that the scheduler puts into one step at most; empty: by model size",
    )
    sequences_max: int = Field(
        default=64, ge=1, description="requests that the scheduler runs side by side at most"
    )
    prefix_caching: bool = Field(default=True, description="share the cache of equal beginnings")
    dynamic_split_fuse: bool = Field(
        default=True, description="mix pieces of long prompts with running answers"
    )

    @property
    def settings(self) -> dict[str, Setting]:
        """What holds for the bundle, as its manifest says it: how it came to be tried is not."""
        found: dict[str, Setting] = self.model_dump(
            mode="json", exclude={"optimisations", "fallback_precisions"}
        )
        done = [name for name in get_args(Optimisation) if name in self.optimisations]
        for name, instead in LEFT_OUT.items():
            found |= {} if name in done else instead
        return {**found, "optimisations": " ".join(done)}

    def less_aggressive(self) -> "BundleConfig | None":
        """The same with the next wider weights that may be tried; None when there are none."""
        now = WEIGHT_PRECISIONS.index(self.weight_precision)
        wider = [item for item in WEIGHT_PRECISIONS[now + 1 :] if item in self.fallback_precisions]
        if not wider or "weight_compression" not in self.optimisations:
            return None
        caches = (self.kv_cache_precision, CACHE_AT_LEAST.get(wider[0], self.kv_cache_precision))
        widest = max(caches, key=CACHE_PRECISIONS.index)
        return self.model_copy(update={"weight_precision": wider[0], "kv_cache_precision": widest})
