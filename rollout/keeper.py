"""The keeper: an independent process that rolls back releases nobody advances any more.

Needs the ledger and the control plane only. Run as `python -m rollout.keeper --home DIR`.
"""

import argparse
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from core.backup_place import BackupPlace
from core.contracts import ReleaseState
from core.errors import SerinError, UnavailableError
from core.settings import Settings
from observability.logs import configure
from rollout.conductor import Conductor
from rollout.identities import from_routes
from rollout.kubernetes_client import KubernetesClient
from rollout.ledger import Ledger
from rollout.ledger_copy import LedgerCopier
from rollout.release import Release

log = logging.getLogger("serin.rollout")
INTERVAL_SECONDS = 1.0
BACKOFF_SECONDS_MAX = 15.0
ORPHAN_SECONDS = 15.0
STEPS_MAX = 20
COPY_END_SECONDS_MAX = 5.0
CLOCK_FACTOR = 2.0
"""A lease not renewed for this many times its length by our own clock is over, whatever the
database's clock says: it may have been set back."""


@dataclass(frozen=True, slots=True)
class Seen:
    """When a release last changed or was renewed, by this process' monotonic clock."""

    writes: int
    since_seconds: float


class Keeper:
    """Looks at every active release once per `tick`."""

    def __init__(
        self,
        ledger: Ledger,
        conductor: Conductor,
        on_active: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_active` is called while a release is active: what a rollback needs can be loaded."""
        self._ledger = ledger
        self._conductor = conductor
        self._on_active = on_active
        self._monotonic = monotonic
        self._seen: dict[str, Seen] = {}
        self._orphans_at = -ORPHAN_SECONDS

    def tick(self) -> int:
        """Do what is due and return how many active releases there are.

        Raises UnavailableError when ledger or control plane do not answer; nothing is lost by it.
        """
        active = self._ledger.all_active()
        if any(release.state is not ReleaseState.AWAITING_APPROVAL for release, _ in active):
            self._on_active()
        self._seen = {release.release_id: self._look(release) for release, _ in active}
        failure: SerinError | None = None
        for release, stale in active:
            try:
                self._look_after(release, stale)
            except SerinError as error:  # the other services' releases are looked after first
                failure = error
        if failure is not None:
            raise failure
        self._remove_orphans()
        return len(active)

    def _look_after(self, release: Release, stale: bool) -> None:
        if release.state is ReleaseState.AWAITING_APPROVAL:
            self._conductor.reject_expired(release.release_id)
        elif stale or self._conductor.holds(release):
            self._advance(release)
        elif self._silent(release):
            reason = f"{release.holder} renewed nothing for {CLOCK_FACTOR:g} leases"
            self._conductor.take_back(release, reason, self._conductor.holder)
            self._advance(release)

    def _advance(self, release: Release) -> None:
        """Go on until something has to be waited for."""
        writes = -1
        for _ in range(STEPS_MAX):
            release = self._conductor.advance(release.release_id)
            if release.final or release.writes == writes + 1:  # only the lease was renewed
                return
            writes = release.writes

    def _look(self, release: Release) -> Seen:
        seen = self._seen.get(release.release_id)
        if seen is not None and seen.writes == release.writes:
            return seen
        return Seen(release.writes, self._monotonic())

    def _silent(self, release: Release) -> bool:
        silence = self._monotonic() - self._seen[release.release_id].since_seconds
        return silence > CLOCK_FACTOR * release.plan.lease_seconds

    def _remove_orphans(self) -> None:
        if self._monotonic() - self._orphans_at < ORPHAN_SECONDS:
            return
        self._orphans_at = self._monotonic()
        for release in self._conductor.remove_orphans():
            log.warning("%s left a service behind; removed", release.release_id)


def keep(
    tick: Callable[[], object],
    stop: threading.Event,
    interval_seconds: float,
    what: str = "ledger and control plane answer",
) -> None:
    """Call `tick` until `stop`, with back-off up to 15 s while something does not answer."""
    pause = interval_seconds
    while not stop.is_set():
        try:
            tick()
            if pause > interval_seconds:
                log.info("%s again", what)
            pause = interval_seconds
        except UnavailableError as error:
            pause = min(max(pause * 2, interval_seconds), BACKOFF_SECONDS_MAX)
            log.warning("%s; next try in %.1f s", error, pause)
        except SerinError as error:
            pause = BACKOFF_SECONDS_MAX
            log.error("%s; next try in %.1f s", error, pause)
        stop.wait(pause)


class Opened:
    """Opens the ledger, and the control plane whose address may come later, when first needed."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self._kube_url: str | None = None
        self._ledger: Ledger | None = None
        self._keeper: Keeper | None = None

    def tick(self) -> int:
        """One look, with the addresses as they are now."""
        settings = Settings.read(self._environ)
        if self._ledger is None:
            self._ledger = Ledger(settings.ledger_url)
        if self._keeper is None or settings.kube_url != self._kube_url:
            self._kube_url = settings.kube_url
            client = KubernetesClient(settings.kube_url)
            routes = from_routes(settings)
            holder = f"keeper-{socket.gethostname()}-{os.getpid()}-{time.time_ns():x}"
            conductor = Conductor(self._ledger, client, holder, identities=routes)
            self._keeper = Keeper(self._ledger, conductor, client.load)
        return self._keeper.tick()

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()


class Copying:
    """Copies the ledger to where backups are kept, on a thread: a slow store delays no rollback."""

    def __init__(self, environ: Mapping[str, str], interval_seconds: float) -> None:
        """Nothing runs without SERIN_BACKUP_URI."""
        settings = Settings.read(environ)
        self._ledger_url, self._address = settings.ledger_url, settings.backup_uri
        self._interval_seconds = interval_seconds
        self._stop = threading.Event()
        self._copier: LedgerCopier | None = None
        self._thread = threading.Thread(target=self._run, name="ledger copy", daemon=True)
        if self._address:
            self._thread.start()

    def close(self) -> None:
        """Copy what is left, within bounds, and end."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(COPY_END_SECONDS_MAX)

    def _run(self) -> None:
        log.info("copies the ledger to %s", self._address)
        keep(self._tick, self._stop, self._interval_seconds, "the backups' place answers")
        try:
            self._tick()
        except SerinError as error:
            log.warning("the last events are not copied: %s", error)
        if self._copier is not None:
            self._copier.close()

    def _tick(self) -> None:
        if self._copier is None:
            Ledger(self._ledger_url).close()  # makes it where it is missing
            self._copier = LedgerCopier(self._ledger_url, BackupPlace(self._address))
        self._copier.tick()


def main(arguments: list[str] | None = None) -> int:
    """Run until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(prog="rollout.keeper", description=__doc__)
    parser.add_argument("--home", type=Path, required=True, help="folder of all state")
    parser.add_argument("--ledger-url", default="", help="default: SQLite below the home")
    parser.add_argument("--kube-url", default="", help="default: what `serin up` wrote")
    parser.add_argument("--interval-seconds", type=float, default=INTERVAL_SECONDS)
    given = parser.parse_args(arguments)
    configure("keeper", logging.WARNING, sys.stdout)
    log.setLevel(logging.INFO)
    environ = {**os.environ, "SERIN_HOME": str(given.home)}
    if given.ledger_url:
        environ["SERIN_LEDGER_URL"] = given.ledger_url
    if given.kube_url:
        environ["SERIN_KUBE_URL"] = given.kube_url
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    opened = Opened(environ)
    copying = Copying(environ, given.interval_seconds)
    log.info("keeps releases of %s", given.home)
    try:
        keep(opened.tick, stop, given.interval_seconds)
    finally:
        opened.close()
        copying.close()
    log.info("stopped")
    return 0


if __name__ == "__main__":
    sys.exit(main())
