"""One model cut into stages, a process each: greedy answers to a batch of prompts, in a pipeline.

`torchrun --standalone --nproc-per-node 2 -m serving.pipeline_stages --weights FOLDER --prompts
FILE` prints {"answers": [...]}. For a model too large for one device's memory, and to check such a
set-up; a live service takes the vllm engine, which does the same behind the API.
"""

import argparse
import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from core.contracts import Message
from core.errors import ConfigurationError, InputError, SerinError
from serving.engines.tokens import BundleTokenizer

PARTS = ("embed_tokens", "layers", "norm")
"""What a decoder's `model` must be made of to be cut: Llama, Mistral, Qwen and their kin."""


class Pipeline:
    """This process's stage of a model. Every process makes the same calls with the same values.

    torch.distributed must be initialised; each prompt is one micro-batch, so that the stages work
    at the same time (GPipe: Huang et al. 2019, without its backward pass).
    """

    def __init__(self, weights: Path) -> None:
        """Raises ConfigurationError for a model that cannot be cut into this many stages."""
        import torch.distributed

        self._rank, self._world = torch.distributed.get_rank(), torch.distributed.get_world_size()
        self._device = device()
        model = _load(weights)
        self._ends = _ends(model)
        self._config = model.config
        self._stage = _stage(_cut(model, self._rank, self._world)).to(self._device).eval()

    def generate(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> list[list[int]]:
        """Return the likeliest ids after each prompt, an end token included.

        Raises InputError for a prompt that is empty or, with its answer, outgrows the context.
        """
        import torch

        self._check(prompts, max_tokens)
        self._stage.begin(len(prompts))
        lengths = torch.tensor([len(ids) for ids in prompts]).unsqueeze(1)
        inputs = torch.zeros(len(prompts), int(lengths.max()), dtype=torch.int64)
        for row, ids in enumerate(prompts):
            inputs[row, : len(ids)] = torch.tensor(ids)
        answers: list[list[int]] = [[] for _ in prompts]
        step = self._schedule(len(prompts), inputs.shape[1])
        decode = self._schedule(len(prompts), 1)
        for _ in range(max_tokens):
            inputs = self._run(step, inputs, lengths)
            lengths, step = torch.ones_like(lengths), decode
            for ids, token in zip(answers, inputs[:, 0].tolist(), strict=True):
                if not ids or ids[-1] not in self._ends:
                    ids.append(token)
            if all(ids[-1] in self._ends for ids in answers):
                break
        return answers

    @property
    def is_first(self) -> bool:
        """Whether this process holds the first stage."""
        return bool(self._rank == 0)

    def _check(self, prompts: Sequence[Sequence[int]], max_tokens: int) -> None:
        limit = self._config.max_position_embeddings
        if not prompts or not all(prompts) or max_tokens < 1:
            raise InputError("a batch needs prompts with at least one token, and answers too")
        longest = max(map(len, prompts))
        if longest + max_tokens > limit:
            raise InputError(
                f"{longest} tokens of a prompt and {max_tokens} of its answer outgrow the context "
                f"of {limit}; shorten the prompt or ask for fewer"
            )

    def _schedule(self, rows: int, width: int) -> Any:
        """Return a schedule of `rows` micro-batches with fixed shapes."""
        import torch
        from torch.distributed.pipelining import PipelineStage, ScheduleGPipe

        dtype = self._stage.dtype
        ids = torch.empty(1, width, dtype=torch.int64, device="meta")
        hidden = torch.empty(1, width, self._config.hidden_size, dtype=dtype, device="meta")
        token = torch.empty(1, 1, dtype=torch.int64, device="meta")
        stage = PipelineStage(
            self._stage,
            self._rank,
            self._world,
            self._device,
            input_args=(ids if self._rank == 0 else hidden,),
            output_args=(token if self._rank == self._world - 1 else hidden,),
        )
        return ScheduleGPipe(stage, rows)

    def _run(self, schedule: Any, inputs: Any, lengths: Any) -> Any:
        """Run one pass; return each row's next token (rows, 1), the same in every process."""
        import torch
        import torch.distributed

        lanes = torch.arange(len(inputs)).unsqueeze(1)
        first = (inputs.to(self._device),) if self._rank == 0 else ()
        with torch.inference_mode():
            made = schedule.eval(*first, lengths=lengths, lanes=lanes)
            tokens = torch.empty(len(inputs), 1, dtype=torch.int64, device=self._device)
            if made is not None:
                tokens.copy_(made)
            torch.distributed.broadcast(tokens, src=self._world - 1)
        return tokens.cpu()


def _load(weights: Path) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            weights, local_files_only=True, trust_remote_code=False, use_safetensors=True
        )
    except (OSError, ValueError) as error:
        raise InputError(f"{weights} cannot be loaded as a causal model: {error}") from error
    if not all(hasattr(getattr(model, "model", None), part) for part in PARTS):
        raise ConfigurationError(
            f"a {model.config.model_type} model cannot be cut into stages here; use the vllm engine"
        )
    return model


def _ends(model: Any) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset([ends] if isinstance(ends, int) else ends or ())


def _cut(model: Any, rank: int, world: int) -> Any:
    """Drop what other stages hold: layers, and the embedding or the head."""
    import torch

    body = model.model
    total = len(body.layers)
    if world > total:
        raise ConfigurationError(f"{total} layers cannot be cut into {world} stages; use fewer")
    own = body.layers[total * rank // world : total * (rank + 1) // world]
    for index, layer in enumerate(own):
        layer.self_attn.layer_idx = index  # its place in this stage's cache
    body.layers = own
    if rank < world - 1:
        body.norm = model.lm_head = torch.nn.Identity()
    if rank > 0:
        body.embed_tokens = torch.nn.Identity()
    return model


def _stage(model: Any) -> Any:
    import torch
    from transformers import DynamicCache

    class Stage(torch.nn.Module):
        """A part of the layers, with a cache for each row of the batch."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.takes_ids = isinstance(model.model.embed_tokens, torch.nn.Embedding)
            self.gives_ids = isinstance(model.lm_head, torch.nn.Linear)
            self.dtype = next(model.model.layers.parameters()).dtype

        def begin(self, rows: int) -> None:
            self.caches = [DynamicCache() for _ in range(rows)]

        def forward(self, inputs: Any, lengths: Any, lanes: Any) -> Any:
            """Take one row (1, width): ids, or the hidden states of the stage before."""
            cache, length = self.caches[int(lanes)], int(lengths)
            before = cache.get_seq_length()
            given = {"input_ids" if self.takes_ids else "inputs_embeds": inputs}
            hidden = self.model.model(**given, past_key_values=cache, use_cache=True)[0]
            # Padding comes last and attention is causal: nothing saw it, and it goes again.
            cache.crop(before + length)
            if not self.gives_ids:
                return hidden
            return self.model.lm_head(hidden[:, length - 1]).argmax(-1, keepdim=True)

    return Stage()


def device() -> Any:
    """Return this process's GPU where every process has one, else the CPU."""
    import torch

    local = int(os.environ.get("LOCAL_RANK", "0"))
    if torch.cuda.device_count() >= int(os.environ.get("LOCAL_WORLD_SIZE", "1")):
        return torch.device("cuda", local)
    return torch.device("cpu")


@contextmanager
def joined() -> Iterator[None]:
    """Join torchrun's group of processes: nccl on GPUs, gloo on CPUs."""
    import torch
    import torch.distributed

    place = device()
    if place.type == "cuda":
        torch.cuda.set_device(place)
    torch.distributed.init_process_group("nccl" if place.type == "cuda" else "gloo")
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer the prompts of a file; the first process prints. 2 when something is wrong."""
    parser = argparse.ArgumentParser(prog="python -m serving.pipeline_stages", description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="a bundle's weights folder")
    parser.add_argument("--prompts", type=Path, required=True, help="one user's turn per line")
    parser.add_argument("--max-tokens", type=int, default=32)
    given = parser.parse_args(arguments)
    try:
        lines = given.prompts.read_text(encoding="utf-8").split("\n")
        tokenizer = BundleTokenizer(given.weights)
        prompts = [tokenizer.encode((Message("user", line),)) for line in lines if line.strip()]
        with joined():
            pipeline = Pipeline(given.weights)
            answers = tokenizer.decode(pipeline.generate(prompts, given.max_tokens))
            if pipeline.is_first:
                print(json.dumps({"answers": answers}))
    except (SerinError, OSError) as error:
        print(f"pipeline_stages: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
