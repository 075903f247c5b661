"""InferenceServices in memory with Knative's semantics, pitfalls included, for tests.

The traffic rules are those of KServe's controller: what `latest` and `prev` resolve to, when a
revision counts as rolled out, and when that is taken back.
"""

import copy
import itertools
from dataclasses import dataclass, field
from typing import Literal

from core.digests import digest_json
from core.errors import ConflictError, NotFoundError
from rollout.inference_service import PERCENT, Body, bundle_of_uri, merge

Behaviour = Literal["ready", "loading", "failed"]
RECONCILES_MAX = 10


@dataclass(slots=True)
class FakeRevision:
    """One revision: what it runs and whether it came up."""

    name: str
    template_digest: str
    bundle_digest: str
    ready: bool = False


@dataclass(slots=True)
class FakeService:
    """One InferenceService with its revisions."""

    body: Body
    revisions: list[FakeRevision] = field(default_factory=list)


class FakeInferenceServices:
    """See InferenceServices. Each write is reconciled at once, with `lag` only by `reconcile()`.

    `behaviour[bundle digest]` says how revisions of that bundle start (default: ready).
    `history` is the traffic as {bundle digest: percent} after each change, `writes` counts what
    clients wrote.
    """

    def __init__(self, lag: bool = False) -> None:
        self.lag = lag
        self.behaviour: dict[str, Behaviour] = {}
        self.history: list[dict[str, int]] = []
        self.writes = 0
        self._services: dict[tuple[str, str], FakeService] = {}
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    def get(self, namespace: str, name: str) -> Body | None:
        """See InferenceServices."""
        found = self._services.get((namespace, name))
        return copy.deepcopy(found.body) if found else None

    def create(self, namespace: str, body: Body) -> Body:
        """See InferenceServices."""
        name = body["metadata"]["name"]
        if (namespace, name) in self._services:
            raise ConflictError(f"service {name} exists")
        made = copy.deepcopy(body)
        made["metadata"] |= {"uid": f"uid-{next(self._uids)}", "namespace": namespace}
        made["status"] = {}
        self._services[namespace, name] = FakeService(made)
        return self._written(namespace, name)

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        """See InferenceServices."""
        service = self._services.get((namespace, name))
        if service is None:
            raise NotFoundError(f"there is no service {name}")
        given = body.get("metadata", {}).get("resourceVersion")
        if given is not None and given != service.body["metadata"]["resourceVersion"]:
            raise ConflictError(f"service {name} is not at resourceVersion {given} any more")
        status = service.body["status"]
        service.body = merge(service.body, body)
        service.body["status"] = status
        return self._written(namespace, name)

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """See InferenceServices."""
        service = self._services.get((namespace, name))
        if service is None or uid not in ("", service.body["metadata"]["uid"]):
            return
        self.writes += 1
        del self._services[namespace, name]
        self._note({})

    def reconcile(self) -> None:
        """Let the control plane catch up with every spec, until nothing changes any more."""
        for service in list(self._services.values()):
            for _ in range(RECONCILES_MAX):
                before = copy.deepcopy(service.body["status"])
                self._reconcile(service)
                if service.body["status"] == before:
                    break
                self._bump(service)
            self._note(self._weights(service))

    def restart(self, namespace: str, name: str) -> None:
        """Write the object without changing it, as a controller's heartbeat would."""
        self._bump(self._services[namespace, name])

    def weights(self, namespace: str, name: str) -> dict[str, int]:
        """The traffic now, as {bundle digest: percent}; nothing when there is no service."""
        service = self._services.get((namespace, name))
        return self._weights(service) if service else {}

    def reported(self, namespace: str, name: str) -> tuple[str, ...]:
        """The bundle digests that the processes in traffic would report, sorted."""
        return tuple(sorted(self.weights(namespace, name)))

    def _written(self, namespace: str, name: str) -> Body:
        self.writes += 1
        service = self._services[namespace, name]
        self._bump(service)
        if not self.lag:
            self.reconcile()
        return copy.deepcopy(service.body)

    def _bump(self, service: FakeService) -> None:
        service.body["metadata"]["resourceVersion"] = str(next(self._versions))

    def _note(self, weights: dict[str, int]) -> None:
        if not self.history or self.history[-1] != weights:
            self.history.append(weights)

    def _weights(self, service: FakeService) -> dict[str, int]:
        bundles = {revision.name: revision.bundle_digest for revision in service.revisions}
        found: dict[str, int] = {}
        for entry in _component(service).get("traffic", ()):
            if entry["percent"]:
                bundle = bundles[entry["revisionName"]]
                found[bundle] = found.get(bundle, 0) + entry["percent"]
        return found

    def _reconcile(self, service: FakeService) -> None:
        predictor = copy.deepcopy(service.body["spec"]["predictor"])
        percent = predictor.pop(PERCENT, None)
        template = digest_json(predictor)
        if not service.revisions or service.revisions[-1].template_digest != template:
            name = f"{service.body['metadata']['name']}-predictor-{len(service.revisions) + 1:05d}"
            bundle = bundle_of_uri(predictor["model"]["storageUri"])
            service.revisions.append(FakeRevision(name, template, bundle))
        newest = service.revisions[-1]
        behaviour = self.behaviour.get(newest.bundle_digest, "ready")
        newest.ready = newest.ready or behaviour == "ready"
        component = dict(_component(service))
        component["latestCreatedRevision"] = newest.name
        if newest.ready:
            component["latestReadyRevision"] = newest.name
        if component.get("latestReadyRevision"):
            component["traffic"] = _traffic(component, percent)
            _roll_out(component)
        failed = not newest.ready and behaviour == "failed"
        state = "False" if failed else str(newest.ready) if newest.ready else "Unknown"
        reason = {"reason": "RevisionFailed", "message": "it exits with 1"} if failed else {}
        service.body["status"] = {
            "components": {"predictor": component},
            "conditions": [{"type": "Ready", "status": state, **reason}],
        }


def _component(service: FakeService) -> Body:
    found: Body = service.body["status"].get("components", {}).get("predictor", {})
    return found


def _traffic(component: Body, percent: int | None) -> list[Body]:
    """A percent counts only once something was rolled out; the rest goes to what was, as `prev`."""
    latest = {"latestRevision": True, "revisionName": component["latestReadyRevision"]}
    rolled_out = component.get("latestRolledoutRevision", "")
    if percent is None or not rolled_out:
        return [{**latest, "percent": 100}]
    entries = [{**latest, "percent": percent}]
    if percent < 100:
        rest = {"latestRevision": False, "revisionName": rolled_out, "tag": "prev"}
        entries.append({**rest, "percent": 100 - percent})
    return entries


def _roll_out(component: Body) -> None:
    """Follow what is rolled out.

    A percent on a promoted service puts both entries on one revision; the controller reads that
    as a wish to go back, and what was rolled out before becomes `prev`.
    """
    latest = component["traffic"][0]
    name = latest["revisionName"]
    rolled_out = component.get("latestRolledoutRevision", "")
    if name != rolled_out:
        if latest["percent"] == 100:
            component["previousRolledoutRevision"] = rolled_out
            component["latestRolledoutRevision"] = name
        return
    same = sum(e["percent"] for e in component["traffic"] if e["revisionName"] == name)
    newest = component["latestReadyRevision"] == component["latestCreatedRevision"]
    previous = component.get("previousRolledoutRevision", "")
    if newest and latest["percent"] < 100 and same == 100 and previous:
        component["latestRolledoutRevision"] = previous
