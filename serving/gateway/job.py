"""One request that has been drawn, on its way to an answer: what is asked, and how it fared."""

import time
from dataclasses import dataclass
from typing import Protocol

from multidict import CIMultiDict

from serving.gateway.balancer import Arm
from serving.gateway.cache_store import KeptAnswer
from serving.gateway.outcomes import Outcome
from serving.gateway.pools import Region
from serving.gateway.reply import Header
from serving.gateway.response_ids import PREFIXES, RESPONSE_ID_HEADER, Mark
from serving.gateway.settlement import Draw


class Counts(Protocol):
    """Where a request is counted: its arm's series, or another region's pool."""

    def draw(self) -> None:
        """Count the request."""

    def finish(self, outcome: Outcome, seconds: float) -> None:
        """Count its outcome."""

    def retry(self, reason: str) -> None:
        """Count that it needed another endpoint."""


@dataclass(slots=True)
class Job:
    """One request that has been drawn. `deadline` is in loop time.

    `draw` is None for a request that is no observation; `mark` is what its id says of the drawn
    arm's answer.
    """

    service: str
    arm: Arm
    series: Counts
    draw: Draw | None
    mark: Mark
    path: str
    headers: CIMultiDict[str]
    body: bytes
    deadline: float
    region: Region | None = None
    """Where it is sent first; None without other regions."""
    stays: bool = False
    """Another gateway has chosen the region: it goes to no other."""
    hedged: bool = False
    """It may be sent to a second endpoint while the first is slow."""
    failed: bool = False
    """The drawn arm failed it: an error of that arm, even if another endpoint answers."""
    blocked: bool = False
    """The answer was held back by safety rules."""
    named: str | None = None
    """The arm's place that the answer's id names now."""
    answer: bytes | None = None
    """The drawn arm's answer, where the client got it whole."""
    answer_head: tuple[int, list[Header]] = (0, [])
    """Status and headers of that answer."""

    def kept(self) -> KeptAnswer | None:
        """Return the answer as it may be given to others; None for any but a plain, whole one.

        What another region answered is that region's to keep.
        """
        status, headers = self.answer_head
        plain = not self.failed and not self.blocked and self.named == self.arm.place
        if self.answer is None or status != 200 or not plain or self.arm.region:
            return None
        return KeptAnswer(headers, self.response_id, self.answer, time.time())

    @property
    def response_id(self) -> bytes:
        """The answer's id as clients see it."""
        return f"{PREFIXES['chat/' not in self.path]}{self.headers[RESPONSE_ID_HEADER]}".encode()

    def settle(self, outcome: Outcome, seconds: float) -> None:
        """Give the observation its outcome; only the first call counts."""
        if self.draw is not None:
            self.draw.finish(self.failed or outcome == "error", self.blocked, seconds)
