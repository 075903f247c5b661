"""The optimisation loop that base and adapter training share: AdamW on the answers' tokens.

Knows batches, devices, checkpoints and several processes; knows neither LoRA nor the lake. Under
torchrun: `torchrun --nproc-per-node N -m training.loop --job FILE.json`.
"""

import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core.errors import ConfigurationError
from training.batches import Example, loss_weight, padding_share, plan_batches
from training.checkpoints import Progress, load_checkpoint, save_checkpoint
from training.config import LoopConfig

OnMetrics = Callable[[int, dict[str, float]], None]
RateOf = Callable[[str], float]
"""rate_of(parameter's name) -> its learning rate relative to the configured one."""

SMALL_MODEL_PARAMETERS = 20_000_000
LOSS_SMOOTHING = 0.9
EPOCH_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True)
class FitReport:
    """What a training did. `tokens` counts real tokens; `loss` is the smoothed last loss."""

    steps: int
    tokens: int
    seconds: float
    loss: float
    padding_share: float
    resumed_at_step: int


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among the processes that train together."""

    rank: int = 0
    world: int = 1


def fit(
    model: Any,
    examples: Sequence[Example],
    config: LoopConfig,
    job: str,
    checkpoints: Path | None = None,
    on_metrics: OnMetrics | None = None,
    label: str = "training",
    rate_of: RateOf = lambda name: 1.0,
) -> FitReport:
    """Train the parameters of `model` that require gradients; resume `job`'s checkpoint if any.

    `on_metrics(step, figures)` is called by the first process only. On one thread the result
    depends on nothing but the weights, the examples and the configuration.
    """
    import torch

    device = choose_device(config)
    threads = config.threads or threads_for(model)
    with limited_threads(threads), torch.random.fork_rng(_fork_devices(device)):
        torch.manual_seed(config.seed)
        learner = _Fit(model, examples, config, job, checkpoints, device, rate_of)
        return learner.run(on_metrics, label)


def choose_device(config: LoopConfig) -> str:
    """Return "cpu" or "cuda:<local rank>". Raises ConfigurationError for cuda without a GPU."""
    import os

    import torch

    if config.device == "cpu" or (config.device == "auto" and not torch.cuda.is_available()):
        return "cpu"
    if not torch.cuda.is_available():
        raise ConfigurationError("device is cuda, but torch finds no GPU; use device: auto")
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}"


def threads_for(model: Any) -> int:
    """Return the CPU threads worth using: one for a small model, else the physical cores.

    A small model's steps are too short to share: on two busy cores two threads took 437 s for
    what one did in 34 s.
    """
    import psutil

    parameters = sum(parameter.numel() for parameter in model.parameters())
    return 1 if parameters < SMALL_MODEL_PARAMETERS else psutil.cpu_count(logical=False) or 1


def learning_rate_at(step: int, steps: int, config: LoopConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then linear decay to a twentieth."""
    warmup = max(1, math.ceil(steps * config.warmup_share))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    left = (steps - step) / max(1, steps - warmup)
    return config.learning_rate * max(0.05, left)


class _Fit:
    """The moving parts of one training."""

    def __init__(
        self,
        model: Any,
        examples: Sequence[Example],
        config: LoopConfig,
        job: str,
        checkpoints: Path | None,
        device: str,
        rate_of: RateOf,
    ) -> None:
        import torch

        self.config, self.examples, self.job, self.folder = config, examples, job, checkpoints
        self.device, self.ranks = device, current_ranks()
        self.model = model.to(device)
        self.learning = {
            name: value for name, value in model.named_parameters() if value.requires_grad
        }
        self.loss_module = _wrap(_response_loss(self.model), device, self.ranks)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.learning, rate_of),
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.batches_per_epoch = len(self._plan(0))
        self.steps = self.batches_per_epoch * config.epochs
        self.progress = Progress(job=job, step=0, tokens=0, seconds=0.0, loss=0.0)

    def run(self, on_metrics: OnMetrics | None, label: str) -> FitReport:
        resumed_at = self._resume()
        self.model.train()
        reports, saved = time.monotonic(), time.monotonic()
        reported = self.progress
        for batch in self._bar(label):
            self._step(batch)
            now = time.monotonic()
            step = self.progress.step
            if step % self.config.metrics_steps == 0 or step == self.steps:
                if on_metrics is not None and self.ranks.rank == 0:
                    on_metrics(step, self._figures(reported, now - reports))
                reported, reports = self.progress, now
            if self.folder and now - saved >= self.config.checkpoint_seconds:
                self._save()
                saved = now
        self.model.eval()
        return FitReport(
            steps=self.progress.step,
            tokens=self.progress.tokens,
            seconds=self.progress.seconds,
            loss=self.progress.loss,
            padding_share=padding_share(self.examples, self._plan(0)) if self.steps else 0.0,
            resumed_at_step=resumed_at,
        )

    def _step(self, batch: list[int]) -> None:
        import torch

        started = time.monotonic()
        rate = learning_rate_at(self.progress.step, self.steps, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["relative_rate"]
        # With fewer rows than processes, a process repeats a row with weight 0: all must join in.
        rows = batch[self.ranks.rank :: self.ranks.world]
        prompt_weight = self.config.prompt_loss_weight
        weight = float(bool(rows)) / loss_weight(self.examples, batch, prompt_weight)
        tensors = _collate(self.examples, rows or batch[:1], prompt_weight, self.device)
        with _precision(self.device):
            total = self.loss_module(*tensors)
        # Gradients are averaged over the processes, so each sums its own share times their number.
        (total * weight * self.ranks.world).backward()
        torch.nn.utils.clip_grad_norm_(self.learning.values(), self.config.gradient_norm_max)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        loss = _summed(total.detach() * weight, self.ranks)
        before = self.progress
        smoothed = loss
        if before.step:
            smoothed = LOSS_SMOOTHING * before.loss + (1 - LOSS_SMOOTHING) * loss
        self.progress = Progress(
            job=self.job,
            step=before.step + 1,
            tokens=before.tokens + sum(len(self.examples[index].ids) for index in batch),
            seconds=before.seconds + time.monotonic() - started,
            loss=smoothed,
        )

    def _plan(self, epoch: int) -> list[list[int]]:
        config = self.config
        seed = config.seed + EPOCH_SEED_STRIDE * epoch
        return plan_batches(self.examples, config.batch_rows, config.batch_tokens_max, seed)

    def _bar(self, label: str) -> Iterator[list[int]]:
        from tqdm import tqdm

        quiet = self.ranks.rank != 0 or not sys.stderr.isatty()
        done = self.progress.step
        with tqdm(total=self.steps, initial=done, desc=label, disable=quiet, unit="step") as bar:
            for step in range(done, self.steps):
                epoch, index = divmod(step, self.batches_per_epoch)
                if step == done or index == 0:
                    plan = self._plan(epoch)
                yield plan[index]
                bar.set_postfix(loss=f"{self.progress.loss:.3f}", refresh=False)
                bar.update()

    def _figures(self, since: Progress, seconds: float) -> dict[str, float]:
        step = self.progress.step
        return {
            "loss": self.progress.loss,
            "learning_rate": learning_rate_at(step - 1, self.steps, self.config),
            "epoch": step / self.batches_per_epoch,
            "tokens_per_second": (self.progress.tokens - since.tokens) / max(seconds, 1e-9),
        }

    def _save(self) -> None:
        import torch

        if self.ranks.rank != 0 or self.folder is None:
            return
        tensors = {f"weight.{name}": value.detach().cpu() for name, value in self.learning.items()}
        for name, value in self.learning.items():
            for key, moment in self.optimizer.state[value].items():
                tensors[f"moment.{key}.{name}"] = torch.as_tensor(moment).detach().cpu()
        tensors["random.cpu"] = torch.get_rng_state()
        if self.device != "cpu":
            tensors["random.cuda"] = torch.cuda.get_rng_state()
        save_checkpoint(self.folder, self.progress, tensors)

    def _resume(self) -> int:
        import torch

        found = load_checkpoint(self.folder, self.job) if self.folder else None
        if found is None:
            return 0
        self.progress, tensors = found
        with torch.no_grad():
            for name, value in self.learning.items():
                value.copy_(tensors[f"weight.{name}"])
        for name, value in self.learning.items():
            self.optimizer.state[value] = {
                key: tensors[f"moment.{key}.{name}"].to("cpu" if key == "step" else self.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        torch.set_rng_state(tensors["random.cpu"])
        if "random.cuda" in tensors and self.device != "cpu":
            torch.cuda.set_rng_state(tensors["random.cuda"])
        return self.progress.step


def _parameter_groups(parameters: dict[str, Any], rate_of: RateOf) -> list[dict[str, Any]]:
    rates = sorted({rate_of(name) for name in parameters})
    return [
        {
            "params": [value for name, value in parameters.items() if rate_of(name) == rate],
            "relative_rate": rate,
        }
        for rate in rates
    ]


def _response_loss(model: Any) -> Any:
    import torch

    class ResponseLoss(torch.nn.Module):
        """Weighted sum of the tokens' cross-entropy; logits only where a token has weight."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, inputs: Any, positions: Any, labels: Any, weights: Any) -> Any:
            # Rows are padded on the right and attention is causal: no mask is needed, which
            # leaves the fast path of the attention kernel open.
            output = self.model(input_ids=inputs, logits_to_keep=positions, use_cache=False)
            logits = output.logits.float()
            losses = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), labels.flatten(), reduction="none"
            )
            return torch.dot(losses, weights.flatten())

    return ResponseLoss()


def _collate(
    examples: Sequence[Example], rows: Sequence[int], prompt_weight: float, device: str
) -> tuple[Any, Any, Any, Any]:
    """Return ids (rows, width), positions with logits (kept,), labels and weights (rows, kept)."""
    import numpy
    import torch

    chosen = [examples[row] for row in rows]
    width = max(len(example.ids) for example in chosen)
    first = 0 if prompt_weight else min(example.prompt_length for example in chosen) - 1
    ids = numpy.zeros((len(chosen), width), dtype=numpy.int64)
    weights = numpy.zeros((len(chosen), width), dtype=numpy.float32)
    for row, example in enumerate(chosen):
        ids[row, : len(example.ids)] = example.ids
        weights[row, 1 : example.prompt_length] = prompt_weight
        weights[row, example.prompt_length : len(example.ids)] = 1
    arrays = (ids, numpy.arange(first, width - 1), ids[:, first + 1 :], weights[:, first + 1 :])
    inputs, positions, labels, kept = (torch.tensor(array, device=device) for array in arrays)
    return inputs, positions, labels, kept


def current_ranks() -> Ranks:
    """Return which process this is; alone unless torch.distributed was initialised."""
    import torch.distributed

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return Ranks(torch.distributed.get_rank(), torch.distributed.get_world_size())
    return Ranks()


def _wrap(module: Any, device: str, ranks: Ranks) -> Any:
    if ranks.world == 1:
        return module
    from torch.nn.parallel import DistributedDataParallel

    devices = None if device == "cpu" else [device]
    return DistributedDataParallel(module, device_ids=devices)


def _summed(value: Any, ranks: Ranks) -> float:
    if ranks.world > 1:
        import torch.distributed

        torch.distributed.all_reduce(value)
    return float(value)


def _precision(device: str) -> AbstractContextManager[Any]:
    import torch

    return nullcontext() if device == "cpu" else torch.autocast("cuda", dtype=torch.bfloat16)


def _fork_devices(device: str) -> list[str]:
    return [] if device == "cpu" else [device]


@contextmanager
def limited_threads(threads: int) -> Iterator[None]:
    """Use `threads` CPU threads, then what the process used before."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def main() -> None:
    """Run one training job of a file, alone or as one process of torchrun."""
    import argparse

    from training.jobs import run_job

    parser = argparse.ArgumentParser(description="Train one adapter from a job file.")
    parser.add_argument("--job", type=Path, required=True, help="file written by training.jobs")
    run_job(parser.parse_args().job)


if __name__ == "__main__":
    main()
