"""The status of an InferenceService as KServe writes it in Knative mode. Pure: facts in, dict out.

Conditions and reasons are those of Knative's Configuration and Route, which KServe passes on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from serving.local.admission import MODE, RUNTIME
from serving.local.objects import Object
from serving.local.revisions import Failure, Revision, ServiceState, Share

Truth = Literal["True", "False", "Unknown"]
RUNTIME_FAILURE = "ModelLoadFailed"
INFORMATIVE = {
    "LatestDeploymentReady", "PredictorConfigurationReady", "PredictorRouteReady", "RoutesReady",
}  # fmt: skip
PREDICTOR = "PredictorReady"


@dataclass(frozen=True, slots=True)
class Condition:
    """One condition; no reason is given when it is True."""

    status: Truth
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class RevisionFacts:
    """What is seen of one revision now: ready processes, and how its last process ended."""

    ready: int = 0
    running: int = 0
    last_exit: Failure | None = None


@dataclass(frozen=True, slots=True)
class ServiceFacts:
    """Everything that the status of one service depends on, beside its state.

    `wanted` is the traffic that the spec asks for; `settled` says that the gateway has it.
    """

    wanted: tuple[Share, ...]
    settled: bool
    revisions: Mapping[str, RevisionFacts]
    stopped: bool
    gateway_url: str
    now: str


TRUE = Condition("True")
STOPPED = Condition("False", "Stopped", "the annotation serving.kserve.io/stop is set")


def build_status(found: Object, state: ServiceState, facts: ServiceFacts) -> dict[str, Any]:
    """Return the new status; times of unchanged conditions are kept from the old one."""
    old = found.get("status") or {}
    conditions = _conditions(state, facts)
    component: dict[str, Any] = {
        "latestCreatedRevision": state.latest_created,
        "latestReadyRevision": state.latest_ready,
        "latestRolledoutRevision": state.latest_rolledout,
        "previousRolledoutRevision": state.previous_rolledout,
    }
    component = {name: value for name, value in component.items() if value}
    if state.traffic:
        component["traffic"] = [_traffic_entry(share) for share in state.traffic]
    status: dict[str, Any] = {
        "observedGeneration": state.knative_generation,
        "deploymentMode": MODE,
        "servingRuntimeName": RUNTIME,
        "conditions": _with_times(conditions, old.get("conditions") or (), facts.now),
        "components": {"predictor": component},
        "modelStatus": _model_status(old.get("modelStatus") or {}, state, facts, conditions),
    }
    if facts.gateway_url and state.latest_ready:
        component["url"] = facts.gateway_url
        component["address"] = {"url": facts.gateway_url}
        status["url"] = facts.gateway_url
        status["address"] = {"url": facts.gateway_url}
    return status


def _conditions(state: ServiceState, facts: ServiceFacts) -> dict[str, Condition]:
    if facts.stopped:
        names = ("IngressReady", "PredictorReady", "Ready")
        return {"Stopped": TRUE, **dict.fromkeys(names, STOPPED)}
    configuration = _configuration(state, facts)
    route = _route(state, facts)
    predictor = _together(configuration, route)
    ingress = TRUE if state.traffic else Condition("Unknown", "Predictor ingress not created")
    return {
        "IngressReady": ingress,
        "LatestDeploymentReady": _summed(configuration, "PredictorConfigurationReady"),
        "PredictorConfigurationReady": configuration,
        PREDICTOR: predictor,
        "PredictorRouteReady": route,
        "Ready": _together(predictor, ingress),
        "RoutesReady": _summed(route, "PredictorRouteReady"),
    }


def _configuration(state: ServiceState, facts: ServiceFacts) -> Condition:
    latest = state.latest
    seen = facts.revisions.get(latest.name, RevisionFacts())
    if latest.phase == "failed":
        failure = latest.failure
        return _revision_failed(latest, failure.message if failure else "unknown reason")
    if latest.phase == "loading":
        return Condition("Unknown")
    if seen.ready or latest.replicas_min == 0:
        return TRUE
    if seen.last_exit is not None:
        return _revision_failed(latest, f"Container failed with: {seen.last_exit.message}")
    return Condition("Unknown", "Deploying", f'Revision "{latest.name}" has no ready process.')


def _revision_failed(revision: Revision, message: str) -> Condition:
    text = f'Revision "{revision.name}" failed with message: {message}'
    return Condition("False", "RevisionFailed", text)


def _route(state: ServiceState, facts: ServiceFacts) -> Condition:
    if not facts.wanted:
        if state.latest.phase == "failed":
            message = f'Configuration "{state.name}" does not have any ready Revision.'
            return Condition("False", "RevisionMissing", message)
        message = f'Configuration "{state.name}" is waiting for a Revision to become ready.'
        return Condition("Unknown", "RevisionMissing", message)
    if state.traffic != facts.wanted:
        message = "waiting for the gateway to apply the routes"
        return Condition("Unknown", "IngressNotConfigured", message)
    for share in facts.wanted:
        seen = facts.revisions.get(share.revision, RevisionFacts())
        if share.percent and not seen.ready and state.revisions[share.revision].replicas_min:
            if seen.last_exit is None:
                message = f'Revision "{share.revision}" is not yet ready.'
                return Condition("Unknown", "RevisionMissing", message)
            message = f'Revision "{share.revision}" failed to become ready.'
            return Condition("False", "RevisionMissing", message)
    return TRUE


def _together(*parts: Condition) -> Condition:
    """Return the worst part; of several alike, the first that gives a reason."""
    for truth in ("False", "Unknown"):
        found = [part for part in parts if part.status == truth]
        if found:
            return next((part for part in found if part.reason), found[0])
    return TRUE


def _summed(part: Condition, name: str) -> Condition:
    return TRUE if part.status == "True" else Condition(part.status, f"{name} not ready")


def _with_times(
    conditions: Mapping[str, Condition], old: Sequence[Mapping[str, Any]], now: str
) -> list[dict[str, Any]]:
    before = {entry["type"]: entry for entry in old}
    entries = []
    for name in sorted(conditions):
        condition = conditions[name]
        entry: dict[str, Any] = {"type": name, "status": condition.status}
        same = before.get(name, {}).get("status") == condition.status
        entry["lastTransitionTime"] = before[name]["lastTransitionTime"] if same else now
        if condition.reason:
            entry["reason"] = condition.reason
        if condition.message:
            entry["message"] = condition.message
        if name in INFORMATIVE:
            entry["severity"] = "Info"
        entries.append(entry)
    return entries


def _traffic_entry(share: Share) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "revisionName": share.revision,
        "percent": share.percent,
        "latestRevision": share.latest,
    }
    if not share.latest:
        entry["tag"] = "prev"
    return entry


def _model_status(
    old: Mapping[str, Any],
    state: ServiceState,
    facts: ServiceFacts,
    conditions: Mapping[str, Condition],
) -> dict[str, Any]:
    latest = state.latest
    seen = facts.revisions.get(latest.name, RevisionFacts())
    # A first exit while loading is not final: the process is started again.
    failure = {"failed": latest.failure, "ready": seen.last_exit, "loading": None}[latest.phase]
    target, transition = "Pending", "InProgress"
    if conditions["Ready"].status == "True" and state.latest_created == state.latest_ready:
        target, transition, failure = "Loaded", "UpToDate", None
    elif failure is not None and not seen.ready:
        target, transition = "FailedToLoad", "BlockedByFailedLoad"
    elif seen.running:
        target, failure = "Loading", None
    active = "Loaded" if target == "Loaded" else (old.get("states") or {}).get("activeModelState")
    result: dict[str, Any] = {
        "copies": {"failedCopies": int(target == "FailedToLoad"), "totalCopies": seen.ready},
        "states": {"activeModelState": active or "", "targetModelState": target},
        "transitionStatus": transition,
    }
    # As in KServe the last failure stays to be read after a later success.
    last = old.get("lastFailureInfo")
    if failure is not None:
        last = {
            "reason": RUNTIME_FAILURE,
            "message": failure.message,
            "modelRevisionName": latest.name,
            "time": failure.time,
        }
        if failure.exit_code is not None:
            last["exitCode"] = failure.exit_code
    if last:
        result["lastFailureInfo"] = last
    return result
