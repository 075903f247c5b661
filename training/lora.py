"""One day's adapter: LoRA on a base, continuing the parent adapter, saved without machine paths.

Knows peft and the loop; knows neither where rows come from nor where the adapter goes.
"""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from core.contracts import Record
from core.digests import digest_folder, digest_json
from core.errors import ConfigurationError, InputError, IntegrityError
from training.base import BaseRef, load_model
from training.batches import encode_records, load_tokenizer
from training.config import TrainConfig
from training.fused import fuse_lora
from training.loop import FitReport, OnMetrics, choose_device, current_ranks, fit
from training.replay import choose_replay

ADAPTER_CONFIG = "adapter_config.json"
EMBEDDING_RATE = 0.1
"""Relative rate of an embedding's first factor, which starts at 0: peft draws its other factor from
N(0, 1), far larger than a linear layer's, so at the full rate old answers are overwritten."""
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True, slots=True)
class AdapterRef:
    """An adapter's folder, the digest of its content, and what its training measured."""

    path: Path
    digest: str
    metrics: Mapping[str, float] = field(default_factory=dict)


def train_adapter(
    config: TrainConfig,
    base: BaseRef,
    rows: Sequence[Record],
    replay_rows: Sequence[Record],
    parent_adapter: Path | None,
    out: Path,
    on_metrics: OnMetrics | None = None,
) -> AdapterRef:
    """Train on `rows` plus a share of `replay_rows` chosen by the configuration; write `out`.

    `replay_rows` are all earlier rows that may be seen again. With `parent_adapter` its weights go
    on learning, else a new adapter begins. Killed and called again with the same arguments, it
    goes on from its last checkpoint; already finished, it returns what is there.
    Raises InputError without rows, ConfigurationError for a parent of another shape.
    """
    if not rows:
        raise InputError("there are no rows to train on; check the snapshot's training rows")
    replay = choose_replay(rows, replay_rows, config)
    job = digest_json(
        {
            "config": config.digest,
            "base": base.digest,
            "rows": rows_digest([*rows, *replay]),
            "parent": digest_folder(parent_adapter) if parent_adapter else None,
        }
    )
    done = _finished(out, job)
    if done is not None:
        return done
    model = _prepare(config, base, parent_adapter)
    if choose_device(config) == "cpu":
        fuse_lora(model)
    if config.compiled:
        model.compile(dynamic=True)  # batches come in many lengths
    tokenizer = load_tokenizer(base.path)
    examples = encode_records([*rows, *replay], tokenizer, config.tokens_max)
    checkpoints = out.parent / f".{out.name}.training"
    report = fit(
        model,
        examples,
        config,
        job,
        checkpoints,
        on_metrics,
        label="adapter",
        rate_of=lambda name: _relative_rate(name, config),
    )
    figures = _figures(report, len(rows), len(replay))
    if current_ranks().rank == 0:
        _save(model, config, base, out)
        digest = digest_folder(out)
        note = {"job": job, "digest": digest, "metrics": figures}
        _receipt(out).write_bytes(msgspec.json.encode(note))
        shutil.rmtree(checkpoints, ignore_errors=True)
    _wait_for_first()
    return AdapterRef(out, digest_folder(out), figures)


def rows_digest(rows: Sequence[Record]) -> str:
    """Return one digest of rows in their order: what is learnt from them, not where they lie."""
    return digest_json(
        [[row.record_id, msgspec.to_builtins(row.messages), row.response] for row in rows]
    )


def load_adapter(base_model: Any, adapter: Path, trainable: bool = False) -> Any:
    """Return a peft model of `base_model` with the adapter's weights.

    Raises IntegrityError when the folder does not hold a safetensors adapter.
    """
    from peft import PeftModel

    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (adapter / name).is_file():
            raise IntegrityError(f"{adapter} has no {name}; train the adapter again")
    return PeftModel.from_pretrained(base_model, str(adapter), is_trainable=trainable)


def _prepare(config: TrainConfig, base: BaseRef, parent: Path | None) -> Any:
    """Return the base with a trainable adapter: the parent's, or a new seeded one."""
    import torch
    from peft import LoraConfig, get_peft_model

    model = load_model(base.path, bfloat16=choose_device(config) != "cpu")
    if parent is not None:
        _check_parent(config, base, parent)
        return load_adapter(model, parent, trainable=True)
    lora = LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        use_rslora=config.rslora,
        use_dora=config.dora,
        target_modules=_targets(model, config),
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        try:
            return get_peft_model(model, lora)
        except ValueError as error:
            raise ConfigurationError(
                f"target_modules {config.target_modules!r} does not fit: {error}"
            ) from error


def _check_parent(config: TrainConfig, base: BaseRef, parent: Path) -> None:
    path = parent / ADAPTER_CONFIG
    if not path.is_file():
        raise IntegrityError(f"{parent} has no {ADAPTER_CONFIG}; name another parent adapter")
    found = msgspec.json.decode(path.read_bytes())
    if found["base_model_name_or_path"] != base.digest:
        raise ConfigurationError(
            f"parent adapter {parent} was trained on base {found['base_model_name_or_path'][:12]},"
            f" not on {base.digest[:12]}; keep the base, or start without a parent"
        )
    wanted = {"r": config.rank, "use_rslora": config.rslora, "use_dora": config.dora}
    for name, value in wanted.items():
        if found[name] != value:
            raise ConfigurationError(
                f"parent adapter {parent} has {name}={found[name]}, the configuration asks for"
                f" {value}; keep its value, or start without a parent"
            )


def _save(model: Any, config: TrainConfig, base: BaseRef, out: Path) -> None:
    """Write the two files of an adapter into place at once.

    peft's own file names the base by its folder and lists modules in an arbitrary order; the
    adapter's digest must depend on neither.
    """
    partial = out.parent / f".{out.name}.{os.getpid()}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(str(partial), save_embedding_layers=False)
    for path in partial.iterdir():
        if path.name not in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            path.unlink()
    path = partial / ADAPTER_CONFIG
    content = msgspec.json.decode(path.read_bytes())
    content["base_model_name_or_path"] = base.digest
    if isinstance(content["target_modules"], list):
        content["target_modules"].sort()
    text = msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=2)
    path.write_bytes(text)
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)


def _figures(report: FitReport, rows: int, replayed: int) -> dict[str, float]:
    return {
        "train_loss": report.loss,
        "train_rows": float(rows),
        "replay_rows": float(replayed),
        "train_steps": float(report.steps),
        "train_tokens": float(report.tokens),
        "train_seconds": report.seconds,
        "tokens_per_second": report.tokens / max(report.seconds, 1e-9),
        "padding_share": report.padding_share,
        "resumed_at_step": float(report.resumed_at_step),
    }


def _relative_rate(name: str, config: TrainConfig) -> float:
    if "lora_embedding_A" in name:
        return EMBEDDING_RATE
    return config.rate_ratio if "lora_B" in name else 1.0


def _receipt(out: Path) -> Path:
    return out.parent / f"{out.name}.job.json"


def _finished(out: Path, job: str) -> AdapterRef | None:
    path = _receipt(out)
    if not path.is_file() or not out.is_dir():
        return None
    note = msgspec.json.decode(path.read_bytes())
    if note["job"] != job or note["digest"] != digest_folder(out):
        return None
    return AdapterRef(out, note["digest"], note["metrics"])


def _wait_for_first() -> None:
    """The folder is there for every process once the first one has written it."""
    if current_ranks().world > 1:
        import torch.distributed

        torch.distributed.barrier()


def _targets(model: Any, config: TrainConfig) -> list[str]:
    """Return the names of the layers that get an adapter, in peft's words."""
    import torch

    head = model.get_output_embeddings()
    if config.target_modules == "all-linear":
        names = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, torch.nn.Linear) and layer is not head
        ]
    else:
        names = [name.strip() for name in config.target_modules.split(",") if name.strip()]
    if config.adapt_vocabulary and not model.config.tie_word_embeddings:
        ends = (head, model.get_input_embeddings())
        names += [name for name, layer in model.named_modules() if layer in ends]
    return names
