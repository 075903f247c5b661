"""One training of the training benchmark in a process of its own: our loop, or the Trainer's.

`python -m benchmarks.support.training_runs KIND JOB.json` trains what the job's file says (form of
training.jobs) and prints what it took. Imports are not counted.
"""

import importlib
import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec

from core.contracts import Record
from training.base import BaseRef, load_model
from training.batches import Example, encode_records, load_tokenizer
from training.config import TrainConfig
from training.jobs import TrainingJob
from training.loop import _collate, _parameter_groups, _response_loss, learning_rate_at
from training.lora import _prepare, _relative_rate, load_adapter, train_adapter

JUDGED_ROWS = 256
IGNORED = -100


def with_our_loop(config: TrainConfig, base: BaseRef, rows: list[Record], out: Path) -> None:
    """Train as a release does."""
    train_adapter(config, base, rows, [], None, out)


def with_trainer(
    config: TrainConfig, base: BaseRef, rows: list[Record], out: Path, whole: bool
) -> None:
    """Train the same adapter by transformers' Trainer: same steps' size, rates, AdamW, loss.

    Batches are drawn at random and padded to their longest row, or (`whole`) all to the data's.
    """
    import torch
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    torch.set_num_threads(config.threads)
    torch.manual_seed(config.seed)
    model = _prepare(config, base, None)
    tokenizer = load_tokenizer(base.path)
    examples = encode_records(rows, tokenizer, config.tokens_max)
    width = max(len(example.ids) for example in examples)
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    groups = _parameter_groups(parameters, lambda name: _relative_rate(name, config))
    for group in groups:
        group["lr"] = config.learning_rate * group.pop("relative_rate")
    optimizer = torch.optim.AdamW(groups, weight_decay=config.weight_decay, fused=True)
    steps = config.epochs * -(-len(examples) // config.batch_rows)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: learning_rate_at(step, steps, config) / config.learning_rate
    )
    Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out.parent / "trainer"),
            per_device_train_batch_size=config.batch_rows,
            num_train_epochs=config.epochs,
            max_grad_norm=config.gradient_norm_max,
            logging_steps=config.metrics_steps,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
            seed=config.seed,
        ),
        train_dataset=[_features(example) for example in examples],
        data_collator=DataCollatorForSeq2Seq(
            tokenizer,
            padding="max_length" if whole else "longest",
            max_length=width,
            label_pad_token_id=IGNORED,
        ),
        optimizers=(optimizer, schedule),
    ).train()
    model.save_pretrained(str(out))


def _features(example: Example) -> dict[str, list[int]]:
    hidden = [IGNORED] * example.prompt_length
    labels = [*hidden, *example.ids[example.prompt_length :]]
    ids = list(example.ids)
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


def final_loss(base: BaseRef, examples: Sequence[Example], adapter: Path) -> float:
    """Return the mean loss of an answer's token on the first rows, by the saved adapter."""
    import torch

    loss = _response_loss(load_adapter(load_model(base.path), adapter).eval())
    total = tokens = 0.0
    with torch.inference_mode():
        for row in range(min(JUDGED_ROWS, len(examples))):
            total += float(loss(*_collate(examples, [row], 0.0, "cpu")))
            tokens += len(examples[row].ids) - examples[row].prompt_length
    return total / tokens


def main() -> None:
    """Train, judge, print."""
    kind, path = sys.argv[1], Path(sys.argv[2])
    job = msgspec.json.decode(path.read_bytes(), type=TrainingJob)
    base = BaseRef(Path(job.base_path), job.base_digest)
    rows = msgspec.json.Decoder(Record).decode_lines(Path(job.rows).read_bytes())
    out = Path(job.out)
    config = TrainConfig.model_validate({**job.config, "compiled": kind == "compiled"})
    examples = encode_records(rows, load_tokenizer(base.path), config.tokens_max)
    for name in ("peft", "transformers.trainer"):
        importlib.import_module(name)
    began, cpu = time.perf_counter(), time.process_time()
    if kind in ("ours", "compiled"):
        with_our_loop(config, base, rows, out)
    else:
        with_trainer(config, base, rows, out, whole=kind != "trainer")
    seconds = time.perf_counter() - began
    children = resource.getrusage(resource.RUSAGE_CHILDREN)  # compilers
    used = time.process_time() - cpu + children.ru_utime + children.ru_stime
    tokens = config.epochs * sum(len(example.ids) for example in examples)
    report = {
        "seconds": seconds,
        "cpu_seconds": used,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / used,
        "peak_megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
        "final_loss": final_loss(base, examples, out),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
