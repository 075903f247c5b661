"""A tiny random base, two adapters on it as training makes them, and what peft answers with each.

The bundles hold merged weights and the adapter, and no compiled graph: vLLM needs none.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.digests import digest_files, digest_folder, model_digest
from core.manifests import BundleManifest, write_manifest
from tests.bundles import scripted_tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"
PROMPTS = ["a", "hello", "the quick brown fox", "zebra crossing", "x" * 100]
TOKENS = 24
CONTEXT_LENGTH = 512
TARGETS = [
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    "embed_tokens", "lm_head",
]  # fmt: skip


@dataclass(frozen=True, slots=True)
class Version:
    """One adapter's bundle and peft's greedy answers to PROMPTS."""

    bundle: Path
    answers: list[str]


def make_versions(folder: Path, names: tuple[str, ...]) -> tuple[Path, list[Version]]:
    """Return the base's folder and a version for each name."""
    import torch

    torch.set_num_threads(1)
    tokenizer = scripted_tokenizer()
    base = folder / "base"
    tokenizer.save_pretrained(str(base))
    _base_model(tokenizer).save_pretrained(str(base))
    return base, [_version(folder / name, base, tokenizer, seed) for seed, name in enumerate(names)]


def _base_model(tokenizer: Any) -> Any:
    """A random model that says letters only, so that each token shows in the text."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    end = tokenizer.eos_token_id
    torch.manual_seed(11)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT_LENGTH,
            tie_word_embeddings=False,
            bos_token_id=None,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            initializer_range=0.3,
        )
    )
    said = tokenizer(LETTERS, add_special_tokens=False).input_ids
    silent = [token for token in range(len(tokenizer)) if token not in said]
    with torch.no_grad():
        model.lm_head.weight[silent] = 0
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def _version(folder: Path, base: Path, tokenizer: Any, seed: int) -> Version:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    torch.manual_seed(100 + seed)
    shape = LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), shape)
    silent = [token for token in range(len(tokenizer)) if tokenizer.decode([token]) not in LETTERS]
    with torch.no_grad():
        for name, weights in model.named_parameters():
            if "lora_" in name:
                weights.copy_(0.1 * torch.randn_like(weights))
            if "lm_head.lora_B" in name:
                weights[silent] = 0
    adapter, weights_folder = folder / "adapter", folder / "weights"
    model.save_pretrained(str(adapter), save_embedding_layers=False)
    (adapter / "README.md").unlink(missing_ok=True)
    answers = [_answer(model, tokenizer, prompt) for prompt in PROMPTS]
    merged = model.merge_and_unload()
    merged.save_pretrained(str(weights_folder))
    tokenizer.save_pretrained(str(weights_folder))
    manifest = BundleManifest(
        base_digest=model_digest(base),
        adapter_digest=digest_folder(adapter),
        snapshot_id="snapshot-random",
        context_length=CONTEXT_LENGTH,
        files=digest_files(folder),
    )
    write_manifest(folder, manifest)
    placed = folder.with_name(manifest.digest)
    shutil.move(folder, placed)
    return Version(placed, answers)


def _answer(model: Any, tokenizer: Any, prompt: str) -> str:
    import torch

    ids = torch.tensor([tokenizer(prompt, add_special_tokens=False).input_ids])
    with torch.inference_mode():
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=TOKENS
        )
    text: str = tokenizer.decode(made[0, ids.shape[1] :])
    return text
