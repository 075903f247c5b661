"""The base model under every adapter: a small one made from scratch, a local folder or a hub id.

Knows Hugging Face model folders; safetensors only, code from a model folder is never run.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.contracts import Record
from core.digests import MODEL_FILE_PATTERNS, digest_folder, digest_json
from core.digests import model_digest as model_digest
from core.errors import ConfigurationError, InputError, NotFoundError, UnavailableError
from training.batches import encode_records, load_tokenizer
from training.config import BUILTIN_SOURCE, BaseConfig
from training.loop import OnMetrics, fit
from training.vocabulary import train_tokenizer

UNSAFE_WEIGHTS = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5")
BUILTIN_MAKER = 1
"""Raise it when the same configuration and rows give another builtin base."""


@dataclass(frozen=True, slots=True)
class BaseRef:
    """A base model's folder and the digest of its model and tokenizer files."""

    path: Path
    digest: str


def build_base(
    config: BaseConfig,
    rows: Sequence[Record],
    cache: Path,
    on_metrics: OnMetrics | None = None,
) -> BaseRef:
    """Return the base that `config` names; a builtin one is made once per (config, rows).

    `rows` feed the builtin's tokenizer and weights only. A killed build goes on from its last
    checkpoint. Raises InputError for a folder that cannot be used, UnavailableError for a hub that
    does not answer.
    """
    if config.source == BUILTIN_SOURCE:
        return _build_builtin(config, rows, cache, on_metrics)
    if config.source.startswith("builtin:"):
        raise ConfigurationError(f"{config.source} is not known; the builtin is {BUILTIN_SOURCE}")
    local = Path(config.source).expanduser()
    folder = local.absolute() if local.is_dir() else _download(config, cache)
    _check_folder(folder)
    load_tokenizer(folder)
    return BaseRef(folder, model_digest(folder))


def find_base(config: BaseConfig, cache: Path, digest: str) -> BaseRef:
    """Return the base that an earlier version was trained on, by its digest.

    A builtin base is looked up in `cache`: it was made from the first day's rows and stays. Raises
    ConfigurationError when the configured base is another one, NotFoundError when it is gone.
    """
    if config.source != BUILTIN_SOURCE:
        found = build_base(config, (), cache)
        if found.digest != digest:
            raise ConfigurationError(
                f"{config.source} has digest {found.digest[:12]}, but stable's adapter belongs to "
                f"{digest[:12]}; keep the base, or start another service for the new one"
            )
        return found
    for folder in sorted(cache.glob("builtin-*")):
        if digest_folder(folder) == digest:
            return BaseRef(folder, digest)
    raise NotFoundError(f"the base {digest[:12]} under stable's adapter is not in {cache}")


def load_model(folder: Path, bfloat16: bool = False) -> Any:
    """Load a causal language model from safetensors, in float32 unless bfloat16 is asked for.

    Raises InputError when transformers cannot load it without running the folder's own code.
    """
    import torch
    from transformers import AutoModelForCausalLM

    _no_bars()
    try:
        return AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=torch.bfloat16 if bfloat16 else torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            local_files_only=True,
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} cannot be loaded as a causal model: {error}") from error


def _no_bars() -> None:
    """transformers draws a bar for every file, on a terminal or not."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _build_builtin(
    config: BaseConfig, rows: Sequence[Record], cache: Path, on_metrics: OnMetrics | None
) -> BaseRef:
    from transformers.utils import logging as transformers_logging

    if not rows:
        raise InputError("the builtin base learns from the first day's rows, and there are none")
    content = [[msgspec.to_builtins(row.messages), row.response] for row in rows]
    key = digest_json({"maker": BUILTIN_MAKER, "config": config.digest, "rows": content})[:32]
    folder = cache / f"builtin-{key}"
    if folder.is_dir():
        return BaseRef(folder, digest_folder(folder))
    partial = cache / f".{folder.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    train_tokenizer(rows, config.vocabulary, config.context_length).save_pretrained(str(partial))
    tokenizer = load_tokenizer(partial)
    model = _new_model(config, tokenizer)
    examples = encode_records(rows, tokenizer, min(config.tokens_max, config.context_length))
    checkpoints = cache / f".{folder.name}.training"
    fit(model, examples, config, key, checkpoints, on_metrics, label="base model")
    transformers_logging.disable_progress_bar()
    _no_bars()
    model.to("cpu").save_pretrained(str(partial))
    try:
        os.rename(partial, folder)
    except OSError:  # Another process made the same base first.
        shutil.rmtree(partial)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return BaseRef(folder, digest_folder(folder))


def _new_model(config: BaseConfig, tokenizer: Any) -> Any:
    """Return a Llama-shaped decoder with seeded random weights.

    Embeddings and output head are not tied: an adapter can then teach the head a new answer's
    words without moving what the same words mean in a prompt.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if config.hidden_size % config.heads or config.heads % config.kv_heads:
        raise ConfigurationError(
            f"hidden_size {config.hidden_size} must be a multiple of heads {config.heads}, "
            f"and heads a multiple of kv_heads {config.kv_heads}"
        )
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=config.hidden_size,
        intermediate_size=3 * config.hidden_size,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        max_position_embeddings=config.context_length,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = LlamaForCausalLM(shape)
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


def _download(config: BaseConfig, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        found = snapshot_download(
            config.source,
            revision=config.revision,
            cache_dir=cache / "hub",
            allow_patterns=list(MODEL_FILE_PATTERNS),
        )
    except HFValidationError as error:
        raise InputError(
            f"{config.source} is neither a folder nor a hub id such as owner/name"
        ) from error
    except (HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise UnavailableError(
            f"{config.source} is no local folder and the hub gave no model "
            f"(HF_HUB_OFFLINE={os.environ.get('HF_HUB_OFFLINE', '0')}): {error}"
        ) from error
    return Path(found)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; it is not a Hugging Face model folder")
    if any(folder.glob("*.safetensors")):
        return
    unsafe = [path.name for pattern in UNSAFE_WEIGHTS for path in folder.glob(pattern)]
    if unsafe:
        raise InputError(
            f"{folder} has weights only as {unsafe[0]}, which can run code when loaded; convert "
            "them to safetensors first"
        )
    raise InputError(f"{folder} has no weights in safetensors format")
