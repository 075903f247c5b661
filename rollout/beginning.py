"""How a release gets from the ledger to the service: the state before is recorded, then it is held.

Also begins an operator's rollback, and removes what a first release left behind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from core.contracts import Candidate, ReleaseState
from core.errors import NotFoundError, RefusedError, UnavailableError
from rollout import proposals
from rollout.events import NOTHING
from rollout.inference_service import InferenceServices, ServiceFacts, spec_with_model_of
from rollout.ledger import Ledger
from rollout.observer import Observer, serving_shares
from rollout.plan import ReleasePlan
from rollout.release import HELD_STATES, Release, ServiceState
from rollout.writer import Writer


@dataclass(frozen=True, slots=True)
class ServedVersion:
    """A version that was stable once, and the service as it was then."""

    candidate: Candidate
    state: ServiceState


class Beginning:
    """Begins releases. Errors as in Conductor."""

    def __init__(self, ledger: Ledger, client: InferenceServices, observer: Observer) -> None:
        self._ledger = ledger
        self._client = client
        self._observer = observer

    def begin(self, release: Release, holder: str) -> Release:
        """Record the state before and make the release the service's active, held one.

        Raises UnavailableError while the service is not settled, ConflictError when another
        release is active. A candidate that already serves is rejected.
        """
        facts = self._facts_to_begin(release)
        if facts.exists and facts.bundle_digest == release.candidate.bundle_digest:
            reason = f"bundle {facts.bundle_digest[:12]} serves already"
            return self._ledger.write(lambda w: proposals.expire(w, release, reason))
        before = self._observer.state(release.namespace, release.service, facts)
        now = self._ledger.now
        body = {"before": before, "before_digest": before.digest if before else None}
        return self._ledger.write(
            lambda writer: writer.take_over(
                release,
                holder,
                "started",
                body,
                serving=serving_shares(facts),
                state=ReleaseState.CANARY,
                kind="canary" if facts.exists else "first",
                before=before,
                started_at=now,
                patched_at=now,
            )
        )

    def needs_new_verdict(self, release: Release) -> bool:
        """Whether the version that is stable is another than the one the verdict was against."""
        active = self._ledger.active(release.service, release.namespace)
        if active is not None and active.before is not None:
            return release.candidate.stable_version != active.before.model_version
        facts = self._observer.facts(release.namespace, release.service)
        if not facts.exists:
            return False  # nothing serves, so there is nothing to be worse than
        stable = self._ledger.stable(release.service, release.namespace)
        known = facts.model_version or (stable.candidate.model_version if stable else "")
        return known != "" and known != release.candidate.stable_version

    def earlier(
        self, namespace: str, service: str, to: str | None
    ) -> tuple[ServedVersion, ReleasePlan, ServiceFacts]:
        """Find the version to go back to, the plan of the last release, and the service now.

        Raises RefusedError when there is no such version or it serves already, NotFoundError
        without a service.
        """
        promoted = self._ledger.promoted(service, namespace)
        target = choose_version(promoted, to)
        facts = self._observer.facts(namespace, service)
        if not facts.exists:
            raise NotFoundError(f"service {service} does not exist; nothing can be rolled back")
        active = self._ledger.active(service, namespace)
        settled = active is None or active.state not in HELD_STATES
        if settled and facts.bundle_digest == target.candidate.bundle_digest:
            raise RefusedError(f"version {target.candidate.model_version} serves already")
        return target, promoted[-1].plan, facts

    def rollback(
        self, namespace: str, service: str, holder: str, by: str, reason: str, to: str | None
    ) -> Release:
        """Create an operator's rollback, active and held, toward an earlier version.

        Raises RefusedError when there is no such version, ConflictError when a release is active.
        """
        target, plan, facts = self.earlier(namespace, service, to)
        before = self._observer.state(namespace, service, facts)
        now = self._ledger.now
        goal = ServiceState(
            spec=spec_with_model_of(facts.spec, target.state.spec),
            bundle_digest=target.candidate.bundle_digest,
            model_version=target.candidate.model_version,
            weights={target.candidate.bundle_digest: 100},
        )

        def work(writer: Writer) -> Release:
            release = writer.create(
                namespace,
                target.candidate,
                plan,
                "proposed",
                {"by": by, "reason": reason, "to": target.candidate.model_version},
                kind="rollback",
                requested_by=by,
            )
            return writer.take_over(
                release,
                holder,
                "rolling_back",
                {"before": before, "goal": goal, "reason": reason, "by": by},
                serving=serving_shares(facts),
                state=ReleaseState.ROLLING_BACK,
                before=before,
                goal=goal,
                reason=reason,
                started_at=now,
                patched_at=now,
                rolling_back_at=now,
            )

        return self._ledger.write(work)

    def remove_orphans(self, service: str | None = None) -> list[Release]:
        """Delete services that are what rolled-back first releases created too late.

        A process that was stopped between its intent and its create cannot be fenced by a
        resourceVersion: nothing exists yet. So what it made is recognised and removed. A service
        is read before the ledger: what a newer release creates is never taken for an orphan.
        """
        failed = self._ledger.failed_first()
        names = {(r.namespace, r.service) for r in failed if service in (None, r.service)}
        found = (self._remove_orphan(*name) for name in sorted(names))
        return [release for release in found if release is not None]

    def _remove_orphan(self, namespace: str, service: str) -> Release | None:
        facts = self._observer.facts(namespace, service)
        if not facts.exists or facts.deleting:
            return None
        for release in self._ledger.failed_first():
            made = (release.namespace, release.service, release.candidate.bundle_digest)
            if made == (namespace, service, facts.bundle_digest):
                noted = self._ledger.write(partial(_orphan_found, release.release_id, facts.uid))
                self._client.delete(namespace, service, facts.uid)
                return noted
        return None

    def _facts_to_begin(self, release: Release) -> ServiceFacts:
        self.remove_orphans(release.service)
        facts = self._observer.facts(release.namespace, release.service)
        if not facts.exists:
            return facts
        known = facts.bundle_of(facts.latest_created)
        if not facts.settled() or known not in ("", facts.bundle_digest):
            raise UnavailableError(
                f"service {release.service} is not settled (canary percent {facts.percent}, newest "
                f"revision {facts.latest_created or 'none'}, ready {facts.latest_ready or 'none'}) "
                ": wait until it is, or restore it by hand"
            )
        if not known:
            bundle, version, name = facts.bundle_digest, facts.model_version, facts.latest_created
            self._ledger.write(lambda w: w.learn_revision(facts.uid, name, bundle, version))
            return self._observer.facts(release.namespace, release.service)
        return facts


def _orphan_found(release_id: str, uid: str, writer: Writer) -> Release:
    return writer.change(writer.release(release_id), "orphan_found", {"uid": uid}, (NOTHING,))


def choose_version(promoted: Sequence[Release], to: str | None) -> ServedVersion:
    """Pick the version to go back to: `to`, else the one that was stable before the current one.

    `promoted` are the releases whose candidate became stable, in that order. A rollback takes the
    versions above its goal off the stack, so that going back twice goes back two versions.
    """
    if not promoted:
        raise RefusedError("no version was ever promoted here, so there is none to go back to")
    stack: list[ServedVersion] = []
    seen: dict[str, ServedVersion] = {}
    for release in promoted:
        for version in _versions(release, seen):
            name = version.candidate.model_version
            names = [item.candidate.model_version for item in stack]
            if name in names:
                del stack[names.index(name) :]
            stack.append(version)
            seen[name] = version
    if to is not None:
        if to not in seen:
            raise RefusedError(f"version {to} never was stable here; it has to be released")
        return seen[to]
    if len(stack) < 2:
        raise RefusedError("the current version is the first one: there is none to go back to")
    return stack[-2]


def _versions(release: Release, seen: Mapping[str, ServedVersion]) -> list[ServedVersion]:
    """What was stable before the release and after it."""
    found = []
    before = release.before
    if before is not None and release.kind == "canary":
        known = seen.get(before.model_version)
        candidate = known.candidate if known else _candidate_of(release.service, before)
        found.append(ServedVersion(candidate, before))
    if release.after is not None:
        found.append(ServedVersion(release.candidate, release.after))
    return found


def _candidate_of(service: str, state: ServiceState) -> Candidate:
    """A version that was there before the ledger: known only by what the service said of it."""
    return Candidate(
        service=service,
        model_version=state.model_version,
        bundle_digest=state.bundle_digest,
        bundle_uri=str(state.spec.get("predictor", {}).get("model", {}).get("storageUri", "")),
        adapter_digest="",
        snapshot_id="",
        verdict_digest="",
        stable_version=None,
    )
