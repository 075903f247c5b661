"""Reference scores of answers: labelled probes from a file, or a scorer that is asked over HTTP.

Says how good one answer is, or that nobody knows; compares no versions and counts nothing.
"""

import asyncio
import logging
import os
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from core.digests import digest_json

log = logging.getLogger(__name__)

FILE_BYTES_MAX = 4 << 20
PROBES_MAX = 10_000
SCORER_BYTES_MAX = 64 << 10


class Turn(msgspec.Struct, frozen=True):
    """One message; other fields of it are not compared."""

    role: str
    content: str


class Probe(msgspec.Struct, frozen=True):
    """One line of the file: a conversation and the one right answer to it."""

    messages: tuple[Turn, ...]
    response: str


class Asked(msgspec.Struct, frozen=True):
    """The part of a chat request that a score depends on."""

    messages: tuple[Turn, ...]


class Scored(msgspec.Struct, frozen=True):
    """What a scorer answers, 0 (bad) to 1 (good)."""

    score: float


class Prompt:
    """The messages of one chat request and their digest."""

    __slots__ = ("digest", "messages")

    def __init__(self, messages: tuple[Turn, ...]) -> None:
        self.messages = messages
        self.digest = bytes.fromhex(digest_json([[turn.role, turn.content] for turn in messages]))


def read_prompt(body: bytes) -> Prompt | None:
    """The prompt of a request's body; None when it has no messages of plain text."""
    try:
        return Prompt(msgspec.json.decode(body, type=Asked).messages)
    except (msgspec.MsgspecError, UnicodeError):
        return None


class Probes:
    """The probes in <home>/probes.jsonl, read again when the file changes; none without it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._responses: dict[bytes, str] = {}
        self._reading = asyncio.Lock()

    async def response(self, digest: bytes) -> str | None:
        """The right answer to a prompt, if it is a probe.

        The file is read in a thread, so that requests need not wait for it. One that cannot be
        read has no probes at all: half a file would be another sample than the one labelled.
        """
        async with self._reading:  # else an old file read slowly could replace a newer one
            await self._refresh()
        return self._responses.get(digest)

    async def _refresh(self) -> None:
        try:
            found = os.stat(self._path)
        except OSError:
            self._responses, self._seen = {}, None
            return
        identity = (found.st_mtime_ns, found.st_ino, found.st_size)
        if identity != self._seen:
            self._responses = await asyncio.to_thread(self._read, found.st_size)
            self._seen = identity

    def _read(self, size: int) -> dict[bytes, str]:
        try:
            if size > FILE_BYTES_MAX:
                raise ValueError(f"it is larger than {FILE_BYTES_MAX} bytes")
            probes = msgspec.json.Decoder(Probe).decode_lines(self._path.read_bytes())
            if len(probes) > PROBES_MAX:
                raise ValueError(f"it has {len(probes)} probes, more than {PROBES_MAX}")
            return {Prompt(probe.messages).digest: probe.response for probe in probes}
        except (OSError, ValueError) as error:  # msgspec's and Unicode's errors are ValueErrors
            log.error("%s is not applied, there are no probes: %s", self._path, error)
            return {}


class Scores:
    """Scores both answers to one prompt: by its probe, else by the configured scorer."""

    def __init__(self, path: Path, scorer_url: str, scorer_seconds_max: float) -> None:
        self._probes = Probes(path)
        self._scorer_url = scorer_url
        self._scorer_seconds_max = scorer_seconds_max

    async def score(
        self, session: aiohttp.ClientSession, prompt: Prompt, answers: tuple[str, str]
    ) -> tuple[int, int] | None:
        """Both answers' scores in whole percent; None when there is no reference for them."""
        response = await self._probes.response(prompt.digest)
        if response is not None:
            first, second = (100 * (answer.strip() == response.strip()) for answer in answers)
            return first, second
        if not self._scorer_url:
            return None
        found = [await self._ask(session, prompt, answer) for answer in answers]
        return None if found[0] is None or found[1] is None else (found[0], found[1])

    async def _ask(self, session: aiohttp.ClientSession, prompt: Prompt, answer: str) -> int | None:
        """Ask the scorer once; None when it fails, is late or says no score."""
        messages = msgspec.to_builtins(prompt.messages)
        content: dict[str, Any] = {"messages": messages, "answer": answer}
        limit = aiohttp.ClientTimeout(total=self._scorer_seconds_max)
        try:
            async with session.post(
                self._scorer_url, json=content, timeout=limit, allow_redirects=False
            ) as reply:
                if reply.status != 200:
                    return None
                text = await read_bounded(reply, SCORER_BYTES_MAX)
            score = msgspec.json.decode(text or b"", type=Scored).score
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError, UnicodeError):
            return None
        return round(100 * score) if 0 <= score <= 1 else None


async def read_bounded(reply: aiohttp.ClientResponse, bytes_max: int) -> bytes | None:
    """The whole body, None when it is larger than that."""
    parts = bytearray()
    while chunk := await reply.content.readany():
        parts += chunk
        if len(parts) > bytes_max:
            return None
    return bytes(parts)
