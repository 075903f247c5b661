"""What is refused before any work is done: banned clients, unknown keys, used-up budgets, too much.

Everything here comes before the draw, so that no refusal counts for an arm.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from core.errors import InputError
from serving.gateway.addresses import UNKNOWN, client_address, is_in, networks
from serving.gateway.bans import BanFile, Bans
from serving.gateway.budgets import Budgets
from serving.gateway.exposition import family, labels
from serving.gateway.guard_config import GuardConfig
from serving.gateway.keys import Caller, Keys
from serving.gateway.lengths import InputLengths
from serving.gateway.mode import Mode, ModeFile
from serving.gateway.reply import Refusal
from serving.gateway.strikes import Strikes

log = logging.getLogger(__name__)

LENGTH_FIELDS = ("max_tokens", "max_completion_tokens")


class _Usage(msgspec.Struct, frozen=True):
    total_tokens: int = 0


class _Answer(msgspec.Struct, frozen=True):
    usage: _Usage = _Usage()


class Guard:
    """Lets callers in, bounds what they ask, and remembers what they did wrong."""

    def __init__(self, config: GuardConfig, home: Path, keys: str) -> None:
        """Raises ConfigurationError for malformed `keys` (see Keys)."""
        self._config = config
        self._trusted = networks(config.trusted_proxies)
        self._exempt = networks(config.ban_exempt)
        self._keys = Keys(home / "keys.yaml", keys, config.keys_required)
        self._budgets = Budgets()
        self._strikes = Strikes(config.ban_strikes_per_minute, config.addresses_max)
        self._bans = Bans(BanFile(home))
        self._lengths = InputLengths(config)
        self._mode_file = ModeFile(home)
        self._mode = Mode()
        self._struck: dict[str, int] = {}
        self._banned = 0
        self._trouble = ""
        self._watch: asyncio.Task[None] | None = None
        self._answers = msgspec.json.Decoder(_Answer)

    @property
    def degraded(self) -> bool:
        """Whether answers are kept short, given from the cache first, and the least important
        requests refused under load."""
        return self._mode.degraded

    def start(self) -> None:
        """Follow the files of bans and mode."""
        self._watch = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        """Stop following; write down bans that are not yet."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.gather(self._watch, return_exceptions=True)
        await asyncio.to_thread(self._look)

    def address(self, scope: Mapping[str, Any], headers: Mapping[bytes, bytes]) -> str:
        """Return the address a request comes from. Raises Refusal: 403 for a banned
        one, 429 for one that the request filter holds back."""
        peer = scope.get("client")
        address = client_address(peer[0] if peer else "", headers, self._trusted)
        seconds = self._bans.seconds_left(address)
        if seconds:
            text = f"requests from {address} are refused for another {seconds:.0f} s"
            raise Refusal(403, text, "banned", retry_after_seconds=int(seconds) + 1)
        if self._mode.request_filter:
            struck = self._strikes.count(address, time.monotonic())
            if struck >= self._config.filtered_strikes_per_minute:
                text = f"{struck} requests of {address} were refused within a minute; wait for one"
                raise Refusal(429, text, "filtered", retry_after_seconds=60)
        return address

    def identify(self, headers: Mapping[bytes, bytes], address: str) -> Caller:
        """Return who asks. Raises Refusal (401)."""
        return self._keys.identify(headers, address)

    def admit(self, caller: Caller, body: bytes, busy_share: float) -> bytes:
        """Return the request to answer: shortened while degraded. Raises Refusal (413, 429).

        `busy_share` says how many of the gateway's places are taken, 0 to 1.
        """
        config = self._config
        low = caller.priority < config.degraded_priority_min
        if self.degraded and low and busy_share >= config.degraded_busy_share:
            text = "the service is under pressure and refuses less important requests; try later"
            raise Refusal(429, text, "shed", retry_after_seconds=10)
        self._budgets.enter(caller)
        now = time.monotonic()
        long = self._lengths.is_long(len(body))
        self._lengths.add(long, now)
        if long and self._filtering(now):
            text = (
                f"inputs of more than {config.input_tokens_long} tokens are refused for now; "
                "shorten it or try later"
            )
            raise Refusal(413, text, "input_too_long", retry_after_seconds=60)
        return self._shortened(body) if self.degraded else body

    def charge(self, caller: Caller, body: bytes, answer: bytes | None, events: int) -> None:
        """Count the tokens of an answer: as it says, else estimated from prompt and events."""
        if caller.limits is None or caller.limits.tokens_per_minute is None:
            return
        tokens = 0
        if answer is not None:
            with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):  # not OpenAI's form
                tokens = self._answers.decode(answer).usage.total_tokens
        estimate = int(len(body) / self._config.input_bytes_per_token) + events
        self._budgets.charge(caller, tokens or estimate)

    def strike(self, address: str, kind: str) -> None:
        """Count something malicious; too much of it in a minute bans the address."""
        self._struck[kind] = self._struck.get(kind, 0) + 1
        if address == UNKNOWN or is_in(address, self._exempt):
            return
        if self._strikes.add(address, time.monotonic()):
            seconds, most = self._config.ban_seconds, self._config.ban_strikes_per_minute
            self._bans.ban(address, seconds, f"more than {most} malicious requests in a minute")
            self._strikes.forget(address)
            self._banned += 1
            log.warning("%s is banned for %g s: %s", address, seconds, kind)

    def lines(self) -> Iterator[str]:
        """Yield bans, strikes and the mode in Prometheus' text format."""
        now = time.monotonic()
        share = self._lengths.share(now)
        prefix = "serin_gateway_"
        struck = ((labels(kind=kind), count) for kind, count in self._struck.items())
        text = "Failed authentications and blocked requests."
        yield from family(prefix + "strikes_total", "counter", text, struck)
        text = "Addresses that this process has banned."
        yield from family(prefix + "banned_total", "counter", text, [("", self._banned)])
        text = "Addresses that are shut out now."
        yield from family(prefix + "bans", "gauge", text, [("", len(self._bans))])
        text = "1 while the gateway is degraded."
        yield from family(prefix + "degraded", "gauge", text, [("", int(self.degraded))])
        text = "1 while addresses that lately sent malicious requests are refused."
        strict = int(self._mode.request_filter)
        yield from family(prefix + "request_filter", "gauge", text, [("", strict)])
        text = "1 while long inputs are refused."
        filtering = int(self._filtering(now))
        yield from family(prefix + "input_filter", "gauge", text, [("", filtering)])
        if share is not None:
            text = "Share of long inputs in the last minute."
            yield from family(prefix + "input_long_share", "gauge", text, [("", share)])

    def _filtering(self, now: float) -> bool:
        wanted = self._lengths.filtering(now)
        forced = self._mode.input_filter
        return wanted if forced == "auto" else forced == "on"

    def _shortened(self, body: bytes) -> bytes:
        """Ask for no more tokens than a degraded gateway gives."""
        most = self._config.degraded_max_tokens
        try:
            request = msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return body  # the predictor says what is wrong with it
        asked = [name for name in LENGTH_FIELDS if isinstance(request.get(name), int)]
        if any(request[name] < 1 for name in asked):
            return body
        for name in asked or LENGTH_FIELDS[:1]:
            request[name] = min(request.get(name, most), most)
        return msgspec.json.encode(request)

    async def _follow(self) -> None:
        while True:
            await asyncio.to_thread(self._look)
            await asyncio.sleep(self._config.look_seconds)

    def _look(self) -> None:
        """Bans and mode stay as they are while their files cannot be read."""
        trouble = []
        try:
            for address in self._bans.look():
                self._strikes.forget(address)
        except (InputError, OSError) as error:
            trouble.append(str(error))
        try:
            self._mode = self._mode_file.read()
        except (InputError, OSError) as error:
            trouble.append(str(error))
        found = "; ".join(trouble)
        if found and found != self._trouble:
            log.error("%s", found)
        self._trouble = found
