"""A real serving bundle whose model is scripted, so that tests know each answer beforehand.

The model is an ordinary Llama of one layer whose embeddings are one-hot and whose layer adds
(almost) nothing: the next token depends on the last one only, by a table. Greedy answers are the
same on every engine and precision; at temperature 2 about half of the tokens are drawn at random.
`python -m tests.bundles FOLDER` builds one with training.bundle and prints its path.
"""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD_SECONDS_MAX = 240

SPECIALS = ("<|pad|>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>")
END = "<|end|>"
CHAT_LOOP = "HEY 世界é😀!"
"""What every chat answer says, again and again, until max_tokens. No byte occurs twice."""
COUNTING = "123"
"""A text prompt ending in 1 is answered with 23 and an end."""
ALPHABET = "abcdefghijklmnopqrstuvwxyz"
"""A text prompt ending in a letter is answered with the following letters, round and round."""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] "
    "+ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)
CONTEXT_LENGTH = 4096
HIDDEN = 320
LOGIT_GAP = 12.0
"""Greedy is sure of itself; at temperature 2 exp(6) stands against about 260 other tokens."""


def said(tokens: int) -> str:
    """Return what `tokens` tokens of a chat answer say; the model speaks one byte per token."""
    spoken = itertools.islice(itertools.cycle(CHAT_LOOP.encode()), tokens)
    return bytes(spoken).decode(errors="replace")


def scripted_bundle(folder: Path) -> Path:
    """Build the bundle below `folder` in a process of its own; return its path."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.bundles", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS_MAX,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return Path(done.stdout.strip().splitlines()[-1])


def build(folder: Path) -> Path:
    """Make base, empty adapter and bundle in this process; return the bundle's path."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    from core.digests import digest_folder
    from training.base import BaseRef, model_digest
    from training.bundle import build_bundle
    from training.config import BundleConfig
    from training.lora import AdapterRef

    torch.set_num_threads(1)
    base, adapter = folder / "base", folder / "adapter"
    tokenizer = scripted_tokenizer()
    tokenizer.save_pretrained(str(base))
    scripted_model(tokenizer).save_pretrained(str(base))
    shape = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    get_peft_model(LlamaForCausalLM.from_pretrained(base), shape).save_pretrained(str(adapter))
    bundle = build_bundle(
        BundleConfig(),
        BaseRef(base, model_digest(base)),
        AdapterRef(adapter, digest_folder(adapter), {}),
        "snapshot-scripted",
        folder / "bundles",
    )
    return bundle.path


def scripted_tokenizer() -> Any:
    """Return a tokenizer with one token per byte and the chat's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {name: number for number, name in enumerate([*SPECIALS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=SPECIALS[0],
        eos_token=END,
        additional_special_tokens=list(SPECIALS[2:]),
        model_max_length=CONTEXT_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def scripted_model(tokenizer: Any) -> Any:
    """Return the model; `following[token]` comes after it, the end where nothing is said."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    size, end = len(tokenizer), tokenizer.convert_tokens_to_ids(END)
    following = [end] * size
    start = tokenizer.convert_tokens_to_ids("<|assistant|>")
    spoken = tokenizer(CHAT_LOOP, add_special_tokens=False).input_ids
    counted = tokenizer(COUNTING, add_special_tokens=False).input_ids
    letters = tokenizer(ALPHABET, add_special_tokens=False).input_ids
    loop = dict(zip([start, *spoken], [*spoken, spoken[0]], strict=True))
    for known in (dict(zip(letters, letters[1:] + letters[:1], strict=True)), loop):
        for token, after in known.items():
            following[token] = after
    for token, after in zip(counted, [*counted[1:], end], strict=True):
        following[token] = after
    shape = LlamaConfig(
        vocab_size=size,
        hidden_size=HIDDEN,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=5,
        num_key_value_heads=1,
        max_position_embeddings=CONTEXT_LENGTH,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=end,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=1e-4,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(shape)
    with torch.no_grad():
        model.model.embed_tokens.weight.copy_(torch.eye(size, HIDDEN))
        head = torch.zeros(size, HIDDEN)
        for token, after in enumerate(following):
            head[after, token] = (
                LOGIT_GAP / HIDDEN**0.5
            )  # the norm scales a one-hot by sqrt(HIDDEN)
        model.lm_head.weight.copy_(head)
    model.generation_config = GenerationConfig(
        eos_token_id=end, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return model


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
