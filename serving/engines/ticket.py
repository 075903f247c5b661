"""One answer in work: what an engine's thread fills and the event loop reads."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence

from core.errors import UnavailableError
from serving.engines.engine import FinishReason, GenerationRequest, Piece
from serving.engines.text import AnswerText


class Ticket:
    """Made on the event loop; `add` to `piece` belong to the engine, the rest to the loop."""

    def __init__(self, request: GenerationRequest) -> None:
        self.request = request
        self.loop = asyncio.get_running_loop()
        self.withdrawn = False
        self._text = AnswerText(
            request.sampling.stop, incremental=request.stream or bool(request.sampling.stop)
        )
        self._pieces: asyncio.Queue[Piece | UnavailableError] = asyncio.Queue()
        self._first_token_seconds = 0.0
        self._unsent = ""

    @property
    def begun(self) -> bool:
        """Whether its answer has a token."""
        return bool(self._text.ids)

    def add(self, ids: Sequence[int]) -> None:
        """Take newly generated token ids."""
        if ids and not self._text.ids:
            self._first_token_seconds = time.perf_counter()
        self._text.add(ids)

    def windows(self, ended: bool) -> list[list[int]]:
        """Return the rows of ids that must be decoded for the next `piece`."""
        return self._text.windows(ended)

    def piece(self, texts: Sequence[str], reason: FinishReason | None) -> Piece | None:
        """Return the next piece from the decoded windows; None when nothing may leave yet."""
        text, stopped = self._text.accept(texts, reason is not None)
        reason = "stop" if stopped else reason
        self._unsent += text
        if reason is None and not (self.request.stream and self._unsent):
            return None
        text, self._unsent = self._unsent, ""
        return Piece(text, len(self._text.ids), self._first_token_seconds, reason)

    def put(self, item: Piece | UnavailableError) -> None:
        """Hand a piece, or the engine's failure, to the reader (on the loop)."""
        self._pieces.put_nowait(item)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the pieces until the last one. Raises UnavailableError when the engine failed."""
        while True:
            item = await self._pieces.get()
            if isinstance(item, UnavailableError):
                raise item
            yield item
            if item.finish_reason is not None:
                return
