"""What a bundle answers to fixed prompts, as digests: by it a restored one is known."""

from collections.abc import Mapping
from pathlib import Path

from core.contracts import Answer, Message
from core.digests import digest_bytes
from tasks.answering import model, remembering

PROMPTS = (
    "what is my account balance",
    "please transfer a hundred dollars to my savings account",
    "wake me at seven tomorrow",
    "will it rain this afternoon",
    "how do i say thank you in french",
    "book a table for two tonight",
    "帮我查一下余额",
    "tell me something that nobody asked before",
)
"""Asked of every bundle in this order; a changed one is not in earlier fingerprints."""
TOKENS_MAX = 32


def fingerprint(answer: Answer) -> dict[str, str]:
    """Return {prompt: digest of the greedy answer}. Raises UnavailableError."""
    answers = answer([(Message("user", prompt),) for prompt in PROMPTS])
    return {
        prompt: digest_bytes(text.encode()) for prompt, text in zip(PROMPTS, answers, strict=True)
    }


def recorded_fingerprint(bundle: Path, engine: str, known: Path, log: Path) -> dict[str, str]:
    """Return a bundle's fingerprint; asked once for each bundle and engine, then read from a file.

    Raises UnavailableError when the bundle does not serve.
    """
    file = known / f"fingerprint-{bundle.name}-{engine}.json"
    with model(bundle, bundle.name, engine, log, TOKENS_MAX) as answer:
        return fingerprint(remembering(answer, file))


def served_fingerprint(bundle: Path, engine: str, log: Path) -> dict[str, str]:
    """Return a bundle's fingerprint, asked now."""
    with model(bundle, bundle.name, engine, log, TOKENS_MAX) as answer:
        return fingerprint(answer)


def differing(recorded: Mapping[str, str], served: Mapping[str, str]) -> list[str]:
    """Return the recorded prompts that are answered otherwise now."""
    return [prompt for prompt, digest in recorded.items() if served.get(prompt) != digest]
