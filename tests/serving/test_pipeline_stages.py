"""Two real processes hold one model's halves and answer as one process does."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from core.contracts import Message
from serving.engines.tokens import BundleTokenizer
from tests.bundles import scripted_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TOKENS = 12
CONTEXT_LENGTH = 256
PROMPTS = ("where is it?", "a much longer question, with a 世界 in it", "b")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of three layers: the stages are not of one size."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("pipeline") / "weights"
    tokenizer = scripted_tokenizer()
    torch.manual_seed(3)
    shape = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_LENGTH,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.5,
    )
    LlamaForCausalLM(shape).save_pretrained(str(folder))
    tokenizer.save_pretrained(str(folder))
    return folder


def pipeline(weights: Path, prompts: Path, tokens: int) -> subprocess.CompletedProcess[str]:
    """Run two stages under torchrun."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    options = ["--weights", str(weights), "--prompts", str(prompts), "--max-tokens", str(tokens)]
    return subprocess.run(
        [sys.executable, *launch, "-m", "serving.pipeline_stages", *options],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def alone(weights: Path) -> list[str]:
    """What transformers answers in this process, one prompt at a time."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    tokenizer = BundleTokenizer(weights)
    model: Any = AutoModelForCausalLM.from_pretrained(weights).eval()
    end = model.config.eos_token_id
    config = GenerationConfig(
        max_new_tokens=TOKENS, do_sample=False, eos_token_id=end, pad_token_id=end
    )
    answers = []
    for text in PROMPTS:
        ids = torch.tensor([tokenizer.encode((Message("user", text),))])
        mask = torch.ones_like(ids)
        made = model.generate(ids, attention_mask=mask, generation_config=config)
        answers.append(made[0, ids.shape[1] :].tolist())
    return tokenizer.decode(answers)


@pytest.mark.slow
def test_two_stages_answer_as_one_process_does(weights: Path, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(PROMPTS), encoding="utf-8")
    done = pipeline(weights, prompts, TOKENS)
    assert done.returncode == 0, done.stderr[-3000:]
    answers = json.loads(done.stdout.strip().splitlines()[-1])["answers"]
    assert answers == alone(weights)
    assert len(set(answers)) == len(PROMPTS)


@pytest.mark.slow
def test_a_prompt_that_outgrows_the_context_is_refused_by_every_stage(
    weights: Path, tmp_path: Path
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("hi", encoding="utf-8")
    done = pipeline(weights, prompts, CONTEXT_LENGTH)
    assert done.returncode != 0
    assert done.stderr.count("outgrow the context") == 2
