"""Who may ask a predictor: whoever holds the gateway's token. Health and readiness are for all."""

import hmac
import re
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.keys import bearer
from serving.api_errors import unauthorised
from serving.connections import error_response

HEALTH_PATHS = re.compile(r"/v2/(health/(live|ready)|models/[^/]+/ready)")
METRICS_PATH = "/metrics"
Refused = Callable[[int, str, str], None]


class TokenCheck:
    """Answers 401 to every request without the token, whatever its path; reads no body of it."""

    def __init__(self, app: ASGIApp, token: str, metrics_open: bool, refused: Refused) -> None:
        """`refused` is told of each refusal: its status, reason and client."""
        self._app = app
        self._expected = bearer(token).encode()
        self._metrics_open = metrics_open
        self._refused = refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] != "http" or self._is_open(scope["path"]) or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        error, peer = unauthorised(), scope.get("client")
        self._refused(error.status, error.code or "", peer[0] if peer else "")
        await error_response(error)(scope, receive, send)

    def _is_open(self, path: str) -> bool:
        if path == METRICS_PATH:
            return self._metrics_open
        return HEALTH_PATHS.fullmatch(path) is not None

    def _is_known(self, scope: Scope) -> bool:
        given = Headers(scope=scope).get("authorization", "").encode("latin-1")
        return hmac.compare_digest(given, self._expected)
