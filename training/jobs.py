"""A training as a file, so that torchrun's processes can run it: arguments in, adapter out.

Knows msgspec and torch.distributed's start; the training itself is training.lora's.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from core.contracts import Record
from core.errors import InputError
from training.base import BaseRef
from training.config import TrainConfig
from training.lora import AdapterRef, train_adapter


@dataclass(frozen=True, slots=True)
class TrainingJob:
    """The arguments of train_adapter; rows lie in JSON Lines files of records."""

    config: dict[str, Any]
    base_path: str
    base_digest: str
    rows: str
    replay_rows: str
    parent_adapter: str | None
    out: str


def write_job(
    path: Path,
    config: TrainConfig,
    base: BaseRef,
    rows: Sequence[Record],
    replay_rows: Sequence[Record],
    parent_adapter: Path | None,
    out: Path,
) -> None:
    """Write the job's file, and its rows beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = {"rows": rows, "replay_rows": replay_rows}
    names = {name: path.with_suffix(f".{name}.jsonl").absolute() for name in files}
    encoder = msgspec.json.Encoder()
    for name, records in files.items():
        names[name].write_bytes(encoder.encode_lines(records))
    job = TrainingJob(
        config=config.model_dump(mode="json"),
        base_path=str(base.path.absolute()),
        base_digest=base.digest,
        parent_adapter=str(parent_adapter.absolute()) if parent_adapter else None,
        out=str(out.absolute()),
        **{name: str(file) for name, file in names.items()},
    )
    path.write_bytes(msgspec.json.format(encoder.encode(job), indent=2))


def run_job(path: Path) -> AdapterRef:
    """Run a job's file in this process, together with torchrun's other processes if there are any.

    Raises InputError when the file cannot be read.
    """
    try:
        job = msgspec.json.decode(path.read_bytes(), type=TrainingJob)
        config = TrainConfig.model_validate(job.config)
        rows, replay_rows = _read_rows(Path(job.rows)), _read_rows(Path(job.replay_rows))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is not a training job that can be read: {error}") from error
    with _joined(config):
        return train_adapter(
            config,
            BaseRef(Path(job.base_path), job.base_digest),
            rows,
            replay_rows,
            Path(job.parent_adapter) if job.parent_adapter else None,
            Path(job.out),
            _print_metrics,
        )


def _read_rows(path: Path) -> list[Record]:
    return msgspec.json.Decoder(Record).decode_lines(path.read_bytes())


@contextmanager
def _joined(config: TrainConfig) -> Iterator[None]:
    """Join torchrun's group of processes: nccl on GPUs, gloo on CPUs."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    import torch
    import torch.distributed

    from training.loop import choose_device

    device = choose_device(config)
    if device != "cpu":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("gloo" if device == "cpu" else "nccl")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def _print_metrics(step: int, figures: dict[str, float]) -> None:
    print(msgspec.json.encode({"step": step, **figures}).decode(), flush=True)
