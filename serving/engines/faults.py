"""Faults on purpose, for tests and demonstrations: slows, fails or kills the engine it wraps.

Switched by a control file per revision; works only where SERIN_ALLOW_FAULTS=1 allowed it.
"""

import asyncio
import logging
import mmap
import os
import random
import signal
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from core.errors import UnavailableError
from serving.engines.engine import Engine, EngineLoad, GenerationRequest, Piece, Prompt

log = logging.getLogger("serin.faults")

READ_INTERVAL_SECONDS = 0.2


class Faults(BaseModel):
    """What the control file may ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    delay_seconds: float = Field(default=0.0, ge=0, le=600, description="wait before answering")
    delay_share: float = Field(default=1.0, ge=0, le=1, description="share of requests delayed")
    error_share: float = Field(default=0.0, ge=0, le=1, description="share of requests failed")
    answer_bytes: int = Field(
        default=0, ge=0, le=8 << 30, description="memory that each answer in work holds"
    )
    crash: bool = Field(default=False, description="kill the process at the next request")
    fail_start: bool = Field(default=False, description="refuse to start")


NO_FAULTS = Faults()


def control_file(home: Path, revision: str) -> Path:
    """Return where the faults of a revision are switched."""
    return home / "control" / "faults" / f"{revision}.json"


class FaultyEngine:
    """An engine that behaves as the control file says, read at most every 0.2 s."""

    def __init__(self, engine: Engine, file: Path, seed: int | None = None) -> None:
        self.name = engine.name
        self.context_length = engine.context_length
        self._engine = engine
        self._file = file
        self._random = random.Random(seed)
        self._faults = NO_FAULTS
        self._read_at_seconds = float("-inf")

    def start(self) -> None:
        """Start the wrapped engine, unless `fail_start` is set (UnavailableError)."""
        if self._current().fail_start:
            raise UnavailableError(f"start refused by the fault switch {self._file}")
        self._engine.start()

    def encode(self, prompt: Prompt) -> tuple[int, ...]:
        """Encode as the wrapped engine does."""
        return self._engine.encode(prompt)

    async def generate(self, request: GenerationRequest) -> AsyncGenerator[Piece, None]:
        """Yield the wrapped engine's pieces after the faults had their turn."""
        faults = self._current()
        if faults.crash:
            log.error("killed by the fault switch %s", self._file)
            os.kill(os.getpid(), signal.SIGKILL)
        with held_memory(faults.answer_bytes):
            if faults.delay_seconds and self._random.random() < faults.delay_share:
                await asyncio.sleep(faults.delay_seconds)
            if faults.error_share and self._random.random() < faults.error_share:
                raise UnavailableError("request failed by the fault switch")
            async with aclosing(self._engine.generate(request)) as pieces:
                async for piece in pieces:
                    yield piece

    def load(self) -> EngineLoad:
        """Return the wrapped engine's load."""
        return self._engine.load()

    def stop(self) -> None:
        """Stop the wrapped engine."""
        self._engine.stop()

    def _current(self) -> Faults:
        now = time.monotonic()
        if now - self._read_at_seconds >= READ_INTERVAL_SECONDS:
            self._read_at_seconds = now
            self._faults = read_faults(self._file)
        return self._faults


@contextmanager
def held_memory(size: int) -> Iterator[None]:
    """Hold so many bytes of resident memory; at the end the system has them back.

    A mapping of its own: what an allocator frees may stay with the process.
    """
    if not size:
        yield
        return
    with mmap.mmap(-1, size) as memory:
        memory[:: mmap.PAGESIZE] = b"\1" * -(-size // mmap.PAGESIZE)  # resident once written to
        yield


def read_faults(file: Path) -> Faults:
    """Return what the file asks for; nothing when it is absent or (logged) malformed."""
    try:
        return Faults.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return NO_FAULTS
    except (OSError, ValidationError) as error:
        log.error("fault switch %s is ignored: %s", file, error)
        return NO_FAULTS
