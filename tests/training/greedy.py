"""Greedy answers by transformers, one by one: the reference that others must agree with."""

from typing import Any

from core.contracts import Record


def greedy(model: Any, tokenizer: Any, records: list[Record], new_tokens: int = 12) -> list[str]:
    """Answer one by one with transformers' generate: the reference that others must agree with."""
    import torch

    from training.batches import encode_prompt

    answers = []
    for record in records:
        ids = torch.tensor([encode_prompt(record.messages, tokenizer)])
        with torch.no_grad():
            output = model.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new_tokens,
                do_sample=False,
            )
        text = tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True)
        answers.append(text)
    return answers


def share_right(model: Any, tokenizer: Any, records: list[Record]) -> float:
    """Return the share of exactly right greedy answers, 0..1."""
    answers = greedy(model, tokenizer, records)
    return sum(a == r.response for a, r in zip(answers, records, strict=True)) / len(records)
