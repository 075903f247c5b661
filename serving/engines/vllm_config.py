"""How a vLLM server is started: one frozen value, and the command line and environment it means."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MODULE = "vllm.entrypoints.openai.api_server"


class VllmConfig(BaseModel):
    """Where vLLM runs, what it serves, and how it uses its devices."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    python: str = Field(
        default="", description="interpreter that has vLLM installed; empty: the predictor's own"
    )
    server: str = Field(
        default="",
        description="http://HOST:PORT or unix:/SOCKET of a running server that several predictors "
        "share, each with its adapter; empty: each predictor starts a server of its own",
    )
    base: str = Field(
        default="",
        description="folder of the base model, on which the bundle's adapter/ is loaded at run "
        "time; empty without `server`: the bundle's merged weights/ are served",
    )
    tensor_parallel_size: int = Field(
        default=1, ge=1, description="devices that share each layer of one replica"
    )
    pipeline_parallel_size: int = Field(
        default=1, ge=1, description="groups of devices that hold consecutive layers"
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="share of a GPU's memory for weights and KV cache"
    )
    kv_cache_dtype: Literal["auto", "bfloat16", "float16", "fp8", "fp8_e4m3", "fp8_e5m2"] = Field(
        default="auto", description="type of the KV cache; fp8 halves it; auto: the model's"
    )
    quantization: str | None = Field(
        default=None, description="vLLM's name of a weight quantisation, such as fp8; empty: none"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="type that the model computes in; auto: as its config says"
    )
    prefix_caching: bool = Field(
        default=True, description="keep the KV cache of prompts' beginnings for later prompts"
    )
    max_loras: int = Field(
        default=4, ge=1, description="adapters in one batch; stable and canary need two"
    )
    max_lora_rank: Literal[8, 16, 32, 64, 128, 256, 320, 512] = Field(
        default=16, description="largest rank of an adapter; memory is reserved for it"
    )
    enforce_eager: bool = Field(
        default=False, description="skip compilation and CUDA graphs: starts sooner, runs slower"
    )
    start_seconds_max: float = Field(
        default=600.0, gt=0, description="longest time until the server must be ready"
    )

    @property
    def adapted(self) -> bool:
        """Whether a base with adapters is served, rather than merged weights."""
        return bool(self.base or self.server)

    def arguments(
        self,
        model: Path,
        name: str,
        context_length: int | None = None,
        sequences_max: int | None = None,
        batched_tokens_max: int | None = None,
    ) -> list[str]:
        """Return vLLM's options for serving the folder `model` under `name`.

        Requests and answers are token ids, so the server needs no tokenizer; the model folder's
        own sampling defaults are left out, as they are in every other engine.
        """
        options = [
            f"--model={model}",
            f"--served-model-name={name}",
            "--skip-tokenizer-init",
            "--enable-scale-out",
            "--generation-config=vllm",
            f"--tensor-parallel-size={self.tensor_parallel_size}",
            f"--pipeline-parallel-size={self.pipeline_parallel_size}",
            f"--gpu-memory-utilization={self.gpu_memory_utilization}",
            f"--kv-cache-dtype={self.kv_cache_dtype}",
            f"--dtype={self.dtype}",
            f"--{'' if self.prefix_caching else 'no-'}enable-prefix-caching",
            "--no-use-tqdm-on-load",
            "--disable-fastapi-docs",
            "--disable-uvicorn-access-log",
            "--uvicorn-log-level=warning",
        ]
        if self.adapted:
            options += ["--enable-lora", f"--max-loras={self.max_loras}"]
            options += [f"--max-lora-rank={self.max_lora_rank}"]
        if self.enforce_eager:
            options.append("--enforce-eager")
        for option, value in (
            ("quantization", self.quantization),
            ("max-model-len", context_length),
            ("max-num-seqs", sequences_max),
            ("max-num-batched-tokens", batched_tokens_max),
        ):
            if value is not None:
                options.append(f"--{option}={value}")
        return options


def server_environment(
    environ: Mapping[str, str], cache_gigabytes: float | None, threads: int
) -> dict[str, str]:
    """Return the server's environment: no hub, no usage reports, adapters at run time."""
    found = {
        **environ,
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
        # Read on a CPU only, in whole gigabytes.
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(cache_gigabytes or 1)),
    }
    # One machine: its processes talk over loopback. Set it where a server spans several.
    found.setdefault("VLLM_HOST_IP", "127.0.0.1")
    found.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
    if threads:
        found.update(OMP_NUM_THREADS=str(threads), VLLM_CPU_OMP_THREADS_BIND="nobind")
    return found
