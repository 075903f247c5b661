"""Models that judge texts: Llama Guard 4, Qwen3Guard, and any transformers text classifier.

Read from local folders only. Each speaks its own format; here it becomes a decision.
"""

import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from core.contracts import Role
from core.errors import ConfigurationError, UnavailableError
from serving.safety.decisions import Context, Decision, Filter
from serving.safety.policy import GuardPolicy

ANSWER_TOKENS_MAX = 64
"""A guard's verdict is a few words; Llama Guard says at most `unsafe` and its codes."""
TEXT_TOKENS_MAX = 8192
HAZARDS = {
    "S1": "violent_crimes",
    "S2": "non_violent_crimes",
    "S3": "sex_related_crimes",
    "S4": "child_sexual_exploitation",
    "S5": "defamation",
    "S6": "specialised_advice",
    "S7": "privacy",
    "S8": "intellectual_property",
    "S9": "indiscriminate_weapons",
    "S10": "hate",
    "S11": "suicide_and_self_harm",
    "S12": "sexual_content",
    "S13": "elections",
    "S14": "code_interpreter_abuse",
}
"""Llama Guard 3 and 4's codes: the MLCommons hazards (model card of meta-llama/Llama-Guard-4)."""
QWEN_SAFETY = re.compile(r"Safety:\s*(Safe|Unsafe|Controversial)")
QWEN_CATEGORIES = re.compile(r"Categories:\s*([^\n]+)")


def build_guard(part: GuardPolicy) -> Filter:
    """Load the guard that a policy names. Raises ConfigurationError when it cannot be read."""
    if not Path(part.path).is_dir():
        raise ConfigurationError(f"guard {part.name}: {part.path} is no folder with a model")
    try:
        if part.kind == "classifier":
            return ClassifierGuard(part)
        return GenerativeGuard(part)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigurationError(
            f"guard {part.name}: {part.path} cannot be loaded: {error}"
        ) from error


def read_llama_guard(answer: str, wanted: Sequence[str] = ()) -> Decision:
    """Read `safe`, or `unsafe` and a line of codes (`S1,S9`). Raises UnavailableError for others.

    With `wanted` codes only those block.
    """
    lines = answer.strip().split("\n")
    verdict = lines[0].strip().lower()
    if verdict == "safe":
        return Decision("allow")
    if verdict != "unsafe":
        raise UnavailableError(f"the guard answered {answer[:80]!r}, neither safe nor unsafe")
    codes = [code.strip().upper() for code in ",".join(lines[1:]).split(",") if code.strip()]
    if wanted and codes and not set(codes) & set(wanted):
        return Decision("allow", score=1.0, reason="unsafe, but of categories that are allowed")
    chosen = next((code for code in codes if not wanted or code in wanted), "")
    category = HAZARDS.get(chosen, chosen.lower() or "unsafe")
    return Decision("block", category, 1.0, f"judged unsafe: {', '.join(codes) or 'no code'}")


def read_qwen3_guard(answer: str, block_controversial: bool = False) -> Decision:
    """Read `Safety: ...` and `Categories: ...`. Raises UnavailableError for anything else."""
    found = QWEN_SAFETY.search(answer)
    if found is None:
        raise UnavailableError(f"the guard answered {answer[:80]!r}, without a Safety line")
    named = QWEN_CATEGORIES.search(answer)
    categories = [part.strip() for part in named.group(1).split(",")] if named else []
    first = next((item for item in categories if item and item != "None"), "unsafe")
    category = re.sub(r"\W+", "_", first.lower()).strip("_")
    verdict = found.group(1)
    reason = f"judged {verdict}: {', '.join(categories)}"
    if verdict == "Unsafe" or verdict == "Controversial" and block_controversial:
        return Decision("block", category, 1.0 if verdict == "Unsafe" else 0.5, reason)
    score = 0.5 if verdict == "Controversial" else 0.0
    return Decision("allow", category if score else "none", score, reason if score else "")


class GenerativeGuard:
    """A language model that answers with its verdict; its own chat template asks the question."""

    def __init__(self, part: GuardPolicy) -> None:
        from transformers import AutoConfig, AutoTokenizer

        self.name = part.name
        self._part = part
        self._tokenizer = AutoTokenizer.from_pretrained(part.path, local_files_only=True)
        config = AutoConfig.from_pretrained(part.path, local_files_only=True)
        self._model = _language_model(part.path, config).eval()
        self._lock = threading.Lock()
        self._typed_parts = part.kind == "llama_guard"
        specials = {*self._tokenizer.all_special_tokens, *self._tokenizer.get_added_vocab()}
        self._specials = re.compile("|".join(map(re.escape, sorted(specials))) or r"(?!)")

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Ask the model about the text, an answer together with the question before it."""
        turns = conversation(role, text, context, self._typed_parts, self._specials)
        answer = self._answer(turns)
        if self._part.kind == "llama_guard":
            return read_llama_guard(answer, self._part.labels)
        return read_qwen3_guard(answer, self._part.block_controversial)

    def _answer(self, turns: list[dict[str, Any]]) -> str:
        import torch

        prompt = self._tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, tokenize=False
        )
        inputs = self._tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        ids = inputs["input_ids"]
        if ids.shape[1] > TEXT_TOKENS_MAX:
            raise UnavailableError(f"{ids.shape[1]} tokens are more than {TEXT_TOKENS_MAX}")
        with self._lock, torch.inference_mode():
            made = self._model.generate(
                input_ids=ids.to(self._model.device),
                attention_mask=inputs["attention_mask"].to(self._model.device),
                max_new_tokens=ANSWER_TOKENS_MAX,
                do_sample=False,
            )
        return str(self._tokenizer.decode(made[0][ids.shape[1] :], skip_special_tokens=True))


class ClassifierGuard:
    """A sequence classifier; the highest probability of a label that blocks is the score."""

    def __init__(self, part: GuardPolicy) -> None:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.name = part.name
        self._threshold = part.threshold
        self._tokenizer = AutoTokenizer.from_pretrained(part.path, local_files_only=True)
        loaded = AutoModelForSequenceClassification.from_pretrained(
            part.path, local_files_only=True, use_safetensors=True
        )
        self._model = loaded.eval()
        labels = {int(at): str(label) for at, label in loaded.config.id2label.items()}
        unknown = sorted(set(part.labels) - set(labels.values()))
        if unknown or not part.labels:
            known = ", ".join(labels.values())
            raise ConfigurationError(
                f"guard {part.name}: name the labels that block, out of {known}"
            )
        self._labels = {at: label for at, label in labels.items() if label in part.labels}
        self._several = loaded.config.problem_type == "multi_label_classification"
        self._length = int(getattr(loaded.config, "max_position_embeddings", 512))
        self._lock = threading.Lock()

    def check(self, role: Role, text: str, context: Context) -> Decision:
        """Score every window of the text that the model can read at once."""
        import torch

        window = max(8, self._length - 2)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        starts = range(0, max(1, len(ids)), window)
        label, score = "none", 0.0
        with self._lock, torch.inference_mode():
            for start in starts:
                piece = self._tokenizer.decode(ids[start : start + window]) if ids else text
                inputs = self._tokenizer(
                    piece, return_tensors="pt", truncation=True, max_length=self._length
                ).to(self._model.device)
                logits = self._model(**inputs).logits[0]
                odds = logits.sigmoid() if self._several else logits.softmax(-1)
                for at, name in self._labels.items():
                    if float(odds[at]) > score:
                        label, score = name, float(odds[at])
        category = re.sub(r"\W+", "_", label.lower()).strip("_")
        if score < self._threshold:
            return Decision("allow", score=score)
        return Decision("block", category, score, f"{label} with probability {score:.2f}")


def conversation(
    role: Role, text: str, context: Context, typed_parts: bool, specials: "re.Pattern[str]"
) -> list[dict[str, Any]]:
    """Return the turns to judge: an answer comes after the user's last question.

    The names of the tokenizer's special tokens are taken out: a text that holds them could end
    its own turn and answer in the guard's place.
    """
    turns: list[tuple[str, str]] = [("assistant" if role == "assistant" else "user", text)]
    if role == "assistant":
        turns.insert(0, ("user", context.user_texts[-1] if context.user_texts else ""))
    turns = [(name, specials.sub(" ", said)) for name, said in turns]
    if not typed_parts:
        return [{"role": name, "content": said} for name, said in turns]
    return [{"role": name, "content": [{"type": "text", "text": said}]} for name, said in turns]


def _language_model(path: str, config: Any) -> Any:
    """Load a text model, or the whole of one that also reads images (Llama Guard 4)."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    whole = hasattr(config, "vision_config")
    kind = AutoModelForImageTextToText if whole else AutoModelForCausalLM
    return kind.from_pretrained(path, local_files_only=True, use_safetensors=True, dtype="auto")
