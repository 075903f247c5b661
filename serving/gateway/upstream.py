"""The HTTP client towards predictors: sends one request once, says how it failed, asks readiness.

Knows endpoints, not arms or retries.
"""

from types import TracebackType

import aiohttp
import msgspec
from multidict import CIMultiDict
from yarl import URL

from serving.gateway.balancer import Endpoint
from serving.gateway.config import GatewayConfig
from serving.gateway.scoring import read_bounded

DEADLINE_HEADER = "x-serin-deadline-seconds"
REVISION_HEADER = "x-serin-revision"
REGION_HEADER = "x-serin-region"
"""To another region's gateway: who has chosen it already. To a client: which region answered."""
IDLE_SECONDS = 2.0
"""An unused connection is closed before any server does it (uvicorn after 5 s, if nothing else is
said): no race between its close and our next request."""
READY_PATH = "/v2/health/ready"
IDENTITY_PATH = "/serin/identity"
IDENTITY_BYTES_MAX = 1 << 16
URLS_MAX = 1000


class _Identity(msgspec.Struct):
    policy_hash: str = ""


class AttemptFailed(Exception):
    """One sending of a request brought no usable answer, and no byte of it reached the client.

    `sent` tells whether work may have begun upstream, `eject` whether the endpoint should rest.
    """

    def __init__(self, reason: str, sent: bool, eject: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.sent = sent
        self.eject = eject


class Reading:
    """`with READING:` translates what can fail while an answer is awaited or read.

    A class, not a generator, because it is entered for every chunk of a stream.
    """

    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if not isinstance(error, aiohttp.ClientError | TimeoutError | OSError):
            return
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            raise AttemptFailed("not_reached", sent=False) from error
        if isinstance(error, TimeoutError):
            raise AttemptFailed("silent", sent=True) from error
        raise AttemptFailed("connection_lost", sent=True) from error


READING = Reading()


class Upstream:
    """Connections to all endpoints; `authorization` is what those of this region ask for."""

    def __init__(self, config: GatewayConfig, authorization: str) -> None:
        self._config = config
        self.authorization = authorization
        self._session: aiohttp.ClientSession | None = None
        self._urls: dict[tuple[str, str], URL] = {}

    async def start(self) -> None:
        """Open the connection pool on the running loop."""
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=IDLE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._config.connect_seconds_max,
                sock_read=self._config.silence_seconds_max,
            ),
        )

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def post(
        self, endpoint: Endpoint, path: str, headers: CIMultiDict[str], body: bytes
    ) -> aiohttp.ClientResponse:
        """POST once; return the answer when its head is there. To be used inside `with READING`.

        Closing the answer early closes its connection, which cancels the work upstream.
        """
        assert self._session is not None
        url = self._url(endpoint, path)
        return await self._session.post(url, data=body, headers=headers, allow_redirects=False)

    async def ready(self, endpoint: Endpoint) -> bool:
        """Whether the endpoint's readiness route answers 200 in time."""
        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=self._config.probe_seconds_max)
        try:
            async with self._session.get(self._url(endpoint, READY_PATH), timeout=limit) as answer:
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    async def policy(self, endpoint: Endpoint) -> str | None:
        """The digest of the safety policy in force there; None without an answer in time."""
        assert self._session is not None
        limit = aiohttp.ClientTimeout(total=self._config.probe_seconds_max)
        try:
            url = self._url(endpoint, IDENTITY_PATH)
            async with self._session.get(
                url,
                headers={"authorization": self.authorization},
                timeout=limit,
                allow_redirects=False,
            ) as answer:
                if answer.status != 200:
                    return None
                content = await read_bounded(answer, IDENTITY_BYTES_MAX)
            return msgspec.json.decode(content or b"", type=_Identity).policy_hash
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.MsgspecError):
            return None

    def _url(self, endpoint: Endpoint, path: str) -> URL:
        key = (endpoint.url, path)
        found = self._urls.get(key)
        if found is None:
            if len(self._urls) >= URLS_MAX:
                self._urls.clear()
            found = self._urls[key] = URL(endpoint.url + path, encoded=True)
        return found
