"""What a kept answer is, and what every place that keeps answers gives; knows no request."""

from typing import Protocol

import msgspec

POLICY_HEADER = b"x-serin-policy"


class KeptAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One whole answer as a client got it: its headers, its id's header value and its body.

    `kept_at_seconds` is in seconds since the epoch, so that other gateways can tell its age.
    """

    headers: list[tuple[bytes, bytes]]
    response_id: bytes
    body: bytes
    kept_at_seconds: float

    @property
    def policy(self) -> str:
        """The digest of the safety policy that it was made under; empty if it does not say."""
        return dict(self.headers).get(POLICY_HEADER, b"").decode("latin-1")


class CacheStore(Protocol):
    """A place for kept answers. It may lose any of them, and never fails a request."""

    async def get(self, key: bytes) -> KeptAnswer | None:
        """Return the answer kept under a key, unless it is too old or was never there."""

    async def put(self, key: bytes, answer: KeptAnswer) -> None:
        """Keep an answer under a key for the configured time, if there is room."""

    async def close(self) -> None:
        """Give back what the place holds open."""

    @property
    def entries(self) -> int:
        """Answers held by this process itself."""

    @property
    def errors(self) -> int:
        """Calls that the place could not carry out."""
