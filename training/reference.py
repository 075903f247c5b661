"""Greedy answers of merged weights by plain transformers, one prompt at a time: slow and right.

What a compiled bundle must agree with. Knows a folder of weights; knows no server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.contracts import Answer, Message
from training.base import load_model
from training.batches import encode_prompt, end_of_turn, load_tokenizer
from training.loop import limited_threads, threads_for


def reference_answers(weights: Path, tokens_max: int) -> Answer:
    """Return an `answer` that loads the folder's safetensors at its first question.

    Answers have at most `tokens_max` tokens; a prompt that leaves no room for one gets "".
    Raises InputError when transformers cannot load the folder.
    """
    loaded: list[tuple[Any, Any]] = []

    def answer(prompts: Sequence[tuple[Message, ...]]) -> Sequence[str]:
        if not loaded:
            loaded.append((load_model(weights).eval(), load_tokenizer(weights)))
        model, tokenizer = loaded[0]
        with limited_threads(threads_for(model)):
            return [_answer(model, tokenizer, prompt, tokens_max) for prompt in prompts]

    return answer


def _answer(model: Any, tokenizer: Any, prompt: tuple[Message, ...], tokens_max: int) -> str:
    import torch
    from transformers import GenerationConfig

    ids = encode_prompt(prompt, tokenizer)
    room = min(tokens_max, model.config.max_position_embeddings - len(ids))
    if room < 1:
        return ""
    end = end_of_turn(tokenizer)
    config = GenerationConfig(
        max_new_tokens=room, do_sample=False, eos_token_id=end, pad_token_id=end
    )
    asked = torch.tensor([ids])
    with torch.inference_mode():
        made = model.generate(
            asked, attention_mask=torch.ones_like(asked), generation_config=config
        )
    return str(tokenizer.decode(made[0, len(ids) :], skip_special_tokens=True))
