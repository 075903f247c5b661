"""What tests of the safety chain share: a policy with everything off but what a test names."""

from typing import Any

from serving.safety.chain import BuildGuard, Chain, build_chain
from serving.safety.policy import Policy

PARTS = ("lexicon", "toxicity", "injection", "personal_data", "secrets", "system_prompt")


def only(build_guard: BuildGuard | None = None, **parts: Any) -> Chain:
    """Return the chain of a policy where everything is off that `parts` does not name."""
    off = {name: {"enabled": False} for name in PARTS}
    return build_chain(Policy(name="of a test", **{**off, **parts}), build_guard)
