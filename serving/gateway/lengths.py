"""Whether too many recent inputs are long: then long ones are refused until they are few again."""

from collections import deque

from serving.gateway.guard_config import GuardConfig

WINDOW_SECONDS = 60.0
WINDOW_REQUESTS_MAX = 2000


class InputLengths:
    """The lengths of the last minute's requests, refused ones included."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self._recent: deque[tuple[float, bool]] = deque()
        self._long = 0
        self._filtering = False

    def is_long(self, body_bytes: int) -> bool:
        """Whether a request of that size is long, estimated in tokens."""
        return body_bytes > self._config.input_tokens_long * self._config.input_bytes_per_token

    def add(self, long: bool, now: float) -> None:
        """Count one request."""
        self._recent.append((now, long))
        self._long += long
        self._forget(now)

    def share(self, now: float) -> float | None:
        """The share of long inputs; None when there are too few requests to tell."""
        self._forget(now)
        if len(self._recent) < self._config.input_requests_min:
            return None
        return self._long / len(self._recent)

    def filtering(self, now: float) -> bool:
        """Whether long inputs shall be refused now; it ends at a lower share than it began."""
        share = self.share(now)
        limit = self._config.input_long_share_max
        if self._filtering:
            limit = self._config.input_long_share_clear
        self._filtering = share is not None and share > limit
        return self._filtering

    def _forget(self, now: float) -> None:
        recent = self._recent
        while recent and (
            len(recent) > WINDOW_REQUESTS_MAX or now - recent[0][0] >= WINDOW_SECONDS
        ):
            self._long -= recent.popleft()[1]
