"""The shipped chain, built once."""

import pytest

from serving.safety.chain import Chain, build_chain
from serving.safety.policy import SHIPPED_POLICY, read_policy


@pytest.fixture(scope="session")
def chain() -> Chain:
    return build_chain(read_policy(SHIPPED_POLICY))
