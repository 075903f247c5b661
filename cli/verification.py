"""Derives every recorded decision of the canary judge again, from what the ledger kept.

Knows the judge and the ledger's events; whether the events themselves are whole is the ledger's
own check.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec
from pydantic import ValidationError

from core.contracts import CounterSample
from core.digests import canonical_json, chain_digest
from validation.canary import CanaryConfig, CanaryJudge

if TYPE_CHECKING:
    from rollout.ledger import Ledger


@dataclass(slots=True)
class _Kept:
    """A release's scrapes as kept, and the judges that have seen a beginning of them."""

    texts: list[str]
    digests: list[str] = field(default_factory=lambda: [""])
    judges: dict[str, tuple[int, CanaryJudge]] = field(default_factory=dict)

    def digest(self, samples: int) -> str:
        """The chained digest of the first `samples` scrapes."""
        while len(self.digests) <= samples:
            self.digests.append(chain_digest(self.digests[-1], self.texts[len(self.digests) - 1]))
        return self.digests[samples]

    def decide(self, samples: int, config: Mapping[str, Any]) -> Mapping[str, Any]:
        """What the judge says after the first `samples` scrapes."""
        key = canonical_json(config).decode()
        seen, judge = self.judges.get(key, (0, None))
        if judge is None or seen > samples:
            seen, judge = 0, CanaryJudge(CanaryConfig.model_validate(config))
        for text in self.texts[seen:samples]:
            judge.add(msgspec.json.decode(text, type=CounterSample))
        self.judges[key] = samples, judge
        found: Mapping[str, Any] = msgspec.to_builtins(judge.decide())
        return found


def _again(kept: _Kept, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The decision that recorded inputs give; None for a configuration of another Serin."""
    try:
        return {**kept.decide(inputs["samples"], inputs["config"]), "inputs": inputs}
    except ValidationError:
        return None


def decision_problems(ledger: "Ledger") -> Iterator[str]:
    """Yield a sentence for each recorded decision that its recorded inputs do not give."""
    from rollout.events import plain

    kept: dict[str, _Kept] = {}
    for event in ledger.decided_events():
        decision = event.body.get("decision") or {}
        inputs = decision.get("inputs")
        if inputs is None:
            continue
        if event.release_id not in kept:
            texts = [text for _, text in ledger.sample_texts(event.release_id, 0)]
            kept[event.release_id] = _Kept(texts)
        found, samples = kept[event.release_id], inputs["samples"]
        where = f"event {event.seq} of {event.release_id}"
        if samples > len(found.texts):
            yield f"{where}: {samples - len(found.texts)} of its decision's scrapes are missing"
        elif found.digest(samples) != inputs["digest"]:
            yield f"{where}: the scrapes that its decision was derived from were changed"
        elif (again := _again(found, inputs)) is None:
            yield f"{where}: it was decided by a configuration that this Serin cannot read"
        else:
            if canonical_json(plain(again)) != canonical_json(decision):
                yield (
                    f"{where}: its scrapes give {again['decision']} ({again['reason']}), recorded "
                    f"is {decision['decision']} ({decision['reason']})"
                )
