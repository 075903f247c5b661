"""Looks at the service of a release and writes into the ledger what has become true meanwhile.

Moves no traffic: unanswered intents, new revisions, live shares and safety are noted here.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from core.contracts import ReleaseState
from rollout.events import ServingShare
from rollout.identities import Identities
from rollout.inference_service import InferenceServices, ServiceFacts, read_facts
from rollout.ledger import Ledger
from rollout.moves import is_applied
from rollout.release import Release, ServiceState
from rollout.steps import share_is_live
from rollout.writer import Writer


class Observer:
    """Facts of services, and the ledger's knowledge of them."""

    def __init__(
        self, ledger: Ledger, client: InferenceServices, identities: Identities | None
    ) -> None:
        self._ledger = ledger
        self._client = client
        self._identities = identities

    def facts(self, namespace: str, service: str) -> ServiceFacts:
        """Read the service as it is now. Raises UnavailableError."""
        body = self._client.get(namespace, service)
        if body is None:
            return read_facts(None, {})
        return read_facts(body, self._ledger.revisions(body["metadata"].get("uid", "")))

    def observe(self, release: Release) -> tuple[Release, ServiceFacts]:
        """Read the facts, note what they settle, and return both as they are then.

        Raises FencedError when the release was taken over.
        """
        facts = self.facts(release.namespace, release.service)
        release = self._settle(release, facts)
        release, facts = self._learn_revision(release, facts)
        if release.state is ReleaseState.CANARY and release.step_started_at is None:
            release = self._note_live(release, facts)
        if release.state is ReleaseState.ROLLING_BACK and release.safe_at is None:
            release = self._note_safe(release, facts)
        return release, facts

    def state(self, namespace: str, service: str, facts: ServiceFacts) -> ServiceState | None:
        """The compared state of the service; None when it does not exist."""
        if not facts.exists:
            return None
        asked = self._identities and self._identities(namespace, service)
        return ServiceState(
            spec=facts.spec,
            bundle_digest=facts.bundle_digest,
            model_version=facts.model_version,
            weights=facts.weights,
            reported=tuple(sorted({item.bundle_digest for item in asked})) if asked else None,
            policies=tuple(sorted({item.policy_hash for item in asked})) if asked else None,
        )

    def _settle(self, release: Release, facts: ServiceFacts) -> Release:
        """Find out what became of an intent that was never recorded as done.

        If its patch did not arrive it may still be on its way, so the release may not end before
        the service's resourceVersion has moved on from the one seen now.
        """
        pending = release.pending
        if pending is None:
            return release
        if is_applied(pending, facts):
            changes: dict[str, Any] = {"pending": None, "applied_share": release.share}
            return self._write(release, "applied", {"action": pending.action}, changes)
        changes = {"pending": None, "fence_version": facts.resource_version}
        return self._write(release, "unanswered", {"action": pending.action}, changes)

    def _learn_revision(
        self, release: Release, facts: ServiceFacts
    ) -> tuple[Release, ServiceFacts]:
        """Connect a new revision's name with its bundle, which the API itself never tells."""
        expected = release.expected
        known = facts.latest_created in ("", *facts.bundles)
        if expected is None:
            # Somebody else wrote the same model again, or changed replicas, which makes a revision
            # in a cluster: there is no other model that the revision can have.
            goal = release.goal
            same = release.candidate if goal is None else goal
            if known or facts.bundle_digest != same.bundle_digest:
                return release, facts
        elif (
            facts.latest_created in ("", expected.after_revision)
            or facts.bundle_digest != expected.bundle_digest
        ):
            return release, facts
        bundle, version, name = facts.bundle_digest, facts.model_version, facts.latest_created
        body = {"revision": name, "bundle_digest": bundle, "model_version": version}

        def work(writer: Writer) -> Release:
            writer.learn_revision(facts.uid, name, bundle, version)
            return writer.change(release, "revision_created", body, expected=None, revision=name)

        learnt = replace(facts, bundles={**facts.bundles, name: (bundle, version)})
        return self._ledger.write(work), learnt

    def _note_live(self, release: Release, facts: ServiceFacts) -> Release:
        if not share_is_live(release, facts):
            return release
        changes = {"step_started_at": self._ledger.now}
        return self._write(release, "share_live", {"share": release.share}, changes, facts)

    def _note_safe(self, release: Release, facts: ServiceFacts) -> Release:
        goal = release.goal
        if goal is None or facts.weights != {goal.bundle_digest: 100}:
            return release
        at_goal = facts.bundle_digest == goal.bundle_digest and facts.settled()
        if facts.percent != 0 and not at_goal:
            return release  # the rejected revision would get traffic as soon as it is ready
        return self._write(release, "safe", {}, {"safe_at": self._ledger.now}, facts)

    def _write(
        self,
        release: Release,
        event: str,
        body: Mapping[str, Any],
        changes: Mapping[str, Any],
        facts: ServiceFacts | None = None,
    ) -> Release:
        serving = serving_shares(facts) if facts else ()
        return self._ledger.write(
            lambda writer: writer.change(release, event, body, serving, **changes)
        )


def serving_shares(facts: ServiceFacts) -> tuple[ServingShare, ...]:
    """What serves by the facts, in versions and bundles."""
    versions = {bundle: version for bundle, version in facts.bundles.values()}
    return tuple(
        ServingShare(versions.get(bundle, ""), bundle, percent)
        for bundle, percent in facts.weights.items()
    )
