"""One small HTTP request over loopback, as cheap as it can be: a new connection, a bounded answer.

Health requests run every second for every predictor; a full HTTP client would cost ten times more.
"""

import asyncio
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from core.errors import UnavailableError
from core.keys import bearer

ANSWER_BYTES_MAX = 1 << 16
HEALTH_PATH = "/v2/health/ready"
IDENTITY_PATH = "/serin/identity"
ROUTES_PATH = "/serin/routes"


@dataclass(frozen=True, slots=True)
class Answer:
    """Status code and body of an HTTP answer."""

    status: int
    body: bytes


async def fetch(url: str, timeout_seconds: float, token: str = "") -> Answer:
    """Return the answer to GET `url` (http only), asked with a token where one is given.

    Raises UnavailableError when nobody listens or the answer is not HTTP, and TimeoutError when it
    does not come in time: a refusal and a silence mean different things to the caller.
    """
    parts = urlsplit(url)
    try:
        async with asyncio.timeout(timeout_seconds):
            reader, writer = await asyncio.open_connection(parts.hostname, parts.port or 80)
            try:
                path = parts.path or "/"
                shown = f"Authorization: {bearer(token)}\r\n" if token else ""
                head = f"GET {path} HTTP/1.0\r\nHost: {parts.netloc}\r\n{shown}\r\n"
                writer.write(head.encode())
                return await _read(reader)
            finally:
                writer.close()
    except TimeoutError:
        raise
    except OSError as error:
        raise UnavailableError(f"{url} does not answer: {error}") from error


async def _read(reader: asyncio.StreamReader) -> Answer:
    data = b""
    while chunk := await reader.read(ANSWER_BYTES_MAX):
        data += chunk
        if len(data) > ANSWER_BYTES_MAX:
            raise UnavailableError("the answer is too long")
    head, found, body = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if not found or len(words) < 2 or not words[1].isdigit():
        raise UnavailableError("the answer is not HTTP")
    return Answer(int(words[1]), body)


@dataclass(frozen=True, slots=True)
class Identity:
    """What a predictor says of itself; further fields are ignored."""

    bundle_digest: str
    revision: str = ""


@dataclass(frozen=True, slots=True)
class AppliedRoutes:
    """What the gateway says of its routes."""

    generation: int


async def ask_identity(url: str, timeout_seconds: float, token: str) -> Identity:
    """Return a predictor's identity. Raises UnavailableError or TimeoutError."""
    answer = await fetch(url + IDENTITY_PATH, timeout_seconds, token)
    if answer.status != 200:
        raise UnavailableError(f"{url}{IDENTITY_PATH} answers {answer.status}")
    try:
        return msgspec.json.decode(answer.body, type=Identity)
    except msgspec.MsgspecError as error:
        raise UnavailableError(f"{url}{IDENTITY_PATH} answers something else: {error}") from error


async def ask_generation(gateway_url: str, timeout_seconds: float) -> int:
    """Return the generation of the routes that the gateway uses.

    Raises UnavailableError or TimeoutError.
    """
    url = gateway_url.rstrip("/") + ROUTES_PATH
    answer = await fetch(url, timeout_seconds)
    if answer.status != 200:
        raise UnavailableError(f"{url} answers {answer.status}")
    try:
        return msgspec.json.decode(answer.body, type=AppliedRoutes).generation
    except msgspec.MsgspecError as error:
        raise UnavailableError(f"{url} answers something else: {error}") from error
