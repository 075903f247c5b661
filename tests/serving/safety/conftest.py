"""The shipped chain, built once, and policies that tests write."""

from collections.abc import Callable
from typing import Any

import pytest

from serving.safety.chain import Chain, build_chain
from serving.safety.policy import SHIPPED_POLICY, Policy, read_policy

Make = Callable[..., Chain]


@pytest.fixture(scope="session")
def chain() -> Chain:
    return build_chain(read_policy(SHIPPED_POLICY))


@pytest.fixture(scope="session")
def make_chain() -> Make:
    """Return a chain of a policy where everything is off that a test does not switch on."""

    def make(**parts: Any) -> Chain:
        names = ("lexicon", "toxicity", "injection", "personal_data", "secrets", "system_prompt")
        off = {name: {"enabled": False} for name in names}
        return build_chain(Policy(name="of a test", **{**off, **parts}))

    return make
