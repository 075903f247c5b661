"""The torch-based paths on a GPU: one by one, static batches, and those compiled; bf16 and LoRA.

`python -m benchmarks.support.serving_gpu [--quick]` prints one JSON object; without a GPU it says
so and measures nothing.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

BATCH_ROWS = 16
PROMPT_TOKENS, ANSWER_TOKENS = 128, 64
REPEATS = 3
SHAPE_1B = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
"""Layers and widths of TinyLlama-1.1B (Zhang et al., 2024)."""


def lora_model() -> Any:
    """Return the random model in bf16 on the GPU, a LoRA adapter on every linear layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(7)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**SHAPE_1B)).to(torch.bfloat16)
    lora = LoraConfig(r=16, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).eval()


def generate(model: Any, rows: int, compiled: bool) -> None:
    """Make ANSWER_TOKENS tokens for each of `rows` random prompts at once."""
    import torch
    from transformers import GenerationConfig

    prompts = torch.randint(10, SHAPE_1B["vocab_size"], (rows, PROMPT_TOKENS), device="cuda")
    config = GenerationConfig(
        min_new_tokens=ANSWER_TOKENS,
        max_new_tokens=ANSWER_TOKENS,
        do_sample=False,
        eos_token_id=2,
        pad_token_id=0,
        # With a cache of fixed size transformers compiles the decoding step by itself.
        cache_implementation="static" if compiled else None,
        disable_compile=not compiled,
    )
    with torch.inference_mode():
        model.generate(
            input_ids=prompts,
            attention_mask=torch.ones_like(prompts),
            generation_config=config,
        )
    torch.cuda.synchronize()


def measure(repeats: int) -> dict[str, Any]:
    """Return medians per path, repeats interleaved; latency is that of a whole batch."""
    import torch

    model = lora_model()
    paths: dict[str, tuple[int, Callable[[], None]]] = {
        "naive bf16, one by one": (1, partial(generate, model, 1, False)),
        f"bf16, static batches of {BATCH_ROWS}": (
            BATCH_ROWS,
            partial(generate, model, BATCH_ROWS, False),
        ),
        f"bf16, static batches of {BATCH_ROWS}, compiled": (
            BATCH_ROWS,
            partial(generate, model, BATCH_ROWS, True),
        ),
    }
    seconds: dict[str, list[float]] = {name: [] for name in paths}
    for _, run in paths.values():
        run()  # compiles and warms
    for _ in range(repeats):
        for name, (_, run) in paths.items():
            began = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - began)
    rows = []
    for name, (batch, _) in paths.items():
        median = statistics.median(seconds[name])
        rows.append(
            {
                "row": name,
                "tokens_per_second": round(batch * ANSWER_TOKENS / median, 1),
                "latency_ms": round(1000 * median, 1),
                "repeats": repeats,
            }
        )
    return {
        "device": torch.cuda.get_device_name(),
        "model": "1.1 B parameters, random weights, bf16, LoRA rank 16 on every linear layer",
        "rows": rows,
        "peak_megabytes": round(torch.cuda.max_memory_allocated() / 1e6, 1),
    }


def main() -> None:
    """Measure where there is a GPU."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one repeat")
    options = parser.parse_args()
    if torch.cuda.is_available():
        print(json.dumps(measure(1 if options.quick else REPEATS)))
    else:
        print(json.dumps({"device": None, "note": "torch finds no GPU: nothing was measured"}))


if __name__ == "__main__":
    main()
