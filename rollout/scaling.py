"""How many processes serve a version: minReplicas, changed without touching what is served.

Replicas are no part of a release's compared state; still nothing is scaled while one runs.
"""

from dataclasses import dataclass

from core.errors import ConflictError, NotFoundError, RefusedError
from rollout.inference_service import REPLICAS_MAX, REPLICAS_MIN, Body, InferenceServices
from rollout.ledger import Ledger
from rollout.release import HELD_STATES

ROUNDS_MAX = 5


@dataclass(frozen=True, slots=True)
class Replicas:
    """What is asked for, and how many of the newest version are ready; None where nobody tells."""

    wanted: int
    ready: int | None
    limit: int | None
    memory_limit: str | None = None


def read_replicas(body: Body) -> Replicas:
    """Read an InferenceService object."""
    predictor = body.get("spec", {}).get("predictor", {})
    copies = ((body.get("status") or {}).get("modelStatus") or {}).get("copies") or {}
    resources = (predictor.get("model") or {}).get("resources") or {}
    return Replicas(
        wanted=predictor.get(REPLICAS_MIN, 1),
        ready=copies.get("totalCopies"),
        limit=predictor.get(REPLICAS_MAX) or None,
        memory_limit=(resources.get("limits") or {}).get("memory"),
    )


def scale(
    ledger: Ledger,
    client: InferenceServices,
    namespace: str,
    service: str,
    replicas: int,
    only_from: int | None = None,
) -> Replicas:
    """Ask for so many replicas, at most the service's maxReplicas; return what was before.

    With `only_from` nothing happens unless so many are asked for now: somebody else has decided.
    Raises RefusedError while a release moves traffic, NotFoundError without the service,
    ConflictError when it is written again and again, UnavailableError.
    """
    for _ in range(ROUNDS_MAX):
        active = ledger.active(service, namespace)
        if active is not None and active.state in HELD_STATES:
            raise RefusedError(f"release {active.release_id} runs: replicas stay as they are")
        body = client.get(namespace, service)
        if body is None:
            raise NotFoundError(f"service {service} does not exist; nothing can be scaled")
        before = read_replicas(body)
        goal = min(replicas, before.limit or replicas)
        if goal == before.wanted or only_from not in (None, before.wanted):
            return before
        patch: Body = {
            "metadata": {"resourceVersion": body["metadata"]["resourceVersion"]},
            "spec": {"predictor": {REPLICAS_MIN: goal}},
        }
        try:
            client.patch(namespace, service, patch)
        except ConflictError:
            continue
        return before
    raise ConflictError(f"service {service} is being written all the time; it was not scaled")
