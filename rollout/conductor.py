"""Carries releases out, one idempotent step at a time: intent, then action, then record.

Everybody who moves a release (flow, watch, keeper, operator) does it through this class; what to
do next is decided in steps.py, what is known is in the ledger.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from core.contracts import CanaryDecision, Candidate, ReleaseState
from core.errors import ConflictError, FencedError, RefusedError, UnavailableError
from rollout import proposals
from rollout.beginning import Beginning
from rollout.execution import Execution, rolling_back
from rollout.identities import Identities
from rollout.inference_service import ABSENT, InferenceServices
from rollout.ledger import NAMESPACE, Ledger
from rollout.observer import Observer
from rollout.plan import ReleasePlan
from rollout.release import HELD_STATES, Release
from rollout.steps import AskApproval, Begin, Reject, next_action
from rollout.times import to_seconds
from rollout.writer import Writer

log = logging.getLogger("serin.rollout")
ROUNDS_MAX = 12
"""Decisions in one call: ledger-only transitions and lost races; at most one move among them."""
POLL_SECONDS = 0.05
WAIT_SECONDS = 120.0


class Conductor:
    """One holder of releases. Every instance takes its own epoch of each release it advances.

    Errors of every method: UnavailableError when ledger or control plane do not answer (what was
    begun is found again by the next call), NotFoundError for an unknown release.
    """

    def __init__(
        self,
        ledger: Ledger,
        client: InferenceServices,
        holder: str,
        namespace: str = NAMESPACE,
        identities: Identities | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`holder` names this process in the ledger; the same name again takes a release back at
        once, another name only after its lease ran out. `identities` asks the serving processes."""
        self.ledger = ledger
        self.holder = holder
        self._namespace = namespace
        observer = Observer(ledger, client, identities)
        self._beginning = Beginning(ledger, client, observer)
        self._execution = Execution(ledger, client, observer)
        self._sleep = sleep
        self._epochs: dict[str, int] = {}

    def propose(self, candidate: Candidate, plan: ReleasePlan, requested_by: str = "") -> Release:
        """Register a candidate for release; nothing is touched. See proposals.propose."""
        return self.ledger.write(
            lambda writer: proposals.propose(writer, self._namespace, candidate, plan, requested_by)
        )

    def next_waiting(self, service: str) -> Release | None:
        """The waiting release that could start now: the newest, when none is active."""
        waiting = self.ledger.waiting(service, self._namespace)
        active = self.ledger.active(service, self._namespace)
        return waiting[0] if waiting and active is None else None

    def needs_new_verdict(self, release_id: str) -> bool:
        """Whether stable has changed since the candidate was judged against it."""
        return self._beginning.needs_new_verdict(self.ledger.release(release_id))

    def start(self, release_id: str) -> Release:
        """Start a proposed release: ask for approval, or record the state before and begin.

        While another release of the service is active it stays PROPOSED. Raises RefusedError when
        it needs a new verdict first, UnavailableError when the service is not settled.
        """
        release = self.ledger.release(release_id)
        if release.state is ReleaseState.PROPOSED:
            waiting = self.ledger.waiting(release.service, release.namespace)
            active = self.ledger.active(release.service, release.namespace)
            if active is not None or waiting[:1] != [release]:
                return release
            self._beginning.remove_orphans(release.service)
            if self.needs_new_verdict(release_id):
                raise RefusedError(
                    f"release {release_id}: stable has changed since its verdict; judge the "
                    "candidate again and propose it with the new verdict"
                )
        return self._advance(release_id, None)

    def approve(
        self, release_id: str, who: str, note: str = "", *, seen_digest: str | None = None
    ) -> Release:
        """Record a person's agreement; the release begins with the next `advance`."""
        return self._unstarted(
            release_id, lambda w, r: proposals.approve(w, r, who, note, seen_digest)
        )

    def reject(self, release_id: str, who: str, note: str = "") -> Release:
        """Record a person's refusal: REJECTED. Raises RefusedError when it has begun."""
        return self._unstarted(release_id, lambda w, r: proposals.reject(w, r, who, note))

    def advance(self, release_id: str, decision: CanaryDecision | None = None) -> Release:
        """Renew the lease and do the one next step of the release, if it is this holder's.

        A release that somebody else holds is returned as it is; one whose lease has run out is
        taken over and rolled back. A release that still is PROPOSED is left to `start`.
        """
        release = self.ledger.release(release_id)
        if release.final or release.state is ReleaseState.PROPOSED:
            return release
        return self._advance(release_id, decision)

    def roll_back(
        self,
        release_id: str,
        reason: str,
        by: str,
        wait_seconds: float = WAIT_SECONDS,
        decision: CanaryDecision | None = None,
    ) -> Release:
        """Take the release back, whoever holds it: safe phase, then restored phase.

        Returns when it has ended or after `wait_seconds`; the keeper finishes what is left. A
        release that has not begun is rejected. Raises RefusedError when it was promoted.
        """
        release = self.ledger.release(release_id)
        if release.state in proposals.UNSTARTED:
            return self.reject(release_id, by, reason)
        if release.state is ReleaseState.PROMOTED:
            raise RefusedError(f"release {release_id} was promoted: roll its service back instead")
        if release.final:
            return release
        self.take_back(release, f"{reason} (by {by})", by, decision)
        return self._drive(release_id, wait_seconds)

    def take_back(
        self, release: Release, reason: str, by: str, decision: CanaryDecision | None = None
    ) -> None:
        """Take a held release over and turn it to rolling back; `advance` does the rest."""
        for _ in range(ROUNDS_MAX):
            changes = rolling_back(release, reason, self.ledger.now)
            try:
                body = {"reason": reason, "by": by, "decision": decision}
                self._taken(release, "taken_over", body, **changes)
            except ConflictError:
                release = self.ledger.release(release.release_id)
                if release.state not in HELD_STATES:
                    return
            else:
                log.warning("%s rolling back: %s", release.release_id, reason)
                return

    def holds(self, release: Release) -> bool:
        """Whether this instance took the release in its present epoch."""
        return self._epochs.get(release.release_id) == release.epoch

    def roll_back_service(
        self,
        service: str,
        by: str,
        reason: str,
        to: str | None = None,
        wait_seconds: float = WAIT_SECONDS,
    ) -> Release:
        """Take a service back: its running release, else the version that is stable now.

        Without `to` the goal is the version that was stable before. It is a release of kind
        `rollback` that ends ROLLED_BACK once the goal serves. Where the control plane still has
        the goal's revision rolled out as the previous one, percent 0 moves the traffic there at
        once (the safe phase), and the restored phase then makes the goal's model the newest
        revision under it. Otherwise the goal's revision is loaded at 0 % while the current one
        serves, and then gets all traffic: no request fails in either. A goal that cannot be
        loaded ends REJECTED with the current version serving as before.
        """
        active = self.ledger.active(service, self._namespace)
        if active is not None and active.state in HELD_STATES:
            return self.roll_back(active.release_id, reason, by, wait_seconds)
        if active is not None:
            self._unstarted(
                active.release_id,
                lambda w, r: proposals.supersede(w, r, f"{by} rolled the service back: {reason}"),
            )
        release = self._beginning.rollback(self._namespace, service, self.holder, by, reason, to)
        self._epochs[release.release_id] = release.epoch
        log.info(
            "%s rolling %s back to %s", release.release_id, service, release.candidate.model_version
        )
        return self._drive(release.release_id, wait_seconds)

    def earlier_version(self, service: str, to: str | None) -> Candidate:
        """The version that a rollback to `to` would go to. Errors as propose_earlier."""
        return self._beginning.earlier(self._namespace, service, to)[0].candidate

    def propose_earlier(self, service: str, by: str, reason: str, to: str) -> Release:
        """Propose an earlier version as a candidate of an ordinary release, canary and all.

        Its plan is the last release's, its verdict the one that it was once released with. Raises
        RefusedError when there is no such version or it is stable, NotFoundError without a service.
        """
        target, plan, _ = self._beginning.earlier(self._namespace, service, to)
        stable = self.ledger.stable(service, self._namespace)
        against = stable.candidate.model_version if stable else None
        again = replace(target.candidate, stable_version=against)
        body = {"by": by, "reason": reason, "to": to}

        def work(writer: Writer) -> Release:
            release = proposals.propose(writer, self._namespace, again, plan)
            if release.state not in proposals.UNSTARTED:
                return release  # its canary runs already
            return writer.change(release, "return_asked", body, requested_by=by)

        return self.ledger.write(work)

    def reject_expired(self, release_id: str) -> Release:
        """Reject the release if its approval was not given, or not used, in time."""
        return self._advance(release_id, None, begin=False)

    def remove_orphans(self) -> list[Release]:
        """Delete what first releases created after they were rolled back; return those releases."""
        return self._beginning.remove_orphans()

    def _unstarted(self, release_id: str, work: Callable[[Writer, Release], Release]) -> Release:
        return self.ledger.write(lambda writer: work(writer, writer.release(release_id)))

    def _drive(self, release_id: str, wait_seconds: float) -> Release:
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                release = self._advance(release_id, None)
            except UnavailableError:
                if time.monotonic() >= deadline:
                    raise
                release = self.ledger.release(release_id)
            if release.final or time.monotonic() >= deadline:
                return release
            self._sleep(POLL_SECONDS)

    def _advance(
        self, release_id: str, decision: CanaryDecision | None, begin: bool = True
    ) -> Release:
        for _ in range(ROUNDS_MAX):
            release = self.ledger.release(release_id)
            try:
                if release.final:
                    return release
                if release.state in HELD_STATES:
                    held = self._hold(release)
                    if held is None:
                        return self.ledger.release(release_id)
                    release, done = self._execution.step(held, decision)
                else:
                    release, done = self._unstarted_step(release, begin)
            except FencedError as error:
                log.info("%s %s", release_id, error)
                return self.ledger.release(release_id)
            except ConflictError as error:
                log.info("%s read again: %s", release_id, error)
                continue
            if done:
                return release
        return self.ledger.release(release_id)

    def _unstarted_step(self, release: Release, begin: bool) -> tuple[Release, bool]:
        now = to_seconds(self.ledger.now)
        action = next_action(release, ABSENT, None, now, release.plan)
        match action:
            case AskApproval():
                write = self.ledger.write
                return write(lambda w: proposals.ask_approval(w, release)), True
            case Reject(reason):
                log.info("%s rejected: %s", release.release_id, reason)
                return self.ledger.write(lambda w: proposals.expire(w, release, reason)), True
            case Begin() if begin:
                begun = self._beginning.begin(release, self.holder)
                self._epochs[begun.release_id] = begun.epoch
                return begun, begun.final
        return release, True

    def _hold(self, release: Release) -> Release | None:
        """Renew the lease or take the release over; None when it is somebody else's."""
        mine = self._epochs.get(release.release_id)
        if mine == release.epoch:
            return self.ledger.write(lambda writer: writer.renew(release))
        again = mine is None and release.holder == self.holder
        if not again and not self.ledger.stale(release):
            return None
        if again:
            return self._taken(release, None, {})
        reason = f"the lease of {release.holder} ran out"
        changes = rolling_back(release, reason, self.ledger.now)
        taken = self._taken(release, "taken_over", {"reason": reason}, only_stale=True, **changes)
        log.warning("%s taken over: %s", release.release_id, reason)
        return taken

    def _taken(
        self,
        release: Release,
        event: str | None,
        body: dict[str, Any],
        only_stale: bool = False,
        **changes: Any,
    ) -> Release:
        taken = self.ledger.write(
            lambda writer: writer.take_over(
                release, self.holder, event, body, only_stale=only_stale, **changes
            )
        )
        self._epochs[release.release_id] = taken.epoch
        return taken
