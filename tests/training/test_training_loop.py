"""The loop: its schedule, the same result for a seed, and going on after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from core.contracts import Record
from core.errors import ConfigurationError, IntegrityError
from training.base import BaseRef
from training.checkpoints import CHECKPOINT_NAME, Progress, load_checkpoint, save_checkpoint
from training.config import LoopConfig, TrainConfig
from training.jobs import run_job, write_job
from training.loop import choose_device, learning_rate_at
from training.lora import AdapterRef, train_adapter

ROOT = Path(__file__).resolve().parent.parent.parent
WAIT_SECONDS_MAX = 120.0


def test_learning_rate_rises_then_falls_and_never_stops() -> None:
    config = LoopConfig(learning_rate=1.0, warmup_share=0.1)
    rates = [learning_rate_at(step, 100, config) for step in range(100)]
    assert rates[:10] == sorted(rates[:10])
    assert rates[9] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert min(rates) >= 0.05


def test_a_gpu_that_is_not_there_is_named() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert choose_device(LoopConfig()) == "cpu"
    with pytest.raises(ConfigurationError, match="no GPU"):
        choose_device(LoopConfig(device="cuda"))


def test_training_is_the_same_for_a_seed_on_one_thread(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig(rank=4, epochs=1, threads=1, dropout=0.1)
    some = rows[:96]
    one = train_adapter(config, base, some, [], None, tmp_path / "one")
    two = train_adapter(config, base, some, [], None, tmp_path / "two")
    other = config.model_copy(update={"seed": 8})
    three = train_adapter(other, base, some, [], None, tmp_path / "three")
    assert one.digest == two.digest != three.digest


def test_the_process_keeps_its_threads_and_random_state(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    import torch

    torch.manual_seed(123)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    train_adapter(TrainConfig(epochs=1, threads=2), base, rows[:32], [], None, tmp_path / "a")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_metrics_are_reported_while_training(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    seen: list[tuple[int, dict[str, float]]] = []
    config = TrainConfig(rank=4, epochs=2, batch_rows=32, threads=1, metrics_steps=3)
    done = train_adapter(
        config, base, rows[:128], [], None, tmp_path / "a", lambda *report: seen.append(report)
    )
    assert [step for step, _ in seen] == [3, 6, 8]
    assert seen[-1][1]["loss"] == done.metrics["train_loss"]
    assert all(figures["tokens_per_second"] > 0 for _, figures in seen)


def test_no_progress_bar_is_drawn_off_a_terminal(
    base: BaseRef, rows: list[Record], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    train_adapter(TrainConfig(epochs=1, threads=1), base, rows[:32], [], None, tmp_path / "a")
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_a_killed_training_goes_on_and_ends_the_same(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig(
        rank=4, epochs=20, batch_rows=32, threads=1, dropout=0.1, checkpoint_seconds=0.2
    )
    job, out = tmp_path / "job.json", tmp_path / "adapter"
    write_job(job, config, base, rows, [], None, out)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "training.loop", "--job", str(job)]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    checkpoint = tmp_path / ".adapter.training" / CHECKPOINT_NAME
    try:
        _wait_for(checkpoint.is_file, process)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL, "it was not killed in the middle"
    assert not out.exists()

    resumed = run_job(job)
    straight = train_adapter(config, base, rows, [], None, tmp_path / "straight")
    assert resumed.metrics["resumed_at_step"] > 0
    assert resumed.metrics["train_steps"] == straight.metrics["train_steps"] == 20 * 10
    assert resumed.metrics["train_loss"] == pytest.approx(straight.metrics["train_loss"], rel=1e-3)
    assert resumed.digest == straight.digest
    assert not checkpoint.exists(), "a finished training leaves no checkpoint"


class _KilledError(Exception):
    pass


def test_a_kill_costs_at_most_one_checkpoint_interval(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    """Beside the interval, only the step that was in work when the interval ended."""
    interval = 0.3
    config = TrainConfig(
        rank=4, epochs=200, threads=1, checkpoint_seconds=interval, metrics_steps=1
    )
    ended: dict[int, float] = {}
    folder = tmp_path / ".a.training"

    def kill_late(step: int, figures: dict[str, float]) -> None:
        ended[step] = time.monotonic()
        if ended[step] - ended[1] > 4.5 * interval and (folder / CHECKPOINT_NAME).is_file():
            raise _KilledError

    with pytest.raises(_KilledError):
        train_adapter(config, base, rows[:64], [], None, tmp_path / "a", kill_late)
    found = load_checkpoint(folder, job_of(folder))
    assert found is not None
    saved, killed = found[0].step, max(ended)
    assert 0 < saved < killed
    longest_step = max(ended[step] - ended[step - 1] for step in range(2, killed + 1))
    assert ended[killed] - ended[saved] <= interval + 2 * longest_step


def test_a_compiled_training_learns_the_same(
    base: BaseRef, rows: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The switch reaches torch.compile; its eager backend compiles nothing, which takes minutes."""
    import torch

    compiled: list[dict[str, Any]] = []
    compile_in_place = torch.nn.Module.compile

    def with_eager_backend(module: Any, **options: Any) -> None:
        compiled.append(options)
        compile_in_place(module, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", with_eager_backend)
    config = TrainConfig(rank=4, epochs=1, threads=1)
    plain = train_adapter(config, base, rows[:64], [], None, tmp_path / "plain")
    asked = config.model_copy(update={"compiled": True})
    same = train_adapter(asked, base, rows[:64], [], None, tmp_path / "compiled")
    assert compiled == [{"dynamic": True}]
    assert same.metrics["train_loss"] == pytest.approx(plain.metrics["train_loss"], rel=1e-4)
    assert _weights_differ_at_most(plain.path, same.path, 1e-4)


def job_of(folder: Path) -> str:
    """Return the name of the job whose checkpoint lies in the folder."""
    from safetensors import safe_open

    with safe_open(str(folder / CHECKPOINT_NAME), framework="pt") as file:
        return str(json.loads(file.metadata()["progress"])["job"])


def _wait_for(condition: Any, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS_MAX
    while not condition():
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "no checkpoint in time"
        time.sleep(0.01)


def test_a_checkpoint_of_another_job_is_not_taken(tmp_path: Path) -> None:
    import torch

    progress = Progress(job="one", step=3, tokens=10, seconds=1.0, loss=0.5)
    save_checkpoint(tmp_path, progress, {"weight.a": torch.ones(2)})
    assert load_checkpoint(tmp_path, "another") is None
    found = load_checkpoint(tmp_path, "one")
    assert found is not None
    assert found[0] == progress
    assert torch.equal(found[1]["weight.a"], torch.ones(2))


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT_NAME).write_bytes(b"not safetensors")
    with pytest.raises(IntegrityError, match="delete it"):
        load_checkpoint(tmp_path, "one")


@pytest.mark.slow
def test_two_processes_train_what_one_trains(
    base: BaseRef, rows: list[Record], tmp_path: Path
) -> None:
    config = TrainConfig(rank=4, epochs=2, threads=1, batch_rows=33)
    one = train_adapter(config, base, rows, [], None, tmp_path / "one")
    job, out = tmp_path / "job.json", tmp_path / "two"
    write_job(job, config, base, rows, [], None, out)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "training.loop", "--job", str(job)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    two = _reopened(config, base, rows, out)
    assert two.metrics["train_steps"] == one.metrics["train_steps"]
    assert two.metrics["train_loss"] == pytest.approx(one.metrics["train_loss"], rel=1e-3)
    assert _weights_differ_at_most(one.path, two.path, 1e-3)


def _reopened(config: TrainConfig, base: BaseRef, rows: list[Record], out: Path) -> AdapterRef:
    """Asking again for a finished training returns what the processes left."""
    return train_adapter(config, base, rows, [], None, out)


def _weights_differ_at_most(one: Path, two: Path, limit: float) -> bool:
    from safetensors.torch import load_file

    left, right = (load_file(folder / "adapter_model.safetensors") for folder in (one, two))
    assert left.keys() == right.keys()
    return all(float((left[name] - right[name]).abs().max()) < limit for name in left)
