"""The policy in force: read from a watched folder, swapped in one step, never an invalid one.

The path is resolved anew at each look: a ConfigMap changes by a symlink swap beside the file.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from core.digests import digest_bytes
from core.errors import ConfigurationError, SerinError
from serving.safety.chain import Chain, build_chain
from serving.safety.policy import (
    POLICY_NAME,
    SHIPPED_POLICY,
    Policy,
    parse_policy,
    read_policy,
)

log = logging.getLogger("serin.safety")

LOOK_SECONDS = 0.1
"""A look reads one small file. Unlike events it works on every file system, survives a folder that
is replaced, and needs nothing that can run out (inotify watches do)."""
CLOSE_SECONDS = 2.0
RETIRED_SECONDS = 60.0
Build = Callable[[Policy], Chain]


@dataclass(frozen=True, slots=True)
class Refusal:
    """A policy that did not become active: the file's digest, why, and when (epoch seconds)."""

    digest: str
    reason: str
    time_seconds: float


class PolicyStore:
    """Holds the chain in force. `folder`/policy.yaml where it exists, else the shipped policy.

    Raises ConfigurationError when the first policy is invalid: nothing to fall back to.
    """

    def __init__(self, folder: Path | None, build: Build = build_chain) -> None:
        self._folder = folder
        self._build = build
        self._seen = self._half_seen = ""
        self._refusal: Refusal | None = None
        self._stop = threading.Event()
        self._watching: threading.Thread | None = None
        text = self._read()
        if text is None:
            self._chain = build(read_policy(SHIPPED_POLICY))
        else:
            self._seen = digest_bytes(text)
            self._chain = build(self._parse(text))

    @property
    def chain(self) -> Chain:
        """The chain in force now; one answer keeps the chain that it began with."""
        return self._chain

    @property
    def policy_hash(self) -> str:
        """The digest of the policy in force."""
        return self._chain.policy_hash

    @property
    def refusal(self) -> Refusal | None:
        """The change that was last refused, until a valid one came."""
        return self._refusal

    def start(self) -> None:
        """Watch the folder from a thread; without a folder there is nothing to watch."""
        if self._folder is None or self._watching is not None:
            return
        self._watching = threading.Thread(target=self._watch, name="policy-watch", daemon=True)
        self._watching.start()

    def stop(self) -> None:
        """End the watch."""
        self._stop.set()
        if self._watching is not None:
            self._watching.join(CLOSE_SECONDS)

    def look(self) -> bool:
        """Read the file; activate what two looks found alike. Return whether the policy changed."""
        text = self._read()
        if text is None:
            if self._seen:
                self._refuse("", f"{POLICY_NAME} is gone; the last policy stays in force")
            return False
        digest = digest_bytes(text)
        if digest != self._half_seen:  # a file in the middle of being written may make sense too
            self._half_seen = digest
            return False
        if digest == self._seen:
            return False
        self._seen = digest
        try:
            chain = self._build(self._parse(text))
        except SerinError as error:
            self._refuse(digest, str(error))
            return False
        before, self._chain = self._chain, chain
        self._refusal = None
        log.info("policy %s in force (%s)", chain.policy_hash[:12], chain.policy.name)
        _retire(before)
        return chain.policy_hash != before.policy_hash

    def _read(self) -> bytes | None:
        if self._folder is None:
            return None
        try:
            return (self._folder / POLICY_NAME).read_bytes()
        except OSError:
            return None

    def _parse(self, text: bytes) -> Policy:
        source = str((self._folder or Path()) / POLICY_NAME)
        try:
            return parse_policy(text.decode(), source)
        except UnicodeDecodeError as error:
            raise ConfigurationError(f"{source} is not UTF-8: {error}") from error

    def _refuse(self, digest: str, reason: str) -> None:
        if self._refusal is None or self._refusal.digest != digest:
            self._refusal = Refusal(digest, reason, time.time())
            log.error("policy refused, %s stays in force: %s", self.policy_hash[:12], reason)

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except Exception:  # noqa: BLE001 - the watch outlives whatever one file does to it
                log.exception("the policy could not be looked at")


def _retire(chain: Chain) -> None:
    """Close a chain once the answers that began with it have ended."""
    timer = threading.Timer(RETIRED_SECONDS, chain.close)
    timer.daemon = True
    timer.start()
