"""KServe's InferenceService (v1beta1, Knative mode) as releases see it: client protocol, facts read
from an object, and the merge patches that move it. Opens no connection."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from core.contracts import Candidate
from core.errors import InputError

GROUP = "serving.kserve.io"
API_VERSION = "v1beta1"
PLURAL = "inferenceservices"
MODE_ANNOTATION = "serving.kserve.io/deploymentMode"
PERCENT = "canaryTrafficPercent"
REPLICAS_MIN, REPLICAS_MAX = "minReplicas", "maxReplicas"
VERSION_VARIABLE = "SERIN_MODEL_VERSION"
MODEL_FORMAT = "serin"
FAILED_REASONS = ("RevisionFailed",)
FAILED_TRANSITIONS = ("BlockedByFailedLoad", "InvalidSpec")
Body = dict[str, Any]


class InferenceServices(Protocol):
    """Where InferenceServices live. All bodies are plain dicts as in the API's JSON.

    Every method raises UnavailableError when the control plane does not answer: what was asked
    may or may not have happened. RefusedError: it was understood and denied.
    """

    def get(self, namespace: str, name: str) -> Body | None:
        """Return the object, None when it does not exist."""
        ...

    def create(self, namespace: str, body: Body) -> Body:
        """Create an object. Raises ConflictError when it exists."""
        ...

    def patch(self, namespace: str, name: str, body: Body) -> Body:
        """Apply a JSON merge patch (RFC 7386); None removes.

        Raises ConflictError when metadata.resourceVersion in `body` is not the current one,
        NotFoundError when the object does not exist.
        """
        ...

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete the object if it still has that uid; nothing happens when it is gone."""
        ...


@dataclass(frozen=True, slots=True)
class RevisionShare:
    """One entry of status.components.predictor.traffic."""

    revision: str
    percent: int
    latest: bool


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """What the control plane says of one service now.

    `spec` is without canaryTrafficPercent and replicas: how many processes serve changes with the
    load, and is no part of what a release compares or writes. `bundles` maps the revisions that the
    ledger knows to (bundle digest, model version); `failure` is why the newest revision cannot
    start, or "".
    """

    exists: bool
    uid: str = ""
    resource_version: str = ""
    deleting: bool = False
    spec: Mapping[str, Any] = field(default_factory=dict)
    percent: int | None = None
    bundle_digest: str = ""
    model_version: str = ""
    latest_created: str = ""
    latest_ready: str = ""
    latest_rolledout: str = ""
    previous_rolledout: str = ""
    traffic: tuple[RevisionShare, ...] = ()
    failure: str = ""
    bundles: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def bundle_of(self, revision: str) -> str:
        """The bundle digest of a revision; "" while it is not known."""
        return self.bundles.get(revision, ("", ""))[0]

    @property
    def weights(self) -> dict[str, int]:
        """The traffic as {bundle digest: percent}; an unknown revision goes by its own name."""
        found: dict[str, int] = {}
        for share in self.traffic:
            if share.percent:
                key = self.bundle_of(share.revision) or f"revision {share.revision}"
                found[key] = found.get(key, 0) + share.percent
        return found

    @property
    def newest_ready(self) -> bool:
        """Whether the newest revision is ready (also true while a newer spec is not seen yet)."""
        return self.latest_created != "" and self.latest_created == self.latest_ready

    @property
    def newest_percent(self) -> int:
        """The traffic of the status entry that follows the newest ready revision."""
        return sum(share.percent for share in self.traffic if share.latest)

    def settled(self) -> bool:
        """Whether no canary is under way: one ready revision, the newest, has all traffic."""
        everything = [share for share in self.traffic if share.percent]
        return (
            self.exists
            and not self.deleting
            and self.percent in (None, 100)
            and self.newest_ready
            and [(share.revision, share.percent) for share in everything]
            == [(self.latest_created, 100)]
        )

    def settled_on(self, bundle_digest: str) -> bool:
        """Whether the service is settled and what has all traffic is known to be that bundle."""
        return self.settled() and self.bundle_of(self.latest_created) == bundle_digest


ABSENT = ServiceFacts(exists=False)


def read_facts(body: Body | None, bundles: Mapping[str, tuple[str, str]]) -> ServiceFacts:
    """Read an InferenceService object; `bundles` is what the ledger knows of its revisions."""
    if body is None:
        return ABSENT
    metadata = body.get("metadata", {})
    spec = copy.deepcopy(body.get("spec", {}))
    predictor = spec.get("predictor", {})
    percent = predictor.pop(PERCENT, None)
    for field_name in (REPLICAS_MIN, REPLICAS_MAX):
        predictor.pop(field_name, None)
    status = body.get("status") or {}
    component = (status.get("components") or {}).get("predictor") or {}
    model = predictor.get("model") or {}
    return ServiceFacts(
        exists=True,
        uid=metadata.get("uid", ""),
        resource_version=metadata.get("resourceVersion", ""),
        deleting="deletionTimestamp" in metadata,
        spec=spec,
        percent=percent,
        bundle_digest=bundle_of_uri(model.get("storageUri") or ""),
        model_version=_version(model),
        latest_created=component.get("latestCreatedRevision") or "",
        latest_ready=component.get("latestReadyRevision") or "",
        latest_rolledout=component.get("latestRolledoutRevision") or "",
        previous_rolledout=component.get("previousRolledoutRevision") or "",
        traffic=tuple(
            RevisionShare(
                revision=entry.get("revisionName") or "",
                percent=entry.get("percent") or 0,
                latest=bool(entry.get("latestRevision")),
            )
            for entry in component.get("traffic") or ()
        ),
        failure=_failure(status),
        bundles=bundles,
    )


def bundle_of_uri(uri: str) -> str:
    """Return the bundle digest that a storage URI names: its last path part."""
    return uri.rstrip("/").rpartition("/")[2]


def service_body(namespace: str, candidate: Candidate) -> Body:
    """Return the InferenceService of a service's first release."""
    spec: Body = {"predictor": {"minReplicas": 1, "model": {}}}
    model = {"modelFormat": {"name": MODEL_FORMAT}, "runtime": MODEL_FORMAT}
    spec["predictor"]["model"] = _with_bundle(model, candidate.bundle_uri, candidate.model_version)
    return {
        "apiVersion": f"{GROUP}/{API_VERSION}",
        "kind": "InferenceService",
        "metadata": {
            "name": candidate.service,
            "namespace": namespace,
            # Annotations reach the pods, so this one is set at creation and none ever after.
            "annotations": {MODE_ANNOTATION: "Knative"},
        },
        "spec": spec,
    }


def spec_with_candidate(spec: Mapping[str, Any], candidate: Candidate) -> Body:
    """Return `spec` with the candidate as its model and all else as it was."""
    wanted: Body = copy.deepcopy(dict(spec))
    predictor = wanted.setdefault("predictor", {})
    predictor["model"] = _with_bundle(
        predictor.get("model") or {}, candidate.bundle_uri, candidate.model_version
    )
    return wanted


def spec_with_model_of(spec: Mapping[str, Any], other: Mapping[str, Any]) -> Body:
    """Return `spec` with the model of `other` and all else as it was."""
    wanted: Body = copy.deepcopy(dict(spec))
    wanted.setdefault("predictor", {})["model"] = copy.deepcopy(other["predictor"]["model"])
    return wanted


def patch_body(facts: ServiceFacts, wanted: Mapping[str, Any], percent: int | None) -> Body:
    """Return the merge patch from the spec in `facts` to `wanted` with a canary percent.

    Model and percent go in one patch: percent alone on a promoted service moves traffic to the
    revision before. The resourceVersion makes it fail if anything was written since `facts`.
    """
    if percent is not None and not 0 <= percent <= 100:
        raise InputError(f"canary percent {percent} is not between 0 and 100")
    spec = merge_difference(facts.spec, wanted)
    spec.setdefault("predictor", {})[PERCENT] = percent
    return {"metadata": {"resourceVersion": facts.resource_version}, "spec": spec}


def merge_difference(current: Mapping[str, Any], wanted: Mapping[str, Any]) -> Body:
    """Return the smallest merge patch (RFC 7386) that turns `current` into `wanted`."""
    patch: Body = {name: None for name in current if name not in wanted}
    for name, value in wanted.items():
        mine = current.get(name)
        if isinstance(value, Mapping) and isinstance(mine, Mapping):
            inner = merge_difference(mine, value)
            if inner:
                patch[name] = inner
        elif name not in current or value != mine:
            patch[name] = copy.deepcopy(value)
    return patch


def merge(current: Any, patch: Any) -> Any:
    """Apply a JSON merge patch (RFC 7386) and return the result; the arguments stay as they are."""
    if not isinstance(patch, Mapping):
        return copy.deepcopy(patch)
    result = copy.deepcopy(dict(current)) if isinstance(current, Mapping) else {}
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merge(result.get(name), value)
    return result


def _with_bundle(model: Mapping[str, Any], uri: str, model_version: str) -> Body:
    others = [item for item in model.get("env") or () if item.get("name") != VERSION_VARIABLE]
    variable = {"name": VERSION_VARIABLE, "value": model_version}
    return {**model, "storageUri": uri, "env": [*others, variable]}


def _version(model: Mapping[str, Any]) -> str:
    for item in model.get("env") or ():
        if item.get("name") == VERSION_VARIABLE:
            return str(item.get("value", ""))
    return ""


def _failure(status: Mapping[str, Any]) -> str:
    for condition in status.get("conditions") or ():
        if condition.get("status") == "False" and condition.get("reason") in FAILED_REASONS:
            return f"{condition['reason']}: {condition.get('message') or 'no message'}"
    model = status.get("modelStatus") or {}
    if model.get("transitionStatus") in FAILED_TRANSITIONS:
        info = model.get("lastFailureInfo") or {}
        return f"{model['transitionStatus']}: {info.get('message') or 'no message'}"
    return ""
