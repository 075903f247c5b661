"""What live prompts are like, as counts over many of them: enough to see a drift, and no more.

Keeps no prompt, no part of one and no digest of one; see core.words.features.
"""

import random
from collections import Counter
from collections.abc import Iterator

import msgspec

from core.words import features
from serving.gateway.exposition import family, labels

PREFIX = "serin_gateway_prompt_"
SERVICES_MAX = 64


class _Turn(msgspec.Struct):
    role: str
    content: str


class _Chat(msgspec.Struct):
    messages: list[_Turn]


class PromptCounts:
    """Counts the features of a share of the prompts, chosen at random."""

    def __init__(self, share: float, seed: int | None = None) -> None:
        self._share = share
        self._random = random.Random(seed)
        self._decoder = msgspec.json.Decoder(_Chat)
        self._prompts: Counter[str] = Counter()
        self._features: dict[str, Counter[tuple[str, str]]] = {}

    def see(self, service: str, body: bytes) -> None:
        """Count one request's last question, if it is drawn and is plain text."""
        if self._random.random() >= self._share:
            return
        if service not in self._features and len(self._features) >= SERVICES_MAX:
            return
        try:
            turns = self._decoder.decode(body).messages
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return  # the predictor says what is wrong with it
        asked = [turn.content for turn in turns if turn.role == "user"]
        if asked:
            self._prompts[service] += 1
            self._features.setdefault(service, Counter()).update(features(asked[-1]))

    def lines(self) -> Iterator[str]:
        """Yield the counts in Prometheus' text format."""
        text = "Prompts whose features were counted."
        prompts = ((labels(service=name), count) for name, count in self._prompts.items())
        yield from family(PREFIX + "seen_total", "counter", text, prompts)
        text = "Features of those prompts: script, length and hashed words."
        counted = (
            (labels(service=service, feature=feature, bucket=bucket), count)
            for service, found in self._features.items()
            for (feature, bucket), count in found.items()
        )
        yield from family(PREFIX + "features_total", "counter", text, counted)
