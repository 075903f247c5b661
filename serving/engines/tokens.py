"""A bundle's tokenizer and chat template without transformers: conversations to ids, ids to text.

Spells a conversation exactly as training does (a test holds both together). Text of a turn never
becomes a special token, whatever it spells: nobody can end their own turn and speak as another.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from core.contracts import Message
from core.errors import InputError, IntegrityError
from serving.engines.engine import Prompt

TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
NAMED_TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
SENTINEL = "\ue0f1{}\ue0f2"
"""Stands for a turn's text while the template is rendered (private-use code points)."""


class BundleTokenizer:
    """Thread-safe once built. `weights` is a bundle's folder of that name."""

    def __init__(self, weights: Path) -> None:
        """Raises IntegrityError when the folder holds no usable tokenizer or chat template."""
        from tokenizers import Tokenizer

        try:
            text = (weights / TOKENIZER_FILE).read_text(encoding="utf-8")
            config = json.loads((weights / CONFIG_FILE).read_text(encoding="utf-8"))
            file = weights / TEMPLATE_FILE
            template = file.read_text(encoding="utf-8") if file.exists() else ""
            self._spelt = Tokenizer.from_str(text)
            self._plain = Tokenizer.from_str(text)
        except Exception as error:  # noqa: BLE001 - the Rust tokenizer raises bare Exceptions
            raise _unusable(weights, error) from error
        self._plain.encode_special_tokens = True
        for tokenizer in (self._spelt, self._plain):
            tokenizer.no_truncation()
            tokenizer.no_padding()
        added = self._spelt.get_added_tokens_decoder().values()
        self._specials = tuple(token.content for token in added if token.special)
        self._named = {name: _content(config.get(name)) for name in NAMED_TOKENS}
        self._template = _compile(weights, template or config.get("chat_template") or "")

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Return the ids of a conversation up to the answer, or of a text to go on from.

        Raises InputError when the chat template refuses the conversation.
        """
        if isinstance(prompt, str):
            return tuple(self._plain.encode(prompt).ids)
        if not any(name in turn.content for turn in prompt for name in self._specials):
            return tuple(self._spell(self._render([turn.content for turn in prompt], prompt)))
        marks = [SENTINEL.format(index) for index in range(len(prompt))]
        rest = self._render(marks, prompt)
        ids: list[int] = []
        for turn, mark in zip(prompt, marks, strict=True):
            before, found, after = rest.partition(mark)
            if found:  # else the template leaves this turn out
                ids += self._spell(before)
                ids += self._plain.encode(turn.content, add_special_tokens=False).ids
                rest = after
        return tuple(ids + self._spell(rest))

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Return the text of each row of ids, special tokens left out."""
        # One by one: the batch call wakes a thread pool, which costs more than a few rows.
        return [self._spelt.decode(row, skip_special_tokens=True) for row in rows]

    def _spell(self, text: str) -> list[int]:
        ids: list[int] = self._spelt.encode(text, add_special_tokens=False).ids
        return ids

    def _render(self, contents: Sequence[str], turns: Sequence[Message]) -> str:
        from jinja2 import TemplateError

        spoken = [
            {"role": turn.role, "content": content}
            for turn, content in zip(turns, contents, strict=True)
        ]
        try:
            text: str = self._template.render(
                messages=spoken, add_generation_prompt=True, **self._named
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise InputError(f"the chat template refuses this conversation: {error}") from error
        return text


def _compile(weights: Path, template: str) -> Any:
    """Return the template in a sandbox, in the dialect of transformers' chat templates."""
    from jinja2 import TemplateError
    from jinja2.exceptions import TemplateSyntaxError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> NoReturn:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = lambda value, indent=None: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals["raise_exception"] = refuse
    if not template:
        raise IntegrityError(f"{weights} has no chat template; build the bundle again")
    try:
        return environment.from_string(template)
    except TemplateSyntaxError as error:
        raise _unusable(weights, error) from error


def _content(token: Any) -> str | None:
    """Return a named token's text; configurations write it as text or as an object."""
    content: str | None = token.get("content") if isinstance(token, dict) else token
    return content


def _unusable(weights: Path, error: Exception) -> IntegrityError:
    return IntegrityError(f"{weights} has no usable tokenizer: {error}; build the bundle again")
