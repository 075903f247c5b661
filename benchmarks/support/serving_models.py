"""Models with random weights in standard shapes, and their bundles under different options.

`python -m benchmarks.support.serving_models SHAPE FOLDER NAME=JSON...` builds one bundle per name
and prints where they are. Such a model never ends an answer by itself: every engine then does the
same work for the same request.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "samples" / "days" / "day-1.jsonl"
SHAPES = ("builtin", "135m")
SHAPE_135M = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}
"""Layers and widths of SmolLM-135M (Hugging Face, 2024)."""
SEED = 7


def read_rows(file: Path = SAMPLE) -> list[Any]:
    """Return a day's file as records; by default the sample's first day."""
    from core.contracts import Message, Record

    rows = [json.loads(line) for line in file.read_bytes().splitlines()]
    return [
        Record(
            record_id=row["id"],
            day=file.stem,
            created_at=row["created_at"],
            slice_name=row["domain"],
            messages=(Message("user", row["text"]),),
            response=row["intent"],
        )
        for row in rows
    ]


def make_base(shape: str, folder: Path) -> Path:
    """Write a base model of the shape with seeded random weights; return its folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from training.base import build_base, load_model
    from training.batches import load_tokenizer
    from training.config import BaseConfig

    torch.set_num_threads(1)
    builtin = build_base(BaseConfig(epochs=0, seed=SEED), read_rows(), folder / "cache").path
    tokenizer = load_tokenizer(builtin)
    model = load_model(builtin)
    if shape == "135m":
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        torch.manual_seed(SEED)
        generation = model.generation_config
        model = LlamaForCausalLM(LlamaConfig(**SHAPE_135M, **ends, bos_token_id=None))
        model.generation_config = generation
    _say_words_only(model, tokenizer)
    base = folder / "base"
    model.save_pretrained(str(base))
    tokenizer.save_pretrained(str(base))
    return base


def _say_words_only(model: Any, tokenizer: Any) -> None:
    """Give every id that ends an answer, or shows no text by itself, the logit 0.

    The largest of thousands of random logits is above it, whatever the prompt.
    """
    import torch

    head = model.get_output_embeddings().weight
    kept = torch.zeros(head.shape[0], dtype=torch.bool)
    special = set(tokenizer.all_special_ids)
    for number in range(len(tokenizer)):
        text = tokenizer.decode([number])
        kept[number] = number not in special and text.isascii() and text.strip().isalnum()
    with torch.no_grad():
        head[~kept] = 0


def make_bundles(base: Path, folder: Path, named: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Build one bundle of the base, with an adapter that adds nothing, per named settings."""
    from peft import LoraConfig, get_peft_model

    from core.digests import digest_folder
    from training.base import BaseRef, load_model, model_digest
    from training.bundle import build_bundle
    from training.config import BundleConfig
    from training.lora import AdapterRef

    adapter = folder / "adapter"
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(load_model(base), lora).save_pretrained(str(adapter))
    base_ref = BaseRef(base, model_digest(base))
    adapter_ref = AdapterRef(adapter, digest_folder(adapter))
    found = {}
    for name, settings in named.items():
        config = BundleConfig.model_validate(settings)
        made = build_bundle(config, base_ref, adapter_ref, "benchmark", folder / "bundles")
        found[name] = {"path": str(made.path), "build_seconds": round(made.seconds, 1)}
        found[name]["bundle_megabytes"] = round(made.bytes / 1e6, 1)
    return found


def main() -> None:
    """Build what the command line names; print one JSON object."""
    shape, folder, *given = sys.argv[1:]
    named = {name: json.loads(text) for name, _, text in (item.partition("=") for item in given)}
    base = make_base(shape, Path(folder))
    print(json.dumps(make_bundles(base, Path(folder), named)))


if __name__ == "__main__":
    main()
