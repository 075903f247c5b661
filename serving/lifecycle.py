"""What one predictor process is, and whether it takes requests: shared by server and routes."""

import asyncio
from dataclasses import dataclass

POLICY_HASH_NONE = ""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who answers. `policy_hash` is empty while no safety policy is loaded."""

    bundle_digest: str
    model_version: str
    model_name: str
    revision: str
    engine: str
    pid: int
    policy_hash: str = POLICY_HASH_NONE

    @property
    def served_as(self) -> str:
        """The `model` field of every answer."""
        return f"{self.model_name}:{self.model_version}"

    @property
    def names(self) -> tuple[str, ...]:
        """Names by which a request may ask for this model."""
        return (self.model_name, self.served_as)


class Lifecycle:
    """Ready, then draining; counts the requests in flight. Lives on the server's event loop."""

    def __init__(self) -> None:
        self.ready = False
        self.draining = False
        self.in_flight = 0
        self._idle = asyncio.Event()
        self._idle.set()

    def entered(self) -> None:
        """A request came in."""
        self.in_flight += 1
        self._idle.clear()

    def left(self) -> None:
        """A request was answered, or its client went away."""
        self.in_flight -= 1
        if self.in_flight == 0:
            self._idle.set()

    async def drain(self, seconds: float) -> bool:
        """Refuse new requests and wait for running ones; return whether all of them ended."""
        self.ready = False
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
